//! Lines of QEMU's monitor, which a guest that has taken over QEMU writes: read the same however they are cut, and as JSON lines.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmwright_vmm::qemu::replay::check;

fuzz_target!(|input: (u8, &[u8])| {
    let (piece, bytes) = input;
    check(bytes, usize::from(piece));
});
