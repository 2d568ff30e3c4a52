//! The feature bits of the superblock, and what each means for reading and writing here.

use crate::Error;
use crate::error::FeatureNames;

/// Bits of `s_feature_compat`.
pub(crate) mod compat {
    pub(crate) const IMAGIC_INODES: u32 = 0x2;
    pub(crate) const HAS_JOURNAL: u32 = 0x4;
    pub(crate) const EXT_ATTR: u32 = 0x8;
    pub(crate) const RESIZE_INODE: u32 = 0x10;
    pub(crate) const DIR_INDEX: u32 = 0x20;
    pub(crate) const SPARSE_SUPER2: u32 = 0x200;
    pub(crate) const FAST_COMMIT: u32 = 0x400;
    pub(crate) const STABLE_INODES: u32 = 0x800;
    pub(crate) const ORPHAN_FILE: u32 = 0x1000;
}

/// Bits of `s_feature_incompat`.
pub(crate) mod incompat {
    pub(crate) const FILETYPE: u32 = 0x2;
    pub(crate) const RECOVER: u32 = 0x4;
    pub(crate) const JOURNAL_DEV: u32 = 0x8;
    pub(crate) const META_BG: u32 = 0x10;
    pub(crate) const EXTENTS: u32 = 0x40;
    pub(crate) const BIT64: u32 = 0x80;
    pub(crate) const MMP: u32 = 0x100;
    pub(crate) const FLEX_BG: u32 = 0x200;
    pub(crate) const EA_INODE: u32 = 0x400;
    pub(crate) const CSUM_SEED: u32 = 0x2000;
    pub(crate) const LARGEDIR: u32 = 0x4000;
    pub(crate) const INLINE_DATA: u32 = 0x8000;
    pub(crate) const ENCRYPT: u32 = 0x1_0000;
    pub(crate) const CASEFOLD: u32 = 0x2_0000;
}

/// Bits of `s_feature_ro_compat`.
pub(crate) mod ro_compat {
    pub(crate) const SPARSE_SUPER: u32 = 0x1;
    pub(crate) const LARGE_FILE: u32 = 0x2;
    pub(crate) const HUGE_FILE: u32 = 0x8;
    pub(crate) const GDT_CSUM: u32 = 0x10;
    pub(crate) const DIR_NLINK: u32 = 0x20;
    pub(crate) const EXTRA_ISIZE: u32 = 0x40;
    pub(crate) const QUOTA: u32 = 0x100;
    pub(crate) const BIGALLOC: u32 = 0x200;
    pub(crate) const METADATA_CSUM: u32 = 0x400;
    pub(crate) const PROJECT: u32 = 0x2000;
    pub(crate) const SHARED_BLOCKS: u32 = 0x4000;
    pub(crate) const VERITY: u32 = 0x8000;
    pub(crate) const ORPHAN_PRESENT: u32 = 0x1_0000;
}

const COMPAT_NAMES: &[(u32, &str)] = &[
    (0x1, "dir_prealloc"),
    (compat::IMAGIC_INODES, "imagic_inodes"),
    (compat::HAS_JOURNAL, "has_journal"),
    (compat::EXT_ATTR, "ext_attr"),
    (compat::RESIZE_INODE, "resize_inode"),
    (compat::DIR_INDEX, "dir_index"),
    (compat::SPARSE_SUPER2, "sparse_super2"),
    (compat::FAST_COMMIT, "fast_commit"),
    (compat::STABLE_INODES, "stable_inodes"),
    (compat::ORPHAN_FILE, "orphan_file"),
];

const INCOMPAT_NAMES: &[(u32, &str)] = &[
    (0x1, "compression"),
    (incompat::FILETYPE, "filetype"),
    (incompat::RECOVER, "needs_recovery"),
    (incompat::JOURNAL_DEV, "journal_dev"),
    (incompat::META_BG, "meta_bg"),
    (incompat::EXTENTS, "extent"),
    (incompat::BIT64, "64bit"),
    (incompat::MMP, "mmp"),
    (incompat::FLEX_BG, "flex_bg"),
    (incompat::EA_INODE, "ea_inode"),
    (0x1000, "dirdata"),
    (incompat::CSUM_SEED, "metadata_csum_seed"),
    (incompat::LARGEDIR, "large_dir"),
    (incompat::INLINE_DATA, "inline_data"),
    (incompat::ENCRYPT, "encrypt"),
    (incompat::CASEFOLD, "casefold"),
];

const RO_COMPAT_NAMES: &[(u32, &str)] = &[
    (ro_compat::SPARSE_SUPER, "sparse_super"),
    (ro_compat::LARGE_FILE, "large_file"),
    (0x4, "btree_dir"),
    (ro_compat::HUGE_FILE, "huge_file"),
    (ro_compat::GDT_CSUM, "uninit_bg"),
    (ro_compat::DIR_NLINK, "dir_nlink"),
    (ro_compat::EXTRA_ISIZE, "extra_isize"),
    (0x80, "snapshot"),
    (ro_compat::QUOTA, "quota"),
    (ro_compat::BIGALLOC, "bigalloc"),
    (ro_compat::METADATA_CSUM, "metadata_csum"),
    (0x800, "replica"),
    (0x1000, "read-only"),
    (ro_compat::PROJECT, "project"),
    (ro_compat::SHARED_BLOCKS, "shared_blocks"),
    (ro_compat::VERITY, "verity"),
    (ro_compat::ORPHAN_PRESENT, "orphan_present"),
];

/// Incompatible features whose volumes can be read.
const READABLE: u32 = incompat::FILETYPE
    | incompat::RECOVER
    | incompat::META_BG
    | incompat::EXTENTS
    | incompat::BIT64
    | incompat::MMP
    | incompat::FLEX_BG
    | incompat::EA_INODE
    | incompat::CSUM_SEED
    | incompat::LARGEDIR
    | incompat::INLINE_DATA
    | incompat::ENCRYPT
    | incompat::CASEFOLD;

/// Incompatible features whose volumes can be written too.
const WRITABLE: u32 = READABLE;

/// Read-only compatible features whose volumes can be written; `bigalloc` allocates in clusters.
const WRITABLE_RO: u32 = ro_compat::SPARSE_SUPER
    | ro_compat::LARGE_FILE
    | ro_compat::HUGE_FILE
    | ro_compat::GDT_CSUM
    | ro_compat::DIR_NLINK
    | ro_compat::EXTRA_ISIZE
    | ro_compat::QUOTA
    | ro_compat::BIGALLOC
    | ro_compat::METADATA_CSUM
    | ro_compat::PROJECT
    | ro_compat::VERITY
    | ro_compat::ORPHAN_PRESENT;

/// Read-only compatible features that were never finished: trees of directories, snapshots, replicas.
const UNCHECKED_RO: u32 = 0x4 | 0x80 | 0x800;

/// The features a volume uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Features {
    pub(crate) compat: u32,
    pub(crate) incompat: u32,
    pub(crate) ro_compat: u32,
}

impl Features {
    pub(crate) fn has_compat(&self, bit: u32) -> bool {
        self.compat & bit != 0
    }

    pub(crate) fn has_incompat(&self, bit: u32) -> bool {
        self.incompat & bit != 0
    }

    pub(crate) fn has_ro_compat(&self, bit: u32) -> bool {
        self.ro_compat & bit != 0
    }

    /// These features and others.
    pub(crate) fn with(&self, other: &Self) -> Self {
        Self {
            compat: self.compat | other.compat,
            incompat: self.incompat | other.incompat,
            ro_compat: self.ro_compat | other.ro_compat,
        }
    }

    /// These features short of others.
    pub(crate) fn without(&self, other: &Self) -> Self {
        Self {
            compat: self.compat & !other.compat,
            incompat: self.incompat & !other.incompat,
            ro_compat: self.ro_compat & !other.ro_compat,
        }
    }

    /// Whether all of others are among these.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        other.without(self) == Self::default()
    }

    /// Whether metadata carries CRC-32C checksums.
    pub(crate) fn metadata_csum(&self) -> bool {
        self.has_ro_compat(ro_compat::METADATA_CSUM)
    }

    /// Whether group descriptors carry a checksum, which makes their uninit flags trustworthy.
    pub(crate) fn group_csum(&self) -> bool {
        self.has_ro_compat(ro_compat::METADATA_CSUM | ro_compat::GDT_CSUM)
    }

    /// Refuses features that make a volume unreadable here.
    pub(crate) fn check_readable(&self) -> Result<(), Error> {
        if self.has_incompat(incompat::JOURNAL_DEV) {
            let what = "this is the journal of filesystems on other devices, not a filesystem (journal_dev)";
            return Err(Error::unsupported(what));
        }
        let names = names(self.incompat & !READABLE, INCOMPAT_NAMES);
        match names {
            Some(names) => Err(Error::features("features", "cannot be read here", names)),
            None => Ok(()),
        }
    }

    /// Refuses features that nobody can check: bits without a name, and names without a meaning any more.
    pub(crate) fn check_known(&self) -> Result<(), Error> {
        let refuse = |names| Err(Error::features("features", "cannot be checked here", names));
        let named = |table: &[(u32, &str)]| table.iter().fold(0, |bits, (bit, _)| bits | bit);
        if let Some(names) = names(self.compat & !named(COMPAT_NAMES), COMPAT_NAMES) {
            return refuse(names);
        }
        match names(self.ro_compat & (UNCHECKED_RO | !named(RO_COMPAT_NAMES)), RO_COMPAT_NAMES) {
            Some(names) => refuse(names),
            None => Ok(()),
        }
    }

    /// Refuses features that make a volume unsafe to write here.
    pub(crate) fn check_writable(&self) -> Result<(), Error> {
        let refuse = |names| Err(Error::features("features", "can only be read here", names));
        if let Some(names) = names(self.incompat & !WRITABLE, INCOMPAT_NAMES) {
            return refuse(names);
        }
        match names(self.ro_compat & !WRITABLE_RO, RO_COMPAT_NAMES) {
            Some(names) => refuse(names),
            None => Ok(()),
        }
    }

    /// The name the field uses for a volume with these features.
    pub(crate) fn generation(&self) -> &'static str {
        let ext3_incompat = incompat::FILETYPE | incompat::RECOVER | incompat::META_BG;
        let ext3_ro_compat = ro_compat::SPARSE_SUPER | ro_compat::LARGE_FILE;
        if self.incompat & !ext3_incompat != 0 || self.ro_compat & !ext3_ro_compat != 0 {
            "ext4"
        } else if self.has_compat(compat::HAS_JOURNAL) {
            "ext3"
        } else {
            "ext2"
        }
    }

    /// The names of these features, for an error.
    pub(crate) fn name_list(&self) -> FeatureNames {
        FeatureNames { known: self.names(), unknown: 0 }
    }

    /// The names of all features, for messages and listings.
    pub(crate) fn names(&self) -> Vec<&'static str> {
        let pairs =
            [(self.compat, COMPAT_NAMES), (self.incompat, INCOMPAT_NAMES), (self.ro_compat, RO_COMPAT_NAMES)];
        let known = pairs.into_iter().filter_map(|(bits, table)| names(bits, table));
        known.flat_map(|names| names.known).collect()
    }
}

/// The feature of a name, as mke2fs spells it.
pub(crate) fn named(name: &str) -> Option<Features> {
    let find = |table: &[(u32, &str)]| table.iter().find(|(_, known)| *known == name).map(|(bit, _)| *bit);
    let (compat, incompat) = (find(COMPAT_NAMES), find(INCOMPAT_NAMES));
    let ro_compat = find(RO_COMPAT_NAMES);
    let found = compat.or(incompat).or(ro_compat).is_some();
    let bits = |found: Option<u32>| found.unwrap_or(0);
    found.then(|| Features { compat: bits(compat), incompat: bits(incompat), ro_compat: bits(ro_compat) })
}

/// Names `bits`, or nothing where there are none.
fn names(bits: u32, table: &[(u32, &'static str)]) -> Option<FeatureNames> {
    let known = table.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| *name).collect();
    let unknown = table.iter().fold(bits, |rest, (bit, _)| rest & !bit);
    (bits != 0).then_some(FeatureNames { known, unknown })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_feature_is_a_row_of_the_table_in_the_docs() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../docs/formats/ext4.md");
        let page = std::fs::read_to_string(path).unwrap();
        for (bit, name) in [COMPAT_NAMES, INCOMPAT_NAMES, RO_COMPAT_NAMES].concat() {
            let rows: Vec<_> = page
                .lines()
                .filter(|line| line.starts_with(&format!("| `{name}` |")) && line.matches(" | ").count() == 2)
                .collect();
            let [row] = rows[..] else { panic!("{name} ({bit:#x}) has {} rows", rows.len()) };
            let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
            assert!(cells.len() == 3 && cells.iter().all(|cell| !cell.is_empty()), "{row}");
            let features = named(name).unwrap();
            assert_eq!(features.check_readable().is_err(), cells[1].starts_with("refused"), "{row}");
            let refused = features.check_readable().is_err() || features.check_writable().is_err();
            assert_eq!(refused, cells[2].starts_with("refused"), "{row}");
        }
    }

    #[test]
    fn a_journal_is_called_what_it_is() {
        let features = Features { incompat: incompat::JOURNAL_DEV, ..Features::default() };
        let error = features.check_readable().unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Unsupported);
        assert!(error.to_string().contains("journal of filesystems"), "{error}");
    }

    #[test]
    fn a_refusal_names_known_and_unknown_bits() {
        let features = Features { incompat: 0x1 | 0x8000_0000, ..Features::default() };
        let message = features.check_readable().unwrap_err().to_string();
        assert!(message.contains("compression, unknown bits 0x80000000"), "{message}");
        let features = Features { ro_compat: 0x4000, ..Features::default() };
        features.check_readable().unwrap();
        assert!(features.check_writable().unwrap_err().to_string().contains("shared_blocks"));
    }
}
