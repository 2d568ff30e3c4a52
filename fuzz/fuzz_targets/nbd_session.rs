//! Sessions of an NBD client that does as it likes: every request is answered as a model of the disk says.
#![no_main]

#[path = "../../crates/storage/nbd/tests/oracle/mod.rs"]
mod oracle;

libfuzzer_sys::fuzz_target!(|script: &[u8]| oracle::check(script));
