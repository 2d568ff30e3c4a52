//! A sound image with bytes changed: what opens has a whole map, and keeps what is written to it.
#![no_main]

use std::sync::OnceLock;

use vmwright_image::Format;

#[path = "../../crates/storage/image/tests/oracle/blocks.rs"]
mod oracle;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    static SAMPLES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    let samples = SAMPLES.get_or_init(|| oracle::samples(Format::Vdi));
    oracle::judge_script(samples, Format::Vdi, input);
});
