//! A damaged redo file is refused, or makes exactly what a reader saw through it.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| vmwright_disk::fault::check_redo(input));
