//! Journals on devices of their own: a superblock that only says so, and the journal's own behind it.

use uuid::Uuid;
use vmwright_disk::Disk;
use zerocopy::{FromBytes, FromZeros};

use super::options::MakeOptions;
use super::presets::preset;
use super::write::{Gather, encode, zero};
use super::{Made, fields, wipe};
use crate::error::{Error, ErrorKind, Place, Result};
use crate::features::{Features, incompat};
use crate::journal::{NewJournal, new_superblock, with_user};
use crate::layout::{RawSuperblock, SUPERBLOCK_MAGIC, SUPERBLOCK_OFFSET};

/// The fewest blocks of a journal.
const LEAST: u64 = 1024;

/// The block in which the journal's superblock stands.
fn journal_block(block_size: u64) -> u64 {
    SUPERBLOCK_OFFSET / block_size + 1
}

/// Makes a journal device of a whole disk.
pub(super) fn make(disk: &dyn Disk, options: &MakeOptions, features: Features, len: u64) -> Result<Made> {
    let block_size = options.block_size.unwrap_or(preset(options, u64::MAX).block_size);
    if !block_size.is_power_of_two() || !(1024..=65536).contains(&block_size) {
        return Err(Error::bad_option("block_size", "it must be a power of two from 1024 to 65536"));
    }
    let size = u64::from(block_size);
    let blocks = len / size;
    let Ok(journal_blocks) = u32::try_from(blocks) else {
        return Err(Error::bad_option("length", "a journal has fewer than 2^32 blocks"));
    };
    if blocks < LEAST {
        return Err(Error::bad_option("length", "a journal has at least 1024 blocks"));
    }
    let mut raw = RawSuperblock::new_zeroed();
    fields::identity(&mut raw, options, &features)?;
    raw.s_blocks_count_lo.set(journal_blocks);
    raw.s_first_data_block.set(u32::from(block_size == 1024));
    raw.s_log_block_size.set((block_size / 1024).ilog2());
    raw.s_log_cluster_size.set((block_size / 1024).ilog2());
    let per_group = (block_size * 8).min((1 << 16) - 8);
    raw.s_blocks_per_group.set(per_group);
    raw.s_clusters_per_group.set(per_group);
    raw.s_first_ino.set(super::geometry::FIRST_INODE);
    fields::inode_size(&mut raw, options.inode_size.unwrap_or(256));
    fields::behaviour(&mut raw, options, &features)?;
    // No names are hashed here.
    raw.s_flags.set(0);
    raw.s_feature_incompat.set(features.incompat);
    raw.s_feature_ro_compat.set(features.ro_compat);
    let first = journal_block(size);
    let uuid = *options.uuid.as_bytes();
    let journal = NewJournal {
        block_size,
        blocks: journal_blocks,
        fast_commits: 0,
        uuid,
        first: first as u32 + 1,
        users: 0,
    };
    wipe::wipe(disk, options.assume_zeroed)?;
    if !options.lazy_journal && !options.assume_zeroed {
        zero(disk, 0..blocks * size)?;
    }
    let mut out = Gather::new(disk);
    let mut bytes = new_superblock(&journal);
    bytes.resize(block_size as usize, 0);
    out.write(first * size, &bytes)?;
    out.finish()?;
    out.write(SUPERBLOCK_OFFSET, &encode(&raw))?;
    out.finish()?;
    Ok(Made {
        generation: "journal",
        block_size,
        cluster_size: block_size,
        blocks,
        free_blocks: 0,
        reserved_blocks: 0,
        groups: 0,
        blocks_per_group: per_group,
        inodes: 0,
        free_inodes: 0,
        inodes_per_group: 0,
        inode_size: 0,
        journal_blocks: Some(blocks - first),
        backups: Vec::new(),
        features: features.names(),
        uuid: options.uuid,
    })
}

/// Adds a user to a journal device.
pub(super) fn add_user(device: &dyn Disk, volume: Uuid) -> Result<()> {
    let corrupt = |problem| Error::corrupt(Place::Superblock, problem);
    let mut bytes = [0; 1024];
    device.read_at(&mut bytes, SUPERBLOCK_OFFSET).map_err(|source| Error::disk("read", source))?;
    let raw = RawSuperblock::read_from_bytes(&bytes).map_err(|_| corrupt("it is cut short"))?;
    let is_journal = raw.s_feature_incompat.get() & incompat::JOURNAL_DEV != 0;
    if raw.s_magic != SUPERBLOCK_MAGIC || !is_journal || raw.s_log_block_size.get() > 6 {
        return Err(corrupt("the disk is no journal device"));
    }
    let size = 1024 << raw.s_log_block_size.get();
    let at = journal_block(size) * size;
    device.read_at(&mut bytes, at).map_err(|source| Error::disk("read", source))?;
    let full = || Error::plain(ErrorKind::NoSpace, "the journal device has as many users as it can have");
    let changed = with_user(&bytes, *volume.as_bytes()).ok_or_else(full)?;
    device.write_at(&changed, at).map_err(|source| Error::disk("write", source))
}
