//! Journals made out of the input, damaged or not, against what they must show.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| vmwright_ext4::journal_model::check(bytes));
