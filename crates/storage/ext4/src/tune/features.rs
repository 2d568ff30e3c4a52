//! Which features are to be there, and whether that is possible.

use super::fields::edit;
use crate::error::{Error, ErrorKind, Result};
use crate::features::{self, Features, compat, incompat, ro_compat};

/// `s_feature_ro_compat`: the volume is not to be written.
const READ_ONLY: u32 = 0x1000;

/// What can be set.
const SETTABLE: Features = Features {
    compat: compat::HAS_JOURNAL
        | compat::DIR_INDEX
        | compat::FAST_COMMIT
        | compat::STABLE_INODES
        | compat::ORPHAN_FILE,
    incompat: incompat::EXTENTS
        | incompat::FLEX_BG
        | incompat::EA_INODE
        | incompat::CSUM_SEED
        | incompat::LARGEDIR
        | incompat::MMP
        | incompat::CASEFOLD,
    ro_compat: ro_compat::LARGE_FILE
        | ro_compat::HUGE_FILE
        | ro_compat::DIR_NLINK
        | ro_compat::EXTRA_ISIZE
        | ro_compat::GDT_CSUM
        | ro_compat::SPARSE_SUPER
        | ro_compat::METADATA_CSUM
        | ro_compat::VERITY
        | READ_ONLY,
};

/// What can be cleared.
const CLEARABLE: Features = Features {
    compat: compat::HAS_JOURNAL
        | compat::RESIZE_INODE
        | compat::DIR_INDEX
        | compat::FAST_COMMIT
        | compat::ORPHAN_FILE,
    incompat: incompat::FLEX_BG | incompat::CSUM_SEED | incompat::MMP | incompat::CASEFOLD,
    ro_compat: ro_compat::LARGE_FILE
        | ro_compat::HUGE_FILE
        | ro_compat::DIR_NLINK
        | ro_compat::EXTRA_ISIZE
        | ro_compat::GDT_CSUM
        | ro_compat::METADATA_CSUM
        | READ_ONLY,
};

/// What the edits make of the present features.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) on: Features,
    pub(super) off: Features,
    pub(super) all: Features,
}

/// Reads edits such as `^has_journal`.
pub(super) fn wanted(present: Features, edits: &[String]) -> Result<Wanted> {
    let invalid = |detail| Error::plain(ErrorKind::InvalidInput, detail);
    let mut all = present;
    for text in edits {
        let (set, name) = edit(text);
        let name = if name == "extents" { "extent" } else { name };
        let bit = features::named(name).ok_or_else(|| invalid("a feature is unknown"))?;
        let changes = if set { !present.covers(&bit) } else { present.covers(&bit) };
        let possible = if set { SETTABLE } else { CLEARABLE };
        if changes && !possible.covers(&bit) {
            let what = match set {
                true => "cannot be set in a volume that is there",
                false => "cannot be cleared",
            };
            return Err(Error::features("features", what, bit.name_list()));
        }
        all = if set { all.with(&bit) } else { all.without(&bit) };
    }
    // One sort of checksum supersedes the other; without it the other still guards the descriptors.
    if all.metadata_csum() {
        all.ro_compat &= !ro_compat::GDT_CSUM;
    } else if present.metadata_csum() && !edits.iter().any(|text| text == "^uninit_bg") {
        all.ro_compat |= ro_compat::GDT_CSUM;
    }
    let asked = edits.iter().any(|text| text == "metadata_csum_seed");
    if !all.metadata_csum() && present.metadata_csum() && !asked {
        all.incompat &= !incompat::CSUM_SEED;
    }
    let wanted = Wanted { on: all.without(&present), off: present.without(&all), all };
    check(&wanted)?;
    Ok(wanted)
}

fn check(wanted: &Wanted) -> Result<()> {
    let Wanted { on, off, all } = wanted;
    let refuse = |detail| Err(Error::unsupported(detail));
    if all.has_compat(compat::ORPHAN_FILE) && !all.has_compat(compat::HAS_JOURNAL) {
        return refuse("an orphan file without a journal");
    }
    if on.has_incompat(incompat::CSUM_SEED) && !all.metadata_csum() {
        return refuse("metadata_csum_seed without metadata_csum");
    }
    if on.has_ro_compat(ro_compat::SPARSE_SUPER) && all.has_incompat(incompat::META_BG) {
        return refuse("setting sparse_super with meta_bg");
    }
    if on.has_ro_compat(ro_compat::VERITY) && !all.has_incompat(incompat::EXTENTS) {
        return refuse("verity without extent");
    }
    let seed = off.has_incompat(incompat::CSUM_SEED);
    if seed && all.has_incompat(incompat::EA_INODE) {
        return refuse("another seed where values of attributes depend on it (ea_inode)");
    }
    Ok(())
}
