//! Any sequence of writes, zeroings, discards, flushes and reopenings of a qcow2 image equals a flat model.
#![no_main]

#[path = "../../crates/storage/image/tests/model/mod.rs"]
mod model;

libfuzzer_sys::fuzz_target!(|script: &[u8]| {
    model::run(&model::steps(script));
});
