//! A volume in the making: its groups are laid out, then its files put in, then it is written.

use std::ops::Range;

use vmwright_disk::Disk;

use super::contents::{self, Bytes, Contents, UsedInode};
use super::geometry::Geometry;
use super::options::{JournalPlace, MakeOptions};
use super::space::Space;
use super::tables::{self, Tables};
use super::write::{self, Gather, Planned};
use super::{Made, fields, wipe};
use crate::error::{Error, Result};
use crate::features::{Features, compat, ro_compat};
use crate::file_write::SMALL_FILE;
use crate::layout::RawSuperblock;
use crate::superblock::Superblock;

/// How long the journal is, in blocks, and where.
#[derive(Debug, Clone, Copy)]
pub(super) struct JournalSizes {
    pub(super) log: u64,
    pub(super) fast_commits: u64,
    pub(super) goal: u64,
}

impl JournalSizes {
    pub(super) fn blocks(&self) -> u64 {
        self.log + self.fast_commits
    }
}

/// A volume whose groups are laid out.
pub(super) struct Plan<'a> {
    options: &'a MakeOptions,
    geometry: Geometry,
    raw: RawSuperblock,
    space: Space,
    tables: Vec<Tables>,
}

impl<'a> Plan<'a> {
    /// Lays out the groups of a volume on `len` bytes.
    pub(super) fn new(options: &'a MakeOptions, features: Features, len: u64) -> Result<Self> {
        let geometry = Geometry::new(options, features, len)?;
        let raw = fields::superblock(options, &geometry)?;
        let space = Space::new(geometry.first_data_block, geometry.blocks);
        let mut plan = Self { options, geometry, raw, space, tables: Vec::new() };
        let superblock = plan.superblock()?;
        for group in 0..superblock.groups {
            plan.space.take(superblock.group_start(group), superblock.head_blocks(group));
        }
        let log_flex = plan.geometry.log_flex;
        plan.tables = match options.packed_meta_blocks && log_flex > 0 {
            true => tables::place_packed(&superblock, &mut plan.space)?,
            false => tables::place(&superblock, &mut plan.space, log_flex, options.stride)?,
        };
        plan.space.use_clusters(plan.geometry.cluster_blocks.into());
        Ok(plan)
    }

    /// The superblock as far as it is known.
    fn superblock(&self) -> Result<Superblock> {
        let len = self.geometry.blocks.saturating_mul(self.geometry.block_size.into());
        Superblock::parse(&write::encode(&self.raw), len)
    }

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
        if sizes.blocks() * block_size > SMALL_FILE {
            self.geometry.features.ro_compat |= ro_compat::LARGE_FILE;
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

    /// Puts the files of the filesystem in.
    pub(super) fn fill(mut self) -> Result<Filled<'a>> {
        let superblock = self.superblock()?;
        let journal = self.journal(&superblock)?;
        self.raw.s_feature_compat.set(self.geometry.features.compat);
        self.raw.s_feature_ro_compat.set(self.geometry.features.ro_compat);
        let superblock = self.superblock()?;
        let cluster = u64::from(superblock.cluster_blocks);
        let clusters = |len: u64| len.div_ceil(cluster);
        let metadata: u64 = self.space.taken().map(|range| clusters(range.end - range.start)).sum();
        let mut contents = Contents::new(self.options, &superblock, &mut self.space, self.geometry.log_flex);
        contents.fill(journal.as_ref())?;
        let Contents { inodes, blocks, zeros, named, .. } = contents;
        let inside = journal.map_or(0, |journal| clusters(journal.blocks()));
        let overhead = metadata + inside + clusters(superblock.first_data_block);
        self.raw.s_overhead_blocks.set(u32::try_from(overhead).unwrap_or(0));
        self.name(&named);
        Ok(Filled { plan: self, superblock, journal, inodes, blocks, zeros })
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
}

/// A volume that is complete, but for its being written.
pub(super) struct Filled<'a> {
    plan: Plan<'a>,
    superblock: Superblock,
    journal: Option<JournalSizes>,
    inodes: Vec<UsedInode>,
    blocks: Vec<(u64, Bytes)>,
    zeros: Vec<Range<u64>>,
}

impl Filled<'_> {
    /// How long the volume is, in blocks, and how many blocks and inodes of it are free.
    pub(super) fn room(&self) -> (u64, u64, u64) {
        let taken: u64 = self.plan.space.taken().map(|range| range.end - range.start).sum();
        let (first, blocks) = (self.superblock.first_data_block, self.superblock.blocks);
        let inodes = u64::from(self.superblock.inodes) - self.inodes.len() as u64;
        (blocks, blocks - first - taken, inodes)
    }

    /// Writes everything.
    pub(super) fn write(self, disk: &dyn Disk) -> Result<Made> {
        let lazy_tables = self.plan.options.lazy_inode_tables && self.superblock.features.group_csum();
        self.clear(disk, lazy_tables)?;
        let Self { plan, superblock, journal, inodes, blocks, .. } = self;
        let mut planned = Planned {
            raw: plan.raw,
            superblock: &superblock,
            space: &plan.space,
            tables: &plan.tables,
            inodes: &inodes,
            lazy_tables,
        };
        let mut out = Gather::new(disk);
        write::contents(&mut out, superblock.block_size.into(), blocks)?;
        let written = planned.write_groups(&mut out)?;
        planned.raw.s_free_blocks_count_lo.set(written.free_blocks as u32);
        planned.raw.s_free_blocks_count_hi.set((written.free_blocks >> 32) as u32);
        planned.raw.s_free_inodes_count.set(written.free_inodes);
        planned.write_heads(&mut out, &written)?;
        Ok(made(&superblock, &written, journal))
    }

    /// Makes zeros of what stood on the disk where that matters.
    fn clear(&self, disk: &dyn Disk, lazy_tables: bool) -> Result<()> {
        let (options, superblock) = (self.plan.options, &self.superblock);
        let size = u64::from(superblock.block_size);
        if options.discard {
            let discarded = disk.discard(0, superblock.blocks * size);
            discarded.map_err(|source| Error::disk("give back space of", source))?;
        }
        wipe::wipe(disk, options.assume_zeroed)?;
        if options.assume_zeroed {
            return Ok(());
        }
        let table = superblock.inode_table_blocks();
        let mut ranges = self.zeros.clone();
        if !lazy_tables {
            ranges
                .extend(self.plan.tables.iter().map(|tables| tables.inode_table..tables.inode_table + table));
        }
        ranges.sort_by_key(|range| range.start);
        let mut merged: Vec<Range<u64>> = Vec::new();
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
