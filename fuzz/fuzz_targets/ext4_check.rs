//! Damaged volumes, repaired: what is said to be right is right, stays so, and nothing is lost.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/storage/ext4/tests/oracle/mod.rs"]
mod oracle;

use oracle::judge::Judge;
use oracle::samples;

static VOLUMES: LazyLock<Vec<(Vec<u8>, Vec<usize>)>> = LazyLock::new(|| {
    let volumes = (0..samples::KINDS.len()).map(samples::sample);
    volumes.map(|bytes| (bytes.clone(), samples::places(&bytes))).collect()
});
static JUDGE: LazyLock<Option<Judge>> = LazyLock::new(Judge::find);

fuzz_target!(|input: (u8, bool, Vec<(u16, u8, u8)>)| {
    let (which, judged, patches) = input;
    let (volume, places) = &VOLUMES[usize::from(which) % VOLUMES.len()];
    let mut bytes = volume.clone();
    for (place, within, value) in patches {
        bytes[places[usize::from(place) % places.len()] + usize::from(within) % 32] = value;
    }
    oracle::repair(&bytes, JUDGE.as_ref().filter(|_| judged && which > 200));
});
