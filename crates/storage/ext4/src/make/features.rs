//! Which features a new volume has.

use super::options::{Generation, MakeOptions};
use crate::error::{Error, Result};
use crate::features::{self, Features, compat, incompat, ro_compat};

/// Features that a new volume can be given.
const KNOWN: Features = Features {
    compat: compat::HAS_JOURNAL
        | compat::EXT_ATTR
        | compat::RESIZE_INODE
        | compat::DIR_INDEX
        | compat::SPARSE_SUPER2
        | compat::FAST_COMMIT
        | compat::STABLE_INODES
        | compat::ORPHAN_FILE,
    incompat: incompat::FILETYPE
        | incompat::JOURNAL_DEV
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
        | incompat::CASEFOLD,
    ro_compat: ro_compat::SPARSE_SUPER
        | ro_compat::LARGE_FILE
        | ro_compat::HUGE_FILE
        | ro_compat::GDT_CSUM
        | ro_compat::DIR_NLINK
        | ro_compat::EXTRA_ISIZE
        | ro_compat::QUOTA
        | ro_compat::BIGALLOC
        | ro_compat::METADATA_CSUM
        | ro_compat::PROJECT
        | ro_compat::VERITY,
};

/// What every generation has.
const BASE: Features = Features {
    compat: compat::RESIZE_INODE | compat::DIR_INDEX | compat::EXT_ATTR,
    incompat: incompat::FILETYPE,
    ro_compat: ro_compat::SPARSE_SUPER | ro_compat::LARGE_FILE,
};

/// What ext4 has beyond that and the journal.
const EXT4: Features = Features {
    compat: compat::ORPHAN_FILE,
    incompat: incompat::EXTENTS | incompat::FLEX_BG | incompat::BIT64 | incompat::CSUM_SEED,
    ro_compat: ro_compat::HUGE_FILE
        | ro_compat::METADATA_CSUM
        | ro_compat::DIR_NLINK
        | ro_compat::EXTRA_ISIZE,
};

/// Other names for features, with those that are used here.
const ALIASES: [(&str, &str); 5] = [
    ("extents", "extent"),
    ("uninit_groups", "uninit_bg"),
    ("fname_encoding", "casefold"),
    ("largedir", "large_dir"),
    ("resize", "resize_inode"),
];

/// Changes to a generation's features, as `mke2fs -O` spells them: names separated by commas, those to be taken
/// away after `^` or `-`; `none` takes all away.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FeatureEdits {
    edits: Vec<Edit>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Edit {
    None,
    Set(Features),
    Clear(Features),
}

impl FeatureEdits {
    /// Adds edits behind those that there are.
    ///
    /// # Errors
    ///
    /// Kind `InvalidInput` for a name that no feature has, or one that cannot be chosen.
    pub fn add(&mut self, text: &str) -> Result<()> {
        let separator = |c: char| c == ',' || c.is_ascii_whitespace();
        let mut added = Vec::new();
        for word in text.split(separator).filter(|word| !word.is_empty()) {
            let (name, clear) = match word.strip_prefix(['^', '-']) {
                Some(name) => (name, true),
                None => (word.strip_prefix('+').unwrap_or(word), false),
            };
            if name == "none" && !clear {
                added.push(Edit::None);
                continue;
            }
            let alias = ALIASES.iter().find(|(alias, _)| *alias == name);
            let bit = features::named(alias.map_or(name, |(_, real)| real));
            let bit = bit.filter(|bit| KNOWN.covers(bit));
            let bit = bit.ok_or_else(|| Error::bad_value("features", name, "the name of a feature"))?;
            added.push(if clear { Edit::Clear(bit) } else { Edit::Set(bit) });
        }
        self.edits.extend(added);
        Ok(())
    }

    fn asks_for(&self, bit: Features) -> bool {
        self.edits.contains(&Edit::Set(bit))
    }

    fn apply(&self, features: Features) -> Features {
        self.edits.iter().fold(features, |features, edit| match edit {
            Edit::None => Features::default(),
            Edit::Set(bit) => features.with(bit),
            Edit::Clear(bit) => features.without(bit),
        })
    }
}

/// The features that options ask for, in so far as they do not depend on the volume's length.
pub(super) fn resolve(options: &MakeOptions) -> Result<Features> {
    let mut defaults = BASE;
    if options.generation != Generation::Ext2 {
        defaults.compat |= compat::HAS_JOURNAL;
    }
    if options.generation == Generation::Ext4 {
        defaults = defaults.with(&EXT4);
    }
    if options.creator_os == super::HURD {
        defaults.incompat &= !(incompat::FILETYPE | incompat::EA_INODE | incompat::CASEFOLD);
        defaults.ro_compat &= !(ro_compat::HUGE_FILE | ro_compat::METADATA_CSUM);
    }
    let mut features = options.features.apply(defaults);
    // What comes by default goes silently with what it needs; what was asked for is refused further down.
    let orphans = Features { compat: compat::ORPHAN_FILE, ..Features::default() };
    if !options.features.asks_for(orphans) && !features.has_compat(compat::HAS_JOURNAL) {
        features.compat &= !compat::ORPHAN_FILE;
    }
    let seed = Features { incompat: incompat::CSUM_SEED, ..Features::default() };
    if !options.features.asks_for(seed) && !features.metadata_csum() {
        features.incompat &= !incompat::CSUM_SEED;
    }
    if features.has_incompat(incompat::JOURNAL_DEV) {
        let ro_compat = features.ro_compat & ro_compat::METADATA_CSUM;
        return Ok(Features { compat: 0, incompat: incompat::JOURNAL_DEV, ro_compat });
    }
    if options.quota.project && features.has_ro_compat(ro_compat::QUOTA) {
        features.ro_compat |= ro_compat::PROJECT;
    }
    if features.metadata_csum() {
        features.ro_compat &= !ro_compat::GDT_CSUM;
    }
    if options.resize_limit.is_some() {
        features.compat |= compat::RESIZE_INODE;
    }
    if options.journal_size.is_some() || matches!(options.journal, super::JournalPlace::Device(_)) {
        features.compat |= compat::HAS_JOURNAL;
    }
    check(&features, options)?;
    Ok(features)
}

/// Refuses features that cannot be together.
fn check(features: &Features, options: &MakeOptions) -> Result<()> {
    let extents = features.has_incompat(incompat::EXTENTS);
    let resize = features.has_compat(compat::RESIZE_INODE);
    let journal = features.has_compat(compat::HAS_JOURNAL);
    let hurd = options.creator_os == super::HURD;
    let rules = [
        (features.has_incompat(incompat::BIT64) && !extents, "64bit needs the feature extent"),
        (features.has_ro_compat(ro_compat::VERITY) && !extents, "verity needs the feature extent"),
        (features.has_ro_compat(ro_compat::BIGALLOC) && !extents, "bigalloc needs the feature extent"),
        (features.has_incompat(incompat::META_BG) && resize, "meta_bg and resize_inode exclude each other"),
        (
            resize && !features.has_ro_compat(ro_compat::SPARSE_SUPER),
            "resize_inode needs the feature sparse_super",
        ),
        (
            features.has_incompat(incompat::CSUM_SEED) && !features.metadata_csum(),
            "metadata_csum_seed needs the feature metadata_csum",
        ),
        (features.has_compat(compat::ORPHAN_FILE) && !journal, "orphan_file needs the feature has_journal"),
        (features.has_compat(compat::FAST_COMMIT) && !journal, "fast_commit needs the feature has_journal"),
        (hurd && features.has_incompat(incompat::FILETYPE), "the Hurd does not know the feature filetype"),
        (
            hurd && features.has_ro_compat(ro_compat::HUGE_FILE),
            "the Hurd does not know the feature huge_file",
        ),
        (hurd && features.metadata_csum(), "the Hurd does not know the feature metadata_csum"),
        (hurd && features.has_incompat(incompat::EA_INODE), "the Hurd does not know the feature ea_inode"),
    ];
    match rules.into_iter().find(|(broken, _)| *broken) {
        Some((_, why)) => Err(Error::bad_option("features", why)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(edits: &str) -> Result<Vec<&'static str>> {
        let mut options = MakeOptions::default();
        options.features.add(edits)?;
        Ok(resolve(&options)?.names())
    }

    #[test]
    fn what_comes_by_default_goes_with_what_it_needs() {
        let all = names("").unwrap();
        assert!(["orphan_file", "metadata_csum_seed"].iter().all(|name| all.contains(name)));
        assert!(!names("^has_journal").unwrap().contains(&"orphan_file"));
        assert!(!names("^metadata_csum").unwrap().contains(&"metadata_csum_seed"));
    }

    #[test]
    fn edits_count_in_their_order() {
        assert_eq!(names("none,sparse_super,^sparse_super,filetype").unwrap(), ["filetype"]);
        assert!(names("-dir_index extents").unwrap().contains(&"extent"));
    }

    #[test]
    fn what_cannot_be_together_is_refused_by_name() {
        for (edits, word) in [
            ("^extent", "64bit"),
            ("meta_bg", "resize_inode"),
            ("none,resize_inode", "sparse_super"),
            ("none,orphan_file", "has_journal"),
            ("^64bit,^extent,bigalloc", "bigalloc"),
            ("needs_recovery", "needs_recovery"),
            ("flux", "flux"),
        ] {
            let error = names(edits).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::InvalidInput, "{edits}");
            assert!(error.to_string().contains(word), "{edits}: {error}");
        }
    }
}
