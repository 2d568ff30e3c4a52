//! Images made to harm: truncated, with bits flipped, with tables that point at tables.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

mod oracle;

use std::sync::OnceLock;

use proptest::prelude::*;
use vmwright_disk::ErrorKind;

fn samples() -> &'static [Vec<u8>] {
    static SAMPLES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    SAMPLES.get_or_init(|| {
        let history = oracle::sample_with_history();
        vec![oracle::sample(9, 16), oracle::sample(12, 1), oracle::sample(16, 64), history]
    })
}

/// One way to damage an image.
#[derive(Debug, Clone)]
enum Damage {
    Flip {
        at: usize,
        bit: u8,
    },
    Truncate {
        len: usize,
    },
    /// A number of a table becomes another offset, perhaps that of a table.
    Point {
        at: usize,
        cluster: u64,
        flags: u8,
        raw: u64,
    },
    /// A field of the header.
    Header {
        at: usize,
        value: u32,
    },
}

fn damages() -> impl Strategy<Value = Damage> {
    prop_oneof![
        (any::<usize>(), 0u8..8).prop_map(|(at, bit)| Damage::Flip { at, bit }),
        // Most of what can go wrong is near the beginning.
        (0usize..6000, 0u8..8).prop_map(|(at, bit)| Damage::Flip { at, bit }),
        (0usize..112, 0u8..8).prop_map(|(at, bit)| Damage::Flip { at, bit }),
        any::<usize>().prop_map(|len| Damage::Truncate { len }),
        (any::<usize>(), 0u64..40, any::<u8>(), any::<u64>())
            .prop_map(|(at, cluster, flags, raw)| Damage::Point { at, cluster, flags, raw }),
        (0usize..28, prop_oneof![any::<u32>(), 0u32..300])
            .prop_map(|(at, value)| Damage::Header { at, value }),
    ]
}

fn damage(bytes: &mut Vec<u8>, damage: &Damage) {
    let len = bytes.len().max(1);
    let cluster_size =
        1u64 << samples().iter().find(|sample| sample.len() >= len).map_or(16, |sample| sample[23]);
    match *damage {
        Damage::Flip { at, bit } => {
            if let Some(byte) = bytes.get_mut(at % len) {
                *byte ^= 1 << bit;
            }
        }
        Damage::Truncate { len: keep } => bytes.truncate(keep % len),
        Damage::Point { at, cluster, flags, raw } => {
            // Tables begin at the second cluster and are dense at their beginning.
            let table = (1 + at as u64 % 8) * cluster_size;
            let at = (table + at as u64 / 8 % 12 * 8) as usize;
            let value = match flags & 4 {
                0 => (cluster * cluster_size) | (u64::from(flags & 3) << 62) | u64::from(flags >> 3 & 1),
                _ => raw,
            };
            if let Some(place) = bytes.get_mut(at..at + 8) {
                place.copy_from_slice(&value.to_be_bytes());
            }
        }
        Damage::Header { at, value } => {
            if let Some(place) = bytes.get_mut(at * 4..at * 4 + 4) {
                place.copy_from_slice(&value.to_be_bytes());
            }
        }
    }
}

fn cases() -> u32 {
    if std::env::var_os("VMWRIGHT_TORTURE").is_some() { 200_000 } else { 4000 }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_opens_is_whole_and_keeps_what_is_written(
        sample in 0usize..4, damage_list in proptest::collection::vec(damages(), 0..6),
    ) {
        let mut bytes = samples()[sample].clone();
        for one in &damage_list {
            damage(&mut bytes, one);
        }
        oracle::judge(bytes);
    }
}

#[test]
fn every_truncation_is_noticed_or_harmless() {
    let whole = &samples()[0];
    for len in (0..whole.len()).step_by(97) {
        oracle::judge(whole[..len].to_vec());
    }
}

/// Sets one number of an otherwise sound image, and answers what opening and using it says.
fn with_number(at: usize, value: u64) -> (ErrorKind, String) {
    use std::sync::Arc;
    use vmwright_disk::{Disk, MemDisk};
    use vmwright_image::{Format, FormatChoice, Image, OpenOptions};

    let mut bytes = samples()[0].clone();
    bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
    let file = Arc::new(MemDisk::from_bytes(bytes));
    let exact = FormatChoice::Exact(Format::Qcow2);
    let image = match Image::open(file, exact, OpenOptions::default()) {
        Ok(image) => image,
        Err(error) => return (error.kind(), error.to_string()),
    };
    let error = image.write_at(&[1; 512], 0).unwrap_err();
    (error.kind(), error.to_string())
}

#[test]
fn tables_in_wrong_places_are_corrupt_and_the_error_says_where() {
    let sample = &samples()[0];
    let number = |at: usize| u64::from_be_bytes(sample[at..at + 8].try_into().unwrap());
    let (l1, reftable) = (number(40) as usize, number(48) as usize);
    let copied = 1 << 63;
    for (at, value) in [
        (40, 0x201),
        (40, 1 << 40),
        (48, 0x333),
        (48, u64::MAX << 9),
        (l1, copied | 0x10000000),
        (l1, copied | l1 as u64),
        (l1, copied | reftable as u64),
        (l1, copied | (1 << 55)),
        (reftable, l1 as u64),
        (reftable, 0x7ffffffe00),
    ] {
        let (kind, text) = with_number(at, value);
        assert_eq!(kind, ErrorKind::Corrupt, "{at} {value:#x}: {text}");
        assert!(text.contains("0x"), "{text}");
    }
}

#[test]
fn snapshots_cannot_make_a_writer_note_more_tables_than_the_file_has_room_for() {
    use std::sync::Arc;
    use vmwright_disk::{Disk, MemDisk};
    use vmwright_image::{Format, FormatChoice, Image, OpenOptions};

    let mut bytes = samples()[0].clone();
    let table = bytes.len().next_multiple_of(512);
    bytes.resize(table, 0);
    let count = 1000u32;
    for index in 0..u64::from(count) {
        let mut entry = [0; 40];
        // Each L1 table is as long as may be, and far behind the end of the file.
        entry[..8].copy_from_slice(&((1 + index) << 32).to_be_bytes());
        entry[8..12].copy_from_slice(&(4u32 << 20).to_be_bytes());
        bytes.extend_from_slice(&entry);
    }
    bytes[60..64].copy_from_slice(&count.to_be_bytes());
    bytes[64..72].copy_from_slice(&(table as u64).to_be_bytes());
    let file = Arc::new(MemDisk::from_bytes(bytes));
    let image = Image::open(file, FormatChoice::Exact(Format::Qcow2), OpenOptions::default()).unwrap();
    let error = image.write_at(&[1; 512], 0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("the L1 table of a snapshot"), "{error}");
}

#[test]
fn a_change_of_nothing_leaves_every_byte_of_the_image() {
    use std::sync::Arc;
    use vmwright_disk::{Disk, MemDisk};
    use vmwright_image::{Format, FormatChoice, Image, OpenOptions};

    let mut bytes = samples()[0].clone();
    // An optional feature that the first change declares out of date.
    bytes[88] = 0x80;
    let file = Arc::new(MemDisk::from_bytes(bytes.clone()));
    let image =
        Image::open(file.clone(), FormatChoice::Exact(Format::Qcow2), OpenOptions::default()).unwrap();
    image.write_at(&[], 512).unwrap();
    image.zero_at(512, 0).unwrap();
    image.discard(512, 0).unwrap();
    image.flush().unwrap();
    assert!(file.to_bytes() == bytes);
    image.write_at(&[1], 512).unwrap();
    assert_eq!(file.to_bytes()[88], 0);
}

#[test]
fn bitmaps_cannot_have_one_table_read_many_times() {
    use std::sync::Arc;
    use vmwright_disk::MemDisk;
    use vmwright_image::{Format, FormatChoice, Image, OpenOptions};

    let mut bytes = samples()[0].clone();
    let directory = bytes.len().next_multiple_of(512);
    let count = 4u32;
    let table = directory + 512;
    bytes.resize(directory, 0);
    let table_len = (table + 65536) / 8 / 2;
    for index in 0..count as u8 {
        let mut entry = [0; 32];
        entry[..8].copy_from_slice(&(table as u64).to_be_bytes());
        entry[8..12].copy_from_slice(&(table_len as u32).to_be_bytes());
        (entry[16], entry[17], entry[19], entry[24]) = (1, 16, 1, b'a' + index);
        bytes.extend_from_slice(&entry);
    }
    bytes.resize(table + table_len * 8, 0);
    // Behind the header: where the directory is, and no other extension.
    let header_len = u32::from_be_bytes(bytes[100..104].try_into().unwrap()) as usize;
    let mut extension = [0; 40];
    extension[..4].copy_from_slice(&0x2385_2875u32.to_be_bytes());
    extension[4..8].copy_from_slice(&24u32.to_be_bytes());
    extension[8..12].copy_from_slice(&count.to_be_bytes());
    extension[16..24].copy_from_slice(&u64::from(count * 32).to_be_bytes());
    extension[24..32].copy_from_slice(&(directory as u64).to_be_bytes());
    bytes[header_len..header_len + 40].copy_from_slice(&extension);
    bytes[95] |= 1;
    let file = Arc::new(MemDisk::from_bytes(bytes));
    let image = Image::open(file, FormatChoice::Exact(Format::Qcow2), OpenOptions::default()).unwrap();
    let error = image.check().unwrap_err();
    assert!(error.to_string().contains("tables that all fit into the file"), "{error}");
}

#[test]
fn an_image_whose_refcount_table_has_no_clusters_is_repaired_or_refused() {
    // Version 2, clusters of 4 KiB, 300 KiB, and nothing but the header's beginning.
    let mut bytes = vec![0; 23_561];
    bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x02");
    bytes[20..24].copy_from_slice(&12u32.to_be_bytes());
    bytes[24..32].copy_from_slice(&307_200u64.to_be_bytes());
    oracle::judge(bytes);
}

#[test]
fn an_image_whose_l1_table_is_said_to_be_the_header_is_repaired_or_refused() {
    let mut bytes = samples()[0].clone();
    damage(&mut bytes, &Damage::Header { at: 11, value: 0 });
    damage(&mut bytes, &Damage::Truncate { len: 485_671_432_898_739_718 });
    oracle::judge(bytes);
}
