//! A sound VMDK with bytes changed, or any descriptor: what opens has a whole map, and keeps what is written to it.
#![no_main]

use std::sync::OnceLock;

use vmwright_image::Subformat;

#[path = "../../crates/storage/image/tests/oracle/vmdk.rs"]
mod oracle;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    static SAMPLES: OnceLock<[Vec<u8>; 3]> = OnceLock::new();
    let samples = SAMPLES.get_or_init(|| {
        [
            oracle::sample(Subformat::MonolithicSparse, false),
            oracle::sample(Subformat::MonolithicSparse, true),
            oracle::sample(Subformat::StreamOptimized, false),
        ]
    });
    let Some((&choice, script)) = input.split_first() else { return };
    match choice {
        0 => return drop(oracle::judge(script.to_vec())),
        1 => return drop(oracle::judge([b"# Disk DescriptorFile\n".as_slice(), script].concat())),
        _ => {}
    }
    let mut bytes = samples[usize::from(choice) % 3].clone();
    // Each change: where, and up to eight bytes.
    for change in script.chunks_exact(11) {
        let at = (usize::from(change[0]) << 8 | usize::from(change[1])) * 4 % bytes.len();
        let len = 1 + usize::from(change[2] % 8);
        if let Some(place) = bytes.get_mut(at..at + len) {
            place.copy_from_slice(&change[3..3 + len]);
        }
    }
    oracle::judge(bytes);
});
