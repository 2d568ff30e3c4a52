//! A sound qcow2 image with bytes changed: what opens has a whole map, and keeps what is written to it.
#![no_main]

use std::sync::OnceLock;

#[path = "../../crates/storage/image/tests/oracle/mod.rs"]
mod oracle;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    static SAMPLES: OnceLock<[Vec<u8>; 3]> = OnceLock::new();
    let samples =
        SAMPLES.get_or_init(|| [oracle::sample(9, 16), oracle::sample(12, 1), oracle::sample_with_history()]);
    let Some((&choice, script)) = input.split_first() else { return };
    if choice == 0 {
        return oracle::judge(script.to_vec());
    }
    let mut bytes = samples[usize::from(choice) % 3].clone();
    // Each change: where, and eight bytes.
    for change in script.chunks_exact(11) {
        let at = usize::from(change[0]) << 8 | usize::from(change[1]);
        let at = at * 8 % bytes.len();
        let len = 1 + usize::from(change[2] % 8);
        if let Some(place) = bytes.get_mut(at..at + len) {
            place.copy_from_slice(&change[3..3 + len]);
        }
    }
    oracle::judge(bytes);
});
