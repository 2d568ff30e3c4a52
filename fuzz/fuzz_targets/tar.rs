//! Archives of arbitrary bytes into a filesystem: an error that says so, or a tree within it.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/vm/rootfs/tests/oracle/mod.rs"]
mod oracle;

fuzz_target!(|input: (bool, &[u8])| {
    let (sealed, bytes) = input;
    let mut bytes = bytes.to_vec();
    if sealed {
        oracle::reseal(&mut bytes);
    }
    oracle::fill(bytes);
});
