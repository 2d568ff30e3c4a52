//! Small volumes of every kind with words and bytes replaced: walked, checked and changed.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/storage/ext4/tests/oracle/mod.rs"]
mod oracle;

use oracle::judge::Judge;
use oracle::samples;

/// Volumes, and where they are not zero.
static VOLUMES: LazyLock<Vec<(Vec<u8>, Vec<usize>)>> = LazyLock::new(|| {
    let volumes = (0..samples::KINDS.len()).map(samples::sample);
    volumes.map(|bytes| (bytes.clone(), samples::places(&bytes))).collect()
});
static JUDGE: LazyLock<Option<Judge>> = LazyLock::new(Judge::find);

fuzz_target!(|input: (u8, Vec<(u16, u8, u8)>, Vec<[u32; 4]>)| {
    let (which, patches, words) = input;
    let (volume, places) = &VOLUMES[usize::from(which) % VOLUMES.len()];
    let mut bytes = volume.clone();
    for (place, within, value) in patches {
        bytes[places[usize::from(place) % places.len()] + usize::from(within) % 32] = value;
    }
    // Processes are slow: e2fsck is asked about some.
    let judge = JUDGE.as_ref().filter(|_| words.len() % 8 == 1);
    oracle::hold(&bytes, &words[..words.len().min(64)], judge);
});
