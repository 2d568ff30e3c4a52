//! Any bytes as a disk with a partition table; the oracle is the set of laws in `vmwright_volume::oracle`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((&choice, bytes)) = input.split_first() else { return };
    let mut bytes = bytes.to_vec();
    // Random bytes never get past a checksum, so most inputs are given the right ones.
    if choice % 4 != 0 {
        vmwright_volume::oracle::fix_checksums(&mut bytes);
    }
    vmwright_volume::oracle::check(bytes);
});
