//! The journal and the orphan file: files of the filesystem itself that can be added and taken away.

use std::ops::Range;

use vmwright_vfs::FileType;

use super::Tuning;
use crate::checksum::crc32c;
use crate::error::{Error, ErrorKind, Result};
use crate::extents::{Extent, Node};
use crate::features::{compat, incompat, ro_compat};
use crate::inode::{Inode, flags};
use crate::journal::{NewJournal, new_superblock};
use crate::make::usual_journal;
use crate::maps;
use crate::reseal;
use crate::resize::reserved;

/// The inode of the journal.
const JOURNAL_INODE: u32 = 8;

/// The fewest and the most blocks of a journal.
const JOURNAL_BLOCKS: Range<u64> = 1024..10_240_001;

/// What stands at the end of each block of the orphan file, before its checksum.
const ORPHAN_MAGIC: u32 = 0x0b10_ca04;

/// What the block for hosts begins with, and what it says where none is at work.
const MMP_MAGIC: u32 = 0x004d_4d50;
const MMP_CLEAN: u32 = 0xff4d_4d50;
/// How often hosts look at it, in seconds.
const MMP_INTERVAL: u16 = 5;

impl Tuning<'_> {
    /// Frees everything that an inode has.
    fn release_content(&mut self, inode: &Inode) -> Result<()> {
        let map = maps::load(&self.volume, inode)?;
        for run in &map.runs {
            let range = run.start..run.start + u64::from(run.len);
            self.volume.cache.forget(range.start, u64::from(run.len));
            self.space.mark(&mut self.volume, &range, false)?;
        }
        for node in map.nodes {
            self.volume.cache.forget(node, 1);
            self.space.mark(&mut self.volume, &(node..node + 1), false)?;
        }
        Ok(())
    }

    /// A file of so many blocks, all of them zeros, that begin near `goal`. Its inode is not written yet.
    fn new_file(&mut self, number: u32, blocks: u64, goal: u64) -> Result<Inode> {
        let volume = &mut self.volume;
        let free = volume.superblock.free_blocks * u64::from(volume.superblock.cluster_blocks);
        if blocks.saturating_add(blocks / 64 + 8) > free {
            return Err(Error::plain(ErrorKind::NoSpace, "the filesystem has too few free blocks"));
        }
        let mut inode = Inode::new(&volume.superblock, number, FileType::Regular, volume.now);
        inode.permissions = 0o600;
        inode.links = 1;
        if volume.superblock.features.has_incompat(incompat::EXTENTS) {
            inode.flags |= flags::EXTENTS;
            Node::empty().encode(&mut inode.block);
        }
        self.space.aim(goal);
        let (mut runs, mut logical) = (Vec::new(), 0);
        while logical < blocks {
            let found = self.space.take(volume, blocks - logical)?;
            let len = (found.end - found.start).min(blocks - logical);
            volume.cache.forget(found.start, len);
            let size = volume.block_size();
            volume.cache.zero_data(found.start * size, len * size)?;
            runs.push(Extent {
                logical: logical as u32,
                len: len as u32,
                start: found.start,
                unwritten: false,
            });
            logical += len;
        }
        let needed = maps::nodes_needed(volume, &inode, &runs);
        let mut nodes = Vec::new();
        for _ in 0..needed {
            nodes.push(self.space.take(volume, 1)?.start);
        }
        maps::store(volume, &mut inode, &runs, &nodes)?;
        let cluster = u64::from(volume.superblock.cluster_blocks);
        let clusters = blocks.div_ceil(cluster) + needed;
        inode.sectors = clusters * cluster * (volume.block_size() / 512);
        inode.size = blocks * volume.block_size();
        Ok(inode)
    }

    /// Takes the journal away; nothing is in it.
    pub(super) fn remove_journal(&mut self) -> Result<()> {
        let number = self.volume.superblock.journal_inode();
        if number != JOURNAL_INODE {
            return Err(Error::unsupported("taking away a journal that is a file or on another device"));
        }
        let inode = self.volume.inode(number)?;
        self.release_content(&inode)?;
        reserved::clear_record(&mut self.volume, number)?;
        self.edit(|raw| {
            raw.s_feature_compat.set(raw.s_feature_compat.get() & !compat::HAS_JOURNAL);
            raw.s_journal_inum.set(0);
            raw.s_journal_uuid = [0; 16];
            raw.s_jnl_blocks.iter_mut().for_each(|word| word.set(0));
            raw.s_overhead_blocks.set(0);
        })
    }

    /// Adds a journal to a volume that has none.
    pub(super) fn add_journal(&mut self) -> Result<()> {
        let superblock = &self.volume.superblock;
        let blocks = match self.changes.journal_blocks {
            Some(blocks) => u64::from(blocks),
            None => usual_journal(superblock.blocks).ok_or_else(|| {
                Error::plain(ErrorKind::NoSpace, "the filesystem is too small for a journal")
            })?,
        };
        if !JOURNAL_BLOCKS.contains(&blocks) {
            let problem = "a journal has between 1,024 and 10,240,000 blocks";
            return Err(Error::plain(ErrorKind::InvalidInput, problem));
        }
        // Half way, so that the way to it is never long.
        let middle = superblock.group_start(superblock.groups / 2);
        let content = new_superblock(&NewJournal {
            block_size: superblock.block_size,
            blocks: blocks as u32,
            fast_commits: 0,
            uuid: *superblock.uuid().as_bytes(),
            first: 1,
            users: 1,
        });
        let inode = self.new_file(JOURNAL_INODE, blocks, middle)?;
        let first = self.volume.run_at(&inode, 0)?.start().unwrap_or(0);
        let size = self.volume.block_size();
        self.volume.cache.write_data(&content, first * size)?;
        let record = inode.encode(&self.volume.superblock);
        reseal::put_record(&mut self.volume, JOURNAL_INODE, &record)?;
        self.edit(|raw| {
            raw.s_feature_compat.set(raw.s_feature_compat.get() | compat::HAS_JOURNAL);
            raw.s_journal_inum.set(JOURNAL_INODE);
            raw.s_journal_dev.set(0);
            raw.s_journal_uuid = [0; 16];
            raw.s_jnl_backup_type = 1;
            for (word, bytes) in raw.s_jnl_blocks.iter_mut().zip(inode.block.chunks_exact(4)) {
                word.set(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
            }
            raw.s_jnl_blocks[15].set((inode.size >> 32) as u32);
            raw.s_jnl_blocks[16].set(inode.size as u32);
            raw.s_overhead_blocks.set(0);
        })
    }

    /// Takes the orphan file away, in which nothing is.
    pub(super) fn remove_orphan_file(&mut self) -> Result<()> {
        let number = self.volume.superblock.orphan_file_inode();
        let inode = self.volume.inode(number)?;
        self.release_content(&inode)?;
        reserved::clear_record(&mut self.volume, number)?;
        self.numbers.release(&mut self.volume, number)?;
        self.edit(|raw| {
            raw.s_feature_compat.set(raw.s_feature_compat.get() & !compat::ORPHAN_FILE);
            let ro = raw.s_feature_ro_compat.get() & !ro_compat::ORPHAN_PRESENT;
            raw.s_feature_ro_compat.set(ro);
            raw.s_orphan_file_inum.set(0);
        })
    }

    /// Adds an orphan file.
    pub(super) fn add_orphan_file(&mut self) -> Result<()> {
        let blocks = self.volume.superblock.blocks;
        let count = match blocks {
            _ if blocks < 128 << 10 => 32,
            _ if blocks < 2 << 20 => blocks / 4096,
            _ => 512,
        };
        let count = count.next_multiple_of(self.volume.superblock.cluster_blocks.into());
        let groups = self.volume.superblock.groups;
        let number = self.numbers.take(&mut self.volume, &mut self.space, groups, false)?;
        let inode = self.new_file(number, count, 0)?;
        let record = inode.encode(&self.volume.superblock);
        reseal::put_record(&mut self.volume, number, &record)?;
        for logical in 0..count {
            let Some(block) = self.volume.run_at(&inode, logical)?.start() else { continue };
            let mut bytes = vec![0; self.volume.superblock.block_size as usize];
            let at = bytes.len() - 8;
            bytes[at..at + 4].copy_from_slice(&ORPHAN_MAGIC.to_le_bytes());
            self.volume.cache.put(block, bytes)?;
        }
        let seed = inode.checksum_seed(&self.volume.superblock);
        reseal::reseal_orphans(&mut self.volume, &inode, seed)?;
        self.edit(|raw| {
            raw.s_feature_compat.set(raw.s_feature_compat.get() | compat::ORPHAN_FILE);
            raw.s_orphan_file_inum.set(number);
        })
    }

    /// Takes away the block in which hosts tell each other that they use the volume.
    pub(super) fn remove_mmp(&mut self) -> Result<()> {
        // Nobody has to be told any more.
        self.volume.cache.put_guard(None);
        let block = self.volume.superblock.raw().s_mmp_block.get();
        if self.volume.superblock.is_valid_block(block) {
            self.volume.cache.forget(block, 1);
            self.space.mark(&mut self.volume, &(block..block + 1), false)?;
        }
        self.edit(|raw| {
            raw.s_feature_incompat.set(raw.s_feature_incompat.get() & !incompat::MMP);
            raw.s_mmp_block.set(0);
            raw.s_mmp_interval.set(0);
        })
    }

    /// Adds such a block; its checksum follows with all others.
    pub(super) fn add_mmp(&mut self) -> Result<()> {
        let block = self.space.take(&mut self.volume, 1)?.start;
        let seed = self.volume.superblock.checksum_seed;
        let mut bytes = vec![0; self.volume.superblock.block_size as usize];
        bytes[..4].copy_from_slice(&MMP_MAGIC.to_le_bytes());
        bytes[4..8].copy_from_slice(&MMP_CLEAN.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.volume.now.seconds.to_le_bytes());
        bytes[0x70..0x72].copy_from_slice(&MMP_INTERVAL.to_le_bytes());
        if self.volume.superblock.features.metadata_csum() {
            let checksum = crc32c(seed, &bytes[..1020]);
            bytes[1020..1024].copy_from_slice(&checksum.to_le_bytes());
        }
        self.volume.cache.put(block, bytes)?;
        self.edit(|raw| {
            raw.s_feature_incompat.set(raw.s_feature_incompat.get() | incompat::MMP);
            raw.s_mmp_block.set(block);
            raw.s_mmp_interval.set(MMP_INTERVAL);
        })
    }

    /// Takes the resize inode away, and the blocks that it keeps.
    pub(super) fn remove_resize_inode(&mut self) -> Result<()> {
        let before = self.volume.superblock.clone();
        let (_, block) = reserved::pointer_block(&self.volume)?;
        self.edit(|raw| {
            raw.s_feature_compat.set(raw.s_feature_compat.get() & !compat::RESIZE_INODE);
            raw.s_reserved_gdt_blocks.set(0);
            raw.s_overhead_blocks.set(0);
        })?;
        reserved::remove(&mut self.volume, &mut self.space, block)?;
        crate::resize::free_heads(&mut self.volume, &before, &mut self.space)
    }

    /// Frees the copies of the superblock that `sparse_super` needs no more.
    pub(super) fn thin_out_copies(&mut self) -> Result<()> {
        let before = self.volume.superblock.clone();
        self.edit(|raw| {
            let ro = raw.s_feature_ro_compat.get() | ro_compat::SPARSE_SUPER;
            raw.s_feature_ro_compat.set(ro);
            raw.s_overhead_blocks.set(0);
        })?;
        crate::resize::free_heads(&mut self.volume, &before, &mut self.space)
    }
}
