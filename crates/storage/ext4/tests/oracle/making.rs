//! Options for new volumes out of random words, and what must hold for each.

use std::sync::Arc;

use vmwright_disk::MemDisk;
use vmwright_ext4::ErrorKind;
use vmwright_ext4::make::{FeatureEdits, Generation, MakeOptions, QuotaTypes, Usage, make};

use super::judge::Judge;
use super::samples::NOW;

/// Features that can be chosen, set or cleared.
#[rustfmt::skip]
const FEATURES: [&str; 27] = [
    "has_journal", "ext_attr", "resize_inode", "dir_index", "sparse_super2", "fast_commit", "stable_inodes",
    "orphan_file", "filetype", "meta_bg", "extent", "64bit", "mmp", "flex_bg", "ea_inode", "large_dir",
    "inline_data", "encrypt", "casefold", "sparse_super", "large_file", "huge_file", "uninit_bg", "quota",
    "bigalloc", "metadata_csum", "metadata_csum_seed",
];

/// Options of all sorts, for a disk of a length.
pub(crate) fn options(words: [u32; 8]) -> (MakeOptions, usize) {
    let [features, cleared, sizes, more, numbers, limits, rest, len] = words;
    let mut edits = FeatureEdits::default();
    for (number, name) in FEATURES.iter().enumerate() {
        // Few at a time, or they always exclude one another.
        let chosen = features >> number & 1 == 1 && features.rotate_left(9) >> number & 7 == 7;
        if chosen {
            let sign = if cleared >> number & 1 == 1 { "^" } else { "" };
            edits.add(&format!("{sign}{name}")).unwrap();
        }
    }
    let one_of = |word: u32, share: u32, value: u32| word.is_multiple_of(share).then_some(value);
    let options = MakeOptions {
        generation: [Generation::Ext4, Generation::Ext2, Generation::Ext3, Generation::Ext4]
            [cleared as usize >> 30],
        usage: [None, Some(Usage::Small), Some(Usage::News), Some(Usage::Hurd)][features as usize >> 30],
        features: edits,
        block_size: one_of(sizes, 2, if sizes & 0x1f0 == 0 { sizes } else { 1024 << (sizes >> 8 & 7) }),
        cluster_size: one_of(sizes >> 11, 13, 1024 << (sizes >> 16 & 15)),
        inode_size: one_of(
            sizes >> 20,
            2,
            if sizes >> 22 & 63 == 0 { sizes & 0xffff } else { 128 << (sizes >> 26 & 7) },
        )
        .map(|size| size as u16),
        blocks_per_group: one_of(more, 11, if more & 64 == 0 { 256 << (more >> 8 & 7) } else { more >> 8 }),
        flex_groups: one_of(more >> 3, 9, if more & 128 == 0 { 1 << (more >> 12 & 7) } else { more >> 12 }),
        descriptor_size: one_of(more >> 5, 9, 32 << (more >> 20 & 7)).map(|size| size as u16),
        inodes: one_of(numbers, 5, if numbers & 32 == 0 { numbers >> 8 } else { numbers >> 20 }),
        inode_ratio: one_of(numbers >> 3, 13, numbers >> 9),
        journal_size: one_of(limits, 13, limits >> 10).map(u64::from),
        fast_commit_size: one_of(limits >> 2, 17, limits >> 12).map(u64::from),
        resize_limit: one_of(limits >> 4, 13, limits).map(|limit| u64::from(limit) << 8),
        orphan_file_size: one_of(rest, 17, rest >> 12).map(u64::from),
        backups: ((rest >> 3 & 3).min(2)) as u8,
        reserved_percent: f64::from(rest >> 5 & 51),
        packed_meta_blocks: rest >> 11 & 7 == 0,
        quota: QuotaTypes { user: rest & 1 == 0, group: rest & 2 == 0, project: rest >> 14 & 7 == 0 },
        lazy_inode_tables: rest >> 17 & 1 == 0,
        lazy_journal: rest >> 18 & 1 == 0,
        root_selinux: (rest >> 19 & 7 == 0).then(|| b"system_u:object_r:root_t:s0".to_vec()),
        stride: rest >> 22 & 15,
        now: NOW,
        uuid: uuid::Uuid::from_bytes([7; 16]),
        hash_seed: uuid::Uuid::from_bytes([9; 16]),
        ..MakeOptions::default()
    };
    (options, len as usize % (if len & 7 > 0 { 24 << 20 } else { 1 << 20 }))
}

/// A volume is refused with the disk as it was, or is sound to the last bit.
pub(crate) fn hold(words: [u32; 8], judge: Option<&Judge>) -> bool {
    let (options, len) = options(words);
    // What was on the disk is not to be mistaken for anything.
    let before = vec![0xa5; len];
    let disk = Arc::new(MemDisk::from_bytes(before.clone()));
    if let Err(error) = make(disk.clone(), &options) {
        let expected = [ErrorKind::InvalidInput, ErrorKind::NoSpace, ErrorKind::Unsupported];
        assert!(expected.contains(&error.kind()), "{:?}: {error}; {options:#?}", error.kind());
        assert!(disk.to_bytes() == before, "refused ({error}), but something was written; {options:#?}");
        return false;
    }
    let made = disk.to_bytes();
    let report = super::report(&made).unwrap();
    assert!(report.clean && report.total == 0, "{:#?}; {options:#?} on {len}", report.findings);
    let walked = super::walk(&made);
    assert!(walked.is_ok(), "{walked:?}; {options:#?} on {len}");
    if let Some(judge) = judge {
        let verdict = judge.verdict(&made);
        assert!(verdict.clean, "{}; {options:#?} on {len}", verdict.text);
    }
    true
}
