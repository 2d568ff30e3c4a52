//! Making volumes, as mke2fs does.
//!
//! ```text
//! options ─ features ─ geometry ─ superblock ─┬─ heads, tables ─ files of the filesystem ─┬─ wipe, write
//!              -O        sizes       fields    │           space: what is taken             │
//!                                              └────────── nothing is written so far ───────┘
//! ```
//!
//! A volume is planned to its last byte before anything is written, so that what is refused changes nothing. Everything
//! stands where mke2fs would put it. The superblock is written last.

mod contents;
mod device;
mod features;
mod fields;
mod geometry;
mod keys;
mod maps;
mod options;
mod presets;
mod quota_file;
mod space;
mod tables;
mod wipe;
mod write;

use std::sync::Arc;

use uuid::Uuid;
use vmwright_disk::Disk;
use vmwright_vfs::XattrMode;

pub use self::features::FeatureEdits;
use self::geometry::Geometry;
pub use self::options::{Generation, JournalPlace, MakeOptions, NameHash, OnErrors, QuotaTypes, Usage};
use self::space::Space;
use self::tables::Tables;
use self::write::{Gather, Planned};
use crate::error::{Error, ErrorKind, Result};
use crate::features::{compat, incompat};
use crate::inode::ROOT_INODE;
use crate::layout::RawSuperblock;
use crate::superblock::Superblock;
use crate::volume::{Ext4, Options};

/// `s_creator_os` of the Hurd, which knows fewer features.
const HURD: u32 = 1;

fn no_room() -> Error {
    Error::plain(ErrorKind::NoSpace, "there is no room in the new volume for its own metadata")
}

/// What was made.
#[derive(Debug, Clone, PartialEq)]
pub struct Made {
    /// `ext2`, `ext3` or `ext4`, by its features.
    pub generation: &'static str,
    /// The size of a block in bytes.
    pub block_size: u32,
    /// The size of a cluster in bytes; that of a block without the feature `bigalloc`.
    pub cluster_size: u32,
    /// All blocks.
    pub blocks: u64,
    /// Blocks that are free.
    pub free_blocks: u64,
    /// Blocks that only root may take.
    pub reserved_blocks: u64,
    /// Block groups.
    pub groups: u32,
    /// Blocks per group.
    pub blocks_per_group: u32,
    /// All inodes.
    pub inodes: u32,
    /// Inodes that are free.
    pub free_inodes: u32,
    /// Inodes per group.
    pub inodes_per_group: u32,
    /// The size of an inode in bytes.
    pub inode_size: u16,
    /// The blocks of the journal inside, if there is one.
    pub journal_blocks: Option<u64>,
    /// The blocks in which copies of the superblock stand.
    pub backups: Vec<u64>,
    /// The names of all features.
    pub features: Vec<&'static str>,
    /// The UUID.
    pub uuid: Uuid,
}

/// How long the journal is, in blocks, and where.
#[derive(Debug, Clone, Copy)]
struct JournalSizes {
    log: u64,
    fast_commits: u64,
    goal: u64,
}

impl JournalSizes {
    fn blocks(&self) -> u64 {
        self.log + self.fast_commits
    }
}

/// Adds a volume to the users of a journal device, so that it may keep its journal there; twice is once.
///
/// # Errors
///
/// Kind `Corrupt` where the disk is no journal device, `NoSpace` where it has 48 users already.
pub fn add_journal_user(device: &dyn Disk, volume: Uuid) -> Result<()> {
    device::add_user(device, volume)
}

/// Makes a volume on a disk, whose content is lost. The caller flushes.
///
/// # Errors
///
/// Kind `InvalidInput` for options that cannot be or cannot be together, naming the one that stands in the way, and
/// for a disk on which there is no room; `Unsupported` for a volume larger than is handled here; `ReadOnly`. In all
/// these cases the disk is as it was.
pub fn make(disk: Arc<dyn Disk>, options: &MakeOptions) -> Result<Made> {
    if disk.is_read_only() {
        return Err(Error::plain(ErrorKind::ReadOnly, "the disk for the new volume is read-only"));
    }
    let len = match options.length {
        Some(len) if len > disk.len() => {
            return Err(Error::bad_option("length", "it is more than the disk has"));
        }
        Some(len) => len,
        // Whole pages, as kernels map them.
        None => disk.len() & !4095,
    };
    let features = features::resolve(options)?;
    if features.has_incompat(incompat::JOURNAL_DEV) {
        return device::make(&*disk, options, features, len);
    }
    let geometry = Geometry::new(options, features, len)?;
    let raw = fields::superblock(options, &geometry)?;
    let superblock = Superblock::parse(&write::encode(&raw), disk.len())?;
    let mut space = Space::new(geometry.first_data_block, geometry.blocks);
    for group in 0..superblock.groups {
        space.take(superblock.group_start(group), superblock.head_blocks(group));
    }
    let tables = match options.packed_meta_blocks && geometry.log_flex > 0 {
        true => tables::place_packed(&superblock, &mut space)?,
        false => tables::place(&superblock, &mut space, geometry.log_flex, options.stride)?,
    };
    space.use_clusters(geometry.cluster_blocks.into());
    let plan = Plan { options, geometry, raw, space, tables };
    let made = plan.carry_out(&*disk)?;
    if let Some(label) = &options.root_selinux {
        label_root(disk, label, options)?;
    }
    Ok(made)
}

/// Gives the root directory its label of SELinux.
fn label_root(disk: Arc<dyn Disk>, label: &[u8], options: &MakeOptions) -> Result<()> {
    let mut volume = Ext4::open(disk, Options::writable())?;
    volume.now = options.now;
    let root = volume.inode(ROOT_INODE)?;
    volume.set_attribute(root, b"security.selinux", label, XattrMode::Set)?;
    volume.sync_volume()
}

/// A volume whose groups are laid out.
struct Plan<'a> {
    options: &'a MakeOptions,
    geometry: Geometry,
    raw: RawSuperblock,
    space: Space,
    tables: Vec<Tables>,
}

impl Plan<'_> {
    /// Decides on the journal. A volume too small for one does without, unless a size was asked for.
    fn journal(&mut self, superblock: &Superblock) -> Result<Option<JournalSizes>> {
        let features = &mut self.geometry.features;
        let device = matches!(self.options.journal, JournalPlace::Device(_));
        if !features.has_compat(compat::HAS_JOURNAL) || device {
            return Ok(None);
        }
        let Some(usual) = usual_journal(superblock.blocks) else {
            if self.options.journal_size.is_some() {
                return Err(Error::bad_option("journal_size", "the volume is too small for a journal"));
            }
            features.compat &= !(compat::HAS_JOURNAL | compat::ORPHAN_FILE | compat::FAST_COMMIT);
            return Ok(None);
        };
        let fast = features.has_compat(compat::FAST_COMMIT);
        let block_size = u64::from(superblock.block_size);
        let log = self.options.journal_size.map_or(usual, |size| size / block_size);
        let fast_commits = match self.options.fast_commit_size {
            Some(_) if !fast => {
                return Err(Error::bad_option("fast_commit_size", "it needs the feature fast_commit"));
            }
            Some(size) => size / block_size,
            None if fast => usual / 64,
            None => 0,
        };
        let goal = match self.options.journal {
            JournalPlace::At(block) if block >= superblock.blocks => {
                return Err(Error::bad_option("journal_location", "it is behind the volume's end"));
            }
            JournalPlace::At(block) => block,
            _ if self.options.packed_meta_blocks => superblock.first_data_block,
            _ => self.middle(superblock),
        };
        let sizes = JournalSizes { log, fast_commits, goal };
        let free: u64 =
            superblock.blocks - self.space.taken().map(|range| range.end - range.start).sum::<u64>();
        if !(1024..=10_240_000).contains(&sizes.blocks()) {
            return Err(Error::bad_option("journal_size", "a journal has 1024 to 10240000 blocks"));
        }
        if self.options.journal_size.is_some() && sizes.blocks() > free / 2 {
            return Err(Error::bad_option("journal_size", "it takes more than half of the volume"));
        }
        Ok(Some(sizes))
    }

    /// The first block of the group about the volume's middle that has the most space.
    fn middle(&self, superblock: &Superblock) -> u64 {
        let per_group = u64::from(superblock.blocks_per_group);
        let half = (superblock.blocks - superblock.first_data_block) / 2;
        let index = half.saturating_sub(superblock.first_data_block) / per_group;
        let group = index as u32;
        let flex = 1_u32 << self.geometry.log_flex.min(31);
        let free = |group: u32| {
            let start = superblock.group_start(group);
            let len = u64::from(superblock.group_blocks(group));
            let taken = self.space.taken_within(start..start + len);
            len - taken.map(|range| range.end - range.start).sum::<u64>()
        };
        let last = superblock.groups - 1;
        let (start, end) = match self.geometry.log_flex > 0 && group > flex {
            true => {
                let first = group & !(flex - 1);
                let start = (first..=last).find(|group| free(*group) > 0).unwrap_or(0);
                (start, start + 1)
            }
            false => (group.saturating_sub(1), group + 1),
        };
        let end = end.min(last);
        let mut best = start;
        for other in start + 1..=end {
            if free(other) > free(best) {
                best = other;
            }
        }
        superblock.group_start(best)
    }

    /// Puts the files of the filesystem in, then writes everything.
    fn carry_out(mut self, disk: &dyn Disk) -> Result<Made> {
        let superblock = Superblock::parse(&write::encode(&self.raw), disk.len())?;
        let journal = self.journal(&superblock)?;
        self.raw.s_feature_compat.set(self.geometry.features.compat);
        self.raw.s_feature_incompat.set(self.geometry.features.incompat);
        let superblock = Superblock::parse(&write::encode(&self.raw), disk.len())?;
        let cluster = u64::from(superblock.cluster_blocks);
        let clusters = |len: u64| len.div_ceil(cluster);
        let metadata: u64 = self.space.taken().map(|range| clusters(range.end - range.start)).sum();

        let mut contents =
            contents::Contents::new(self.options, &superblock, &mut self.space, self.geometry.log_flex);
        contents.fill(journal.as_ref())?;
        let contents::Contents { inodes, blocks, zeros, named, .. } = contents;
        let inside = journal.map_or(0, |journal| clusters(journal.blocks()));
        let overhead = metadata + inside + clusters(superblock.first_data_block);
        self.raw.s_overhead_blocks.set(u32::try_from(overhead).unwrap_or(0));
        self.name(&named);

        let lazy_tables = self.options.lazy_inode_tables && superblock.features.group_csum();
        let planned = Planned {
            raw: self.raw.clone(),
            superblock: &superblock,
            space: &self.space,
            tables: &self.tables,
            inodes: &inodes,
            lazy_tables,
        };
        self.clear(disk, &superblock, &zeros, lazy_tables)?;
        let mut out = Gather::new(disk);
        write::contents(&mut out, superblock.block_size.into(), blocks)?;
        let written = planned.write_groups(&mut out)?;
        let mut planned = planned;
        planned.raw.s_free_blocks_count_lo.set(written.free_blocks as u32);
        planned.raw.s_free_blocks_count_hi.set((written.free_blocks >> 32) as u32);
        planned.raw.s_free_inodes_count.set(written.free_inodes);
        planned.write_heads(&mut out, &written)?;
        Ok(made(&superblock, &written, journal))
    }

    /// Names the files of the filesystem in the superblock.
    fn name(&mut self, named: &contents::Named) {
        let raw = &mut self.raw;
        raw.s_usr_quota_inum.set(named.user_quota);
        raw.s_grp_quota_inum.set(named.group_quota);
        raw.s_prj_quota_inum.set(named.project_quota);
        raw.s_orphan_file_inum.set(named.orphan_file);
        raw.s_mmp_block.set(named.mmp_block);
        if let Some((map, size)) = &named.journal {
            raw.s_journal_inum.set(contents::JOURNAL);
            raw.s_jnl_backup_type = 1;
            let (words, sizes) = raw.s_jnl_blocks.split_at_mut(15);
            for (word, bytes) in words.iter_mut().zip(map.chunks_exact(4)) {
                word.set(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
            }
            sizes[0].set((size >> 32) as u32);
            sizes[1].set(*size as u32);
        }
        if let JournalPlace::Device(uuid) = self.options.journal
            && self.geometry.features.has_compat(compat::HAS_JOURNAL)
        {
            raw.s_journal_uuid = *uuid.as_bytes();
        }
    }

    /// Makes zeros of what stood on the disk where that matters.
    fn clear(
        &self,
        disk: &dyn Disk,
        superblock: &Superblock,
        zeros: &[std::ops::Range<u64>],
        lazy_tables: bool,
    ) -> Result<()> {
        let size = u64::from(superblock.block_size);
        if self.options.discard {
            let discarded = disk.discard(0, superblock.blocks * size);
            discarded.map_err(|source| Error::disk("give back space of", source))?;
        }
        wipe::wipe(disk, self.options.assume_zeroed)?;
        if self.options.assume_zeroed {
            return Ok(());
        }
        let table = superblock.inode_table_blocks();
        let mut ranges: Vec<std::ops::Range<u64>> = zeros.to_vec();
        if !lazy_tables {
            ranges.extend(self.tables.iter().map(|tables| tables.inode_table..tables.inode_table + table));
        }
        ranges.sort_by_key(|range| range.start);
        let mut merged: Vec<std::ops::Range<u64>> = Vec::new();
        for range in ranges {
            match merged.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        merged.into_iter().try_for_each(|range| write::zero(disk, range.start * size..range.end * size))
    }
}

/// How many blocks the journal has where nobody says; `None` for a volume that is too small for one.
pub(crate) fn usual_journal(blocks: u64) -> Option<u64> {
    const TABLE: [(u64, u64); 8] = [
        (32 << 10, 1024),
        (256 << 10, 4096),
        (512 << 10, 8192),
        (4096 << 10, 16384),
        (8192 << 10, 32768),
        (16384 << 10, 65536),
        (32768 << 10, 131_072),
        (u64::MAX, 262_144),
    ];
    let row = TABLE.iter().find(|(limit, _)| blocks < *limit);
    row.filter(|_| blocks >= 2048).map(|(_, journal)| *journal)
}

fn made(superblock: &Superblock, written: &write::Written, journal: Option<JournalSizes>) -> Made {
    let copies = (1..superblock.groups).filter(|group| superblock.has_superblock(*group));
    Made {
        generation: superblock.features.generation(),
        block_size: superblock.block_size,
        cluster_size: superblock.block_size * superblock.cluster_blocks,
        blocks: superblock.blocks,
        free_blocks: written.free_blocks,
        reserved_blocks: superblock.reserved_blocks(),
        groups: superblock.groups,
        blocks_per_group: superblock.blocks_per_group,
        inodes: superblock.inodes,
        free_inodes: written.free_inodes,
        inodes_per_group: superblock.inodes_per_group,
        inode_size: superblock.inode_size,
        journal_blocks: journal.map(|journal| journal.blocks()),
        backups: copies.map(|group| superblock.group_start(group)).collect(),
        features: superblock.features.names(),
        uuid: superblock.uuid(),
    }
}
