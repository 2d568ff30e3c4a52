//! Any sequence of writes, zeroings, discards, flushes and reopenings of a qcow2 image equals a flat model.
#![no_main]

#[path = "../../crates/storage/image/tests/model/mod.rs"]
mod model;

libfuzzer_sys::fuzz_target!(|script: &[u8]| {
    let (head, script) = script.split_at(script.len().min(4));
    let shape = model::qcow2(head);
    model::run(&shape, &model::steps(script, shape.scale));
});
