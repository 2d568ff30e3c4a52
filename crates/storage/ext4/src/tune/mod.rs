//! Changing what a volume is called, which features it has, and how kernels treat it.

mod changes;
mod fields;

use std::sync::Arc;

use vmwright_disk::Disk;

pub use changes::{Changes, HashAlgorithm, OnErrors, Reserved, Tuned};

use crate::checksum::crc32c;
use crate::error::{Error, Result};
use crate::features::incompat;
use crate::reseal;
use crate::resize;
use crate::volume::{Ext4, Options};

/// Changes a volume.
///
/// A journal with changes is replayed first. All changes are checked before the first one is made.
///
/// # Errors
///
/// Kind `InvalidInput` where a change makes no sense, `NoSpace` where the volume has no room for it,
/// `Unsupported` where it is not possible on this volume, or the volume must be checked first; `Corrupt` where
/// it is not sound.
pub fn tune(disk: Arc<dyn Disk>, changes: &Changes) -> Result<Tuned> {
    let mut volume = Ext4::open(disk, Options::writable())?;
    if let Some(now) = changes.now {
        volume.now = now;
    }
    let blocks = volume.superblock.blocks;
    fields::check(changes, blocks)?;
    if !changes.features.is_empty() || changes.inode_size.is_some() || changes.hash_seed.is_some() {
        return Err(Error::unsupported("changing features"));
    }
    edit(&mut volume, |raw| fields::apply(raw, changes, blocks))?;
    let checksums_rewritten = change_uuid(&mut volume, changes)?;
    resize::write_out(&mut volume)?;
    Ok(Tuned { features: volume.superblock.features.names(), checksums_rewritten })
}

/// Changes fields of the superblock in memory.
fn edit(volume: &mut Ext4, edit: impl FnOnce(&mut crate::layout::RawSuperblock)) -> Result<()> {
    let len = volume.cache.disk().len();
    volume.superblock = volume.superblock.edited(len, edit)?;
    volume.groups.count_free(&mut volume.superblock);
    volume.changed = true;
    Ok(())
}

/// Gives an open volume, in which nothing is pending, another UUID, and writes that at once.
pub(crate) fn set_uuid(volume: &mut Ext4, uuid: uuid::Uuid) -> Result<()> {
    change_uuid(volume, &Changes { uuid: Some(uuid), ..Changes::default() })?;
    resize::write_out(volume)
}

/// Changes the UUID; answers whether that meant to compute all checksums again.
fn change_uuid(volume: &mut Ext4, changes: &Changes) -> Result<bool> {
    let Some(uuid) = changes.uuid.filter(|uuid| *uuid != volume.superblock.uuid()) else { return Ok(false) };
    let features = volume.superblock.features;
    if features.has_compat(crate::features::compat::STABLE_INODES) {
        return Err(Error::unsupported("another UUID where encrypted files depend on it (stable_inodes)"));
    }
    // Values of attributes in inodes of their own are hashed with the same seed.
    if features.has_incompat(incompat::EA_INODE) && !features.has_incompat(incompat::CSUM_SEED) {
        return Err(Error::unsupported("another UUID where values of attributes depend on it (ea_inode)"));
    }
    let len = volume.cache.disk().len();
    let mut new = volume.superblock.edited(len, |raw| raw.s_uuid = *uuid.as_bytes())?;
    volume.groups.count_free(&mut new);
    if features.metadata_csum() && !features.has_incompat(incompat::CSUM_SEED) {
        debug_assert_eq!(new.checksum_seed, crc32c(!0, uuid.as_bytes()));
        reseal::reseal(volume, new)?;
        return Ok(true);
    }
    volume.superblock = new;
    Ok(false)
}
