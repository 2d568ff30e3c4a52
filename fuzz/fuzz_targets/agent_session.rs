//! Two sessions through a pipe that cuts and corrupts: no data arrives that was not sent, and afterwards a
//! new session works.
#![no_main]

#[path = "../../crates/vm/agent-proto/tests/oracle/mod.rs"]
mod oracle;

libfuzzer_sys::fuzz_target!(|script: &[u8]| oracle::check(script));
