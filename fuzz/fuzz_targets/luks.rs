//! A sound LUKS disk with bytes changed: what opens keeps what is written, and no change of a passphrase reaches the
//! content.
#![no_main]

use std::sync::OnceLock;

#[path = "../../crates/storage/crypt/tests/oracle/mod.rs"]
mod oracle;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    static SAMPLES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    let samples = SAMPLES.get_or_init(oracle::samples);
    let Some((&choice, script)) = input.split_first() else { return };
    if choice == 0 {
        oracle::judge(script.to_vec());
        return;
    }
    let sample = usize::from(choice) % samples.len();
    let mut bytes = samples[sample].clone();
    // Each change: what and where, and eight bytes.
    for change in script.chunks_exact(11) {
        let value: [u8; 8] = std::array::from_fn(|index| change[index + 3]);
        let at = usize::from(change[0] & 0x7f) << 8 | usize::from(change[1]);
        if change[0] & 0x80 != 0 {
            oracle::renumber(&mut bytes, at, &u64::from_le_bytes(value).to_string());
        } else if let Some(place) = bytes.get_mut(at..at + 1 + usize::from(change[2] % 8)) {
            place.copy_from_slice(&value[..place.len()]);
        }
    }
    // Without checksums that fit, hardly anything of version 2 is looked at.
    if sample > 0 && choice & 64 == 0 {
        oracle::reseal(&mut bytes);
    }
    oracle::judge(bytes);
});
