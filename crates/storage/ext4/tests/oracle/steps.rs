//! Everything that changes a volume, out of random words.

use std::sync::Arc;

use vmwright_disk::MemDisk;
use vmwright_ext4::resize::{Target, resize};
use vmwright_ext4::tune::{Changes, tune};
use vmwright_ext4::{CheckOptions, ErrorKind, Ext4, Options, check, resize};
use vmwright_vfs::conformance::Op;
use vmwright_vfs::{FileSystem, Result};

use super::samples::NOW;

/// Features that are set and cleared.
const FEATURES: [&str; 16] = [
    "metadata_csum",
    "^metadata_csum",
    "uninit_bg",
    "^uninit_bg",
    "has_journal",
    "^has_journal",
    "orphan_file",
    "^orphan_file",
    "^dir_index",
    "dir_index",
    "^resize_inode",
    "metadata_csum_seed",
    "^huge_file",
    "sparse_super",
    "^flex_bg",
    "large_dir",
];

/// Changes a volume for as long as it can be opened; answers the first thing that was said to be corrupt.
pub(crate) fn apply(disk: &Arc<MemDisk>, words: &[[u32; 4]]) -> Option<String> {
    let mut corrupt = None;
    let mut volume: Option<Ext4> = None;
    for &[what, first, second, third] in words {
        let outcome = if what % 41 < 4 {
            if let Some(mut volume) = volume.take() {
                note(&mut corrupt, "sync", volume.sync());
            }
            whole(disk, what % 41, first, second)
        } else {
            if volume.is_none() {
                match Ext4::open(disk.clone(), Options::writable()) {
                    Ok(opened) => volume = Some(opened),
                    Err(error) => {
                        note(&mut corrupt, "open", Err::<(), _>(error.into()));
                        return corrupt;
                    }
                }
            }
            let Some(volume) = volume.as_mut() else { return corrupt };
            volume.set_now(NOW);
            if what % 41 < 8 {
                ranges(volume, first, second, third)
            } else {
                let op = Op::from_words([what, first, second, third], 100_000);
                if op.apply(volume) == Err(ErrorKind::Corrupt) && corrupt.is_none() {
                    corrupt = Some(format!("{op:.200?}"));
                }
                Ok(())
            }
        };
        note(&mut corrupt, "changing", outcome);
    }
    if let Some(mut volume) = volume {
        note(&mut corrupt, "sync", volume.sync());
    }
    corrupt
}

fn note<T>(corrupt: &mut Option<String>, action: &str, outcome: Result<T>) {
    if let Err(error) = outcome
        && error.kind() == ErrorKind::Corrupt
        && corrupt.is_none()
    {
        super::assert_named(&error);
        *corrupt = Some(format!("{action}: {error}"));
    }
}

/// Changes a volume as a whole.
fn whole(disk: &Arc<MemDisk>, what: u32, first: u32, second: u32) -> Result<()> {
    match what {
        0 => {
            let to = match first % 3 {
                0 => Target::Minimum,
                1 => Target::Disk,
                _ => Target::Bytes(u64::from(second) % (6 << 20)),
            };
            resize(disk.clone(), to, &resize::Options { now: Some(NOW), ..Default::default() })?;
        }
        1 => {
            let feature = FEATURES[first as usize % FEATURES.len()];
            let changes =
                Changes { features: vec![feature.to_owned()], now: Some(NOW), ..Changes::default() };
            tune(disk.clone(), &changes)?;
        }
        2 => {
            let uuid = uuid::Uuid::from_u128(u128::from(second) << 64 | u128::from(first) | 1);
            let inode_size = first.is_multiple_of(4).then_some(512);
            let uuid = (first % 2 == 1).then_some(uuid);
            let changes = Changes {
                uuid,
                inode_size,
                label: Some(b"other".to_vec()),
                now: Some(NOW),
                ..Changes::default()
            };
            tune(disk.clone(), &changes)?;
        }
        _ => drop(check(disk.clone(), &CheckOptions { repair: true, ..CheckOptions::default() })?),
    }
    Ok(())
}

/// Moves the content of a file.
fn ranges(volume: &mut Ext4, first: u32, second: u32, third: u32) -> Result<()> {
    let names = ["holes", "far", "small", "name-7", "name-8", "name-9", "a", "name-1"];
    let inode = volume.lookup(volume.root(), names[first as usize % names.len()].as_bytes())?;
    let unit = if third & 1 == 0 { 1024 } else { 16_384 };
    let (offset, len) = (u64::from(second % 64) * unit, u64::from(1 + (second >> 8) % 16) * unit);
    match third >> 1 & 1 {
        0 => volume.collapse_range(inode, offset, len)?,
        _ => volume.insert_range(inode, offset, len)?,
    }
    Ok(())
}
