//! A sound VHDX image with bytes changed, checksums made right or not: what opens has a whole map, and keeps what is
//! written to it.
#![no_main]

use std::sync::OnceLock;

#[path = "../../crates/storage/image/tests/vhdx_oracle/mod.rs"]
mod oracle;
#[path = "../../crates/storage/image/tests/vhdx_parts/mod.rs"]
mod parts;

use oracle::Kind;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    static SAMPLES: OnceLock<[Vec<u8>; 2]> = OnceLock::new();
    let samples = SAMPLES.get_or_init(|| [oracle::sample(Kind::Dynamic), oracle::sample(Kind::Child)]);
    let Some((&choice, script)) = input.split_first() else { return };
    let sound = &samples[usize::from(choice & 1)];
    let (metadata, bat) = (parts::metadata(sound), parts::bat(sound));
    // Where something is: headers, region tables, metadata, items, the table with its bitmap entry, the log.
    let places =
        [parts::HEADERS[0], parts::TABLES[0], metadata, metadata + 65_536, bat, bat + 32_768, parts::MIB, 0];
    let mut bytes = sound.clone();
    if choice & 2 != 0 {
        let len = bytes.len() as u64;
        let to = script.first().map_or(0, |byte| u64::from(*byte) << 12);
        let change = parts::Change::Data(parts::MIB as u64 * 2 + to, sound[bat..bat + 4096].to_vec());
        parts::put_entry(&mut bytes, 0, &parts::entry(1, 0, [len, len], &[change]));
        parts::activate(&mut bytes);
    }
    // Each change: which place, where in it, and eight bytes.
    for change in script.chunks_exact(11) {
        let at = places[usize::from(change[0] % 8)] + usize::from(change[1]) * 8;
        let len = 1 + usize::from(change[2] % 8);
        if let Some(place) = bytes.get_mut(at..at + len) {
            place.copy_from_slice(&change[3..3 + len]);
        }
    }
    if choice & 4 != 0 {
        for (at, len) in parts::HEADERS.map(|at| (at, 4096)).into_iter().chain(parts::TABLES.map(|at| (at, 65_536))) {
            parts::seal(&mut bytes[at..at + len]);
        }
    }
    oracle::judge(bytes);
});
