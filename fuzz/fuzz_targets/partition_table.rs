//! Any bytes as a disk with a partition table, or as changes of a sound one; the oracle is the set of laws in
//! `vmwright_volume::oracle`.
#![no_main]

use vmwright_volume::oracle;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((&choice, input)) = input.split_first() else { return };
    let mut bytes = match choice % 3 {
        0 => input.to_vec(),
        1 => changed(oracle::small_gpt(), input),
        _ => changed(oracle::small_mbr(), input),
    };
    // Random bytes never get past a checksum, so most inputs are given the right ones.
    if choice & 0x80 == 0 {
        oracle::fix_checksums(&mut bytes);
    }
    oracle::check(bytes);
});

/// Changes single bytes: each three bytes of the input are a place and what goes there.
fn changed(mut bytes: Vec<u8>, input: &[u8]) -> Vec<u8> {
    for change in input.chunks_exact(3) {
        let at = usize::from(u16::from_le_bytes([change[0], change[1]])) * bytes.len() / 65536;
        bytes[at] = change[2];
    }
    bytes
}
