//! Options for new volumes, any of them: refused with the disk as it was, or a volume that is sound.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/storage/ext4/tests/oracle/mod.rs"]
mod oracle;

use oracle::judge::Judge;

static JUDGE: LazyLock<Option<Judge>> = LazyLock::new(Judge::find);

fuzz_target!(|words: [u32; 8]| {
    oracle::making::hold(words, JUDGE.as_ref().filter(|_| words[7] % 4 == 0));
});
