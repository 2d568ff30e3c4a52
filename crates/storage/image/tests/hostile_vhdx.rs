//! VHDX images made to harm: truncated, with bits flipped, with tables that point at tables, checksums made right.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

mod vhdx_oracle;
mod vhdx_parts;

use std::sync::{Arc, OnceLock};

use proptest::prelude::*;
use vhdx_oracle::{Kind, judge, sample};
use vhdx_parts::{
    Change, FILE_PARAMETERS, HEADERS, LOGICAL_SECTOR_SIZE, MIB, PARENT_LOCATOR, TABLES, VIRTUAL_DISK_SIZE,
    activate, bat, bat_entry, entry, item, metadata, put, put_entry, seal, set_header, set_regions, u64_at,
};
use vmwright_disk::{Disk, ErrorKind, MemDisk};
use vmwright_image::{Format, FormatChoice, Image, OpenOptions};
use vmwright_judges::{output, tool};

fn samples() -> &'static [Vec<u8>; 2] {
    static SAMPLES: OnceLock<[Vec<u8>; 2]> = OnceLock::new();
    SAMPLES.get_or_init(|| [sample(Kind::Dynamic), sample(Kind::Child)])
}

/// One way to damage an image.
#[derive(Debug, Clone)]
enum Damage {
    /// Bytes anywhere in one of the places that matter.
    Flip {
        place: usize,
        at: usize,
        bit: u8,
    },
    Truncate {
        len: usize,
    },
    /// An entry of the table.
    Entry {
        index: usize,
        unit: u64,
        state: u64,
    },
    /// A field of four bytes in one of the places that matter.
    Field {
        place: usize,
        at: usize,
        value: u32,
    },
    /// A log that writes such a field.
    Log {
        to: u64,
        from: usize,
        len: u64,
        file: u64,
    },
}

fn damages() -> impl Strategy<Value = Damage> {
    let field = prop_oneof![any::<u32>(), 0u32..10, (0u32..64).prop_map(|mib| mib << 20), Just(u32::MAX)];
    prop_oneof![
        (0usize..8, 0usize..300, 0u8..8).prop_map(|(place, at, bit)| Damage::Flip { place, at, bit }),
        any::<usize>().prop_map(|len| Damage::Truncate { len }),
        (0usize..8, prop_oneof![0u64..16, any::<u64>()], 0u64..8)
            .prop_map(|(index, unit, state)| Damage::Entry { index, unit, state }),
        (0usize..8, 0usize..40, field).prop_map(|(place, at, value)| Damage::Field { place, at, value }),
        (0u64..2500, 0usize..2500, 0u64..20, prop_oneof![Just(0u64), 0u64..64])
            .prop_map(|(to, from, len, file)| Damage::Log { to, from, len, file }),
    ]
}

/// The places that matter, in a sound image.
fn places(sound: &[u8]) -> [usize; 8] {
    let metadata = metadata(sound);
    [
        HEADERS[0],
        HEADERS[1],
        TABLES[0],
        TABLES[1],
        metadata,
        metadata + 65_536,
        bat(sound),
        bat(sound) + 4096 * 8,
    ]
}

fn damage(bytes: &mut Vec<u8>, sound: &[u8], damage: &Damage) {
    let places = places(sound);
    match *damage {
        Damage::Flip { place, at, bit } => {
            if let Some(byte) = bytes.get_mut(places[place] + at) {
                *byte ^= 1 << bit;
            }
        }
        Damage::Truncate { len } => bytes.truncate(len % sound.len()),
        Damage::Entry { index, unit, state } => {
            // The sixth is that of the sector bitmap block.
            let at = bat(sound) + if index == 5 { 4096 } else { index } * 8;
            if let Some(place) = bytes.get_mut(at..at + 8) {
                place.copy_from_slice(&(unit << 20 | state).to_le_bytes());
            }
        }
        Damage::Field { place, at, value } => {
            let at = places[place] + at * 4;
            if let Some(place) = bytes.get_mut(at..at + 4) {
                place.copy_from_slice(&value.to_le_bytes());
            }
        }
        Damage::Log { to, from, len, file } if bytes.len() == sound.len() => {
            let data = sound[(from * 4096).min(sound.len() - 4096)..][..4096].to_vec();
            let changes = [Change::Data(to * 4096, data), Change::Zero(to * 4096 + 8192, len * 4096)];
            let file_len = [bytes.len() as u64, file << 20];
            put_entry(&mut bytes[..], 0, &entry(1, 0, file_len, &changes));
            activate(bytes);
        }
        Damage::Log { .. } => {}
    }
}

/// Makes the checksums of both headers and both region tables right.
fn make_right(bytes: &mut [u8]) {
    for (at, len) in HEADERS.map(|at| (at, 4096)).into_iter().chain(TABLES.map(|at| (at, 65_536))) {
        if let Some(place) = bytes.get_mut(at..at + len) {
            seal(place);
        }
    }
}

fn cases() -> u32 {
    if std::env::var_os("VMWRIGHT_TORTURE").is_some() { 20_000 } else { 300 }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_opens_is_whole_and_keeps_what_is_written(
        child in any::<bool>(), right in prop_oneof![Just(true), Just(true), Just(false)],
        damage_list in proptest::collection::vec(damages(), 0..4),
    ) {
        let sound = &samples()[usize::from(child)];
        let mut bytes = sound.clone();
        for one in &damage_list {
            // A log needs a header that is sound so far.
            if right {
                make_right(&mut bytes);
            }
            if !matches!(one, Damage::Log { .. }) || (right && bytes.len() == sound.len()) {
                damage(&mut bytes, sound, one);
            }
        }
        if right {
            make_right(&mut bytes);
        }
        judge(bytes);
    }
}

#[test]
fn damaged_tables_read_as_qemu_reads_them_or_are_refused() {
    if tool("qemu-img").is_none() {
        vmwright_judges::skip!("qemu-img");
    }
    let sound = &samples()[0];
    let folder = tempfile::tempdir().unwrap();
    let (path, raw) = (folder.path().join("image"), folder.path().join("raw"));
    let (mut equal, mut refused) = (0, 0);
    for (index, unit, state) in
        [(0, 0, 2), (1, 0, 1), (2, 5, 6), (0, 5, 6), (1, 0, 3), (0, 1, 6), (2, 0, 5), (0, 9, 4)]
    {
        let mut bytes = sound.clone();
        damage(&mut bytes, sound, &Damage::Entry { index, unit, state });
        std::fs::write(&path, &bytes).unwrap();
        let args = ["convert", "-f", "vhdx", "-O", "raw", path.to_str().unwrap(), raw.to_str().unwrap()];
        let theirs = output("qemu-img", args).status.success().then(|| std::fs::read(&raw).unwrap());
        match (judge(bytes), theirs) {
            (Some(ours), theirs) => {
                assert!(Some(ours) == theirs, "entry {index}: {unit} {state}");
                equal += 1;
            }
            (None, _) => refused += 1,
        }
    }
    assert!(equal >= 4 && refused >= 1, "{equal} {refused}");
}

/// What opening an image says, and where that works, reading its first sector.
fn verdict(bytes: &[u8]) -> (Option<ErrorKind>, String) {
    let file: Arc<dyn Disk> = Arc::new(MemDisk::from_bytes(bytes.to_vec()));
    let parent: Arc<dyn Disk> = Arc::new(MemDisk::new(4 << 20));
    let options = OpenOptions { backing: Some(parent), ..OpenOptions::read_only() };
    let image = match Image::open(file, FormatChoice::Exact(Format::Vhdx), options) {
        Ok(image) => image,
        Err(error) => return (Some(error.kind()), error.to_string()),
    };
    match image.read_at(&mut [0; 512], 0) {
        Ok(()) => (None, String::new()),
        Err(error) => (Some(error.kind()), error.to_string()),
    }
}

fn expect(kind: ErrorKind, bytes: &[u8], what: &str) {
    let (found, text) = verdict(bytes);
    assert_eq!(found, Some(kind), "{what}: {text}");
    if kind == ErrorKind::Corrupt {
        assert!(text.contains("0x"), "{text}");
    }
}

#[test]
fn every_field_out_of_range_is_refused_and_the_error_says_where() {
    use ErrorKind::{Corrupt, Unsupported};
    for sound in samples() {
        let with = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = sound.clone();
            change(&mut bytes);
            bytes
        };
        assert_eq!(verdict(sound).0, None);
        expect(Corrupt, &with(&|b| b[0] ^= 1), "the signature");
        expect(Corrupt, &with(&|b| HEADERS.iter().for_each(|at| b[at + 20] ^= 1)), "both headers");
        expect(Unsupported, &with(&|b| set_header(b, 66, &[2])), "version 2");
        expect(Unsupported, &with(&|b| set_header(b, 64, &[1])), "a log of version 1");
        expect(Corrupt, &with(&|b| TABLES.iter().for_each(|at| b[at + 20] ^= 1)), "both region tables");
        for count in [0u32, 1, 2048, u32::MAX] {
            expect(Corrupt, &with(&|b| set_regions(b, 8, &count.to_le_bytes())), "the number of regions");
        }
        let region = bat_entry(sound);
        for offset in [0, 4096, MIB as u64, metadata(sound) as u64, 1 << 40, u64::MAX << 20] {
            expect(
                Corrupt,
                &with(&|b| set_regions(b, region + 16, &offset.to_le_bytes())),
                "where the table is",
            );
        }
        for len in [0u32, 4096, 0xfff0_0000] {
            expect(
                Corrupt,
                &with(&|b| set_regions(b, region + 24, &len.to_le_bytes())),
                "how long the table is",
            );
        }
        expect(Unsupported, &with(&|b| set_regions(b, region, &[0x67])), "a required region that is unknown");

        let (table, size) = (metadata(sound), item(sound, VIRTUAL_DISK_SIZE));
        expect(Corrupt, &with(&|b| b[table] ^= 1), "the metadata table");
        for count in [0u16, 2, 2048, u16::MAX] {
            expect(Corrupt, &with(&|b| put(b, table + 10, &count.to_le_bytes())), "the number of items");
        }
        expect(Unsupported, &with(&|b| b[table + 32] ^= 1), "a required item that is unknown");
        for offset in [0u32, 4096, MIB as u32, u32::MAX, 65_536 + 8] {
            expect(Corrupt, &with(&|b| put(b, table + 48, &offset.to_le_bytes())), "where an item is");
        }
        for len in [4u32, 0, u32::MAX] {
            expect(Corrupt, &with(&|b| put(b, table + 52, &len.to_le_bytes())), "how long an item is");
        }
        for value in [1u64, (64 << 40) + 512, u64::MAX, 1 << 40] {
            expect(Corrupt, &with(&|b| put(b, size, &value.to_le_bytes())), "the size");
        }
        for value in [0u32, 1, 3 << 20, 512 << 20, 1 << 31] {
            expect(
                Corrupt,
                &with(&|b| put(b, item(sound, FILE_PARAMETERS), &value.to_le_bytes())),
                "the block size",
            );
        }
        for value in [0u32, 513, 8192] {
            expect(
                Corrupt,
                &with(&|b| put(b, item(sound, LOGICAL_SECTOR_SIZE), &value.to_le_bytes())),
                "the sector",
            );
        }
        let first = bat(sound);
        let past = sound.len() as u64 | 6;
        for value in [6, (1 << 20) | 6, (2 << 20) | 6, first as u64 | 6, past, u64::MAX << 20 | 6, 4] {
            expect(Corrupt, &with(&|b| put(b, first, &value.to_le_bytes())), "an entry of the table");
        }
    }
    let child = &samples()[1];
    let mut bytes = child.clone();
    put(&mut bytes, bat(child) + 4096 * 8, &[0; 8]);
    expect(Corrupt, &bytes, "no sector bitmap block");
    let mut bytes = child.clone();
    bytes[item(child, PARENT_LOCATOR)] ^= 1;
    expect(Unsupported, &bytes, "a locator of another type");
    let mut bytes = samples()[0].clone();
    let at = bat(&bytes);
    let entry = u64_at(&bytes, at) | 7;
    put(&mut bytes, at, &entry.to_le_bytes());
    expect(Corrupt, &bytes, "a block in part without a parent");
    let mut bytes = samples()[0].clone();
    let at = item(&bytes, FILE_PARAMETERS) + 4;
    bytes[at] = 2;
    expect(Corrupt, &bytes, "a parent without a locator");
}

#[test]
fn what_overlaps_is_found_by_a_check() {
    let mut bytes = samples()[0].clone();
    let at = bat(&bytes);
    let entry = bytes[at..at + 8].to_vec();
    put(&mut bytes, at + 8, &entry);
    put(&mut bytes, at + 16, &(1u64 << 20 | 6).to_le_bytes());
    put(&mut bytes, at + 24, &(1u64 << 40 | 6).to_le_bytes());
    let file: Arc<dyn Disk> = Arc::new(MemDisk::from_bytes(bytes));
    let image = Image::open(file, FormatChoice::Exact(Format::Vhdx), OpenOptions::default()).unwrap();
    let report = image.check().unwrap();
    assert_eq!(report.corruptions, 3, "{:?}", report.findings);
    assert_eq!(report.findings.len(), 3);
}

#[test]
fn every_truncation_is_noticed_or_harmless() {
    let whole = &samples()[1];
    for len in (0..whole.len()).step_by(whole.len() / 60) {
        judge(whole[..len].to_vec());
    }
}
