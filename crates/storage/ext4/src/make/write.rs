//! Putting a planned volume onto its disk: few writes, the superblock last.

use std::ops::Range;

use vmwright_disk::Disk;
use zerocopy::{FromZeros, IntoBytes};

use super::contents::{Bytes, UsedInode};
use super::fields::STATE_VALID;
use super::space::Space;
use super::tables::Tables;
use crate::bitmap;
use crate::checksum::crc32c;
use crate::error::{Error, Result};
use crate::features::incompat;
use crate::group::{self, BLOCK_UNINIT, INODE_UNINIT, INODE_ZEROED};
use crate::layout::{RawGroup, RawSuperblock, SUPERBLOCK_OFFSET};
use crate::superblock::Superblock;

/// How many bytes are written at once.
const STEP: usize = 1 << 20;

/// A volume, planned to its last byte.
pub(super) struct Planned<'a> {
    pub(super) raw: RawSuperblock,
    pub(super) superblock: &'a Superblock,
    pub(super) space: &'a Space,
    pub(super) tables: &'a [Tables],
    pub(super) inodes: &'a [UsedInode],
    /// Whether inode tables are left as they are, where that is allowed.
    pub(super) lazy_tables: bool,
}

/// Writes that continue each other become one.
pub(super) struct Gather<'a> {
    disk: &'a dyn Disk,
    start: u64,
    bytes: Vec<u8>,
}

impl<'a> Gather<'a> {
    pub(super) fn new(disk: &'a dyn Disk) -> Self {
        Self { disk, start: 0, bytes: Vec::with_capacity(STEP) }
    }

    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let continues = self.start + self.bytes.len() as u64 == offset;
        if !continues || self.bytes.len() + bytes.len() > STEP {
            self.finish()?;
            self.start = offset;
        }
        if bytes.len() >= STEP {
            self.start = offset + bytes.len() as u64;
            return self.disk.write_at(bytes, offset).map_err(|source| Error::disk("write", source));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    pub(super) fn finish(&mut self) -> Result<()> {
        if !self.bytes.is_empty() {
            let written = self.disk.write_at(&self.bytes, self.start);
            written.map_err(|source| Error::disk("write", source))?;
        }
        self.bytes.clear();
        Ok(())
    }
}

/// Writes the content of files.
pub(super) fn contents(out: &mut Gather<'_>, size: u64, mut blocks: Vec<(u64, Bytes)>) -> Result<()> {
    blocks.sort_by_key(|(block, _)| *block);
    for (block, bytes) in blocks {
        match bytes {
            Bytes::Plain(bytes) => out.write(block * size, &bytes)?,
            Bytes::Orphans { blocks, seed } => {
                for block in block..block + blocks {
                    out.write(block * size, &crate::orphans::empty_block(size as usize, block, seed))?;
                }
            }
        }
    }
    Ok(())
}

/// What is left of the groups, for the superblock.
pub(super) struct Written {
    descriptors: Vec<u8>,
    pub(super) free_blocks: u64,
    pub(super) free_inodes: u32,
}

impl Planned<'_> {
    fn size(&self) -> u64 {
        self.superblock.block_size.into()
    }

    /// Writes inode tables as far as they are in use, and bitmaps; answers descriptors.
    pub(super) fn write_groups(&self, out: &mut Gather<'_>) -> Result<Written> {
        self.write_inodes(out)?;
        let size = usize::from(self.superblock.desc_size);
        let mut written = Written {
            descriptors: vec![0; self.superblock.groups as usize * size],
            free_blocks: 0,
            free_inodes: 0,
        };
        let used = self.used_clusters();
        for (number, tables) in (0..).zip(self.tables) {
            let (raw, free) = self.write_group(out, number, tables, used[number as usize])?;
            written.free_blocks += u64::from(free) * u64::from(self.superblock.cluster_blocks);
            let inodes =
                u32::from(raw.bg_free_inodes_count_lo) | u32::from(raw.bg_free_inodes_count_hi) << 16;
            written.free_inodes += inodes;
            let at = number as usize * size;
            let bytes = &mut written.descriptors[at..at + size];
            let len = size.min(size_of::<RawGroup>());
            bytes[..len].copy_from_slice(&raw.as_bytes()[..len]);
            group::seal(self.superblock, number, bytes);
        }
        Ok(written)
    }

    fn write_inodes(&self, out: &mut Gather<'_>) -> Result<()> {
        let size = usize::from(self.superblock.inode_size);
        let per_block = self.superblock.block_size / u32::from(self.superblock.inode_size);
        let per_group = self.superblock.inodes_per_group;
        let mut inodes: Vec<&UsedInode> = self.inodes.iter().collect();
        inodes.sort_by_key(|inode| inode.number);
        let place = |inode: &UsedInode| {
            let (group, index) = ((inode.number - 1) / per_group, (inode.number - 1) % per_group);
            (self.tables[group as usize].inode_table + u64::from(index / per_block), index % per_block)
        };
        for part in inodes.chunk_by(|a, b| place(a).0 == place(b).0) {
            let mut bytes = vec![0; self.superblock.block_size as usize];
            for inode in part {
                let at = place(inode).1 as usize * size;
                bytes[at..at + size].copy_from_slice(&inode.record);
            }
            if let Some(first) = part.first() {
                out.write(place(first).0 * self.size(), &bytes)?;
            }
        }
        Ok(())
    }

    /// How many clusters of each group are taken.
    fn used_clusters(&self) -> Vec<u32> {
        let superblock = self.superblock;
        let mut used = vec![0_u32; superblock.groups as usize];
        for range in self.space.taken() {
            let mut at = range.start;
            while at < range.end {
                let index = (at - superblock.first_data_block) / u64::from(superblock.blocks_per_group);
                let end = superblock.group_start(index as u32) + u64::from(superblock.blocks_per_group);
                let part = range.end.min(end) - at;
                used[index as usize] += part.div_ceil(superblock.cluster_blocks.into()) as u32;
                at += part;
            }
        }
        used
    }

    /// Writes the bitmaps of a group unless they follow from the layout; answers its descriptor, and how many clusters
    /// are free.
    fn write_group(
        &self,
        out: &mut Gather<'_>,
        number: u32,
        tables: &Tables,
        used: u32,
    ) -> Result<(RawGroup, u32)> {
        let superblock = self.superblock;
        let mut raw = RawGroup::new_zeroed();
        let split = |value: u64| (value as u32, (value >> 32) as u32);
        let place = |low: &mut zerocopy::little_endian::U32, high: &mut zerocopy::little_endian::U32, at| {
            low.set(split(at).0);
            high.set(split(at).1);
        };
        place(&mut raw.bg_block_bitmap_lo, &mut raw.bg_block_bitmap_hi, tables.block_bitmap);
        place(&mut raw.bg_inode_bitmap_lo, &mut raw.bg_inode_bitmap_hi, tables.inode_bitmap);
        place(&mut raw.bg_inode_table_lo, &mut raw.bg_inode_table_hi, tables.inode_table);
        let clusters = superblock.group_blocks(number).div_ceil(superblock.cluster_blocks);
        let free = clusters.saturating_sub(used);
        raw.bg_free_blocks_count_lo.set(free as u16);
        raw.bg_free_blocks_count_hi.set((free >> 16) as u16);

        let per_group = superblock.inodes_per_group;
        let first = number * per_group;
        let own = self.inodes.iter().filter(|inode| (inode.number - 1) / per_group == number);
        let indexes: Vec<u32> = own.clone().map(|inode| inode.number - 1 - first).collect();
        let directories = own.filter(|inode| inode.directory).count() as u16;
        let free_inodes = per_group - indexes.len() as u32;
        raw.bg_free_inodes_count_lo.set(free_inodes as u16);
        raw.bg_free_inodes_count_hi.set((free_inodes >> 16) as u16);
        raw.bg_used_dirs_count_lo.set(directories);

        let csum = superblock.features.group_csum();
        if csum {
            let unused = per_group - indexes.iter().max().map_or(0, |last| last + 1);
            raw.bg_itable_unused_lo.set(unused as u16);
            raw.bg_itable_unused_hi.set((unused >> 16) as u16);
            let mut flags = if self.lazy_tables { 0 } else { INODE_ZEROED };
            if indexes.is_empty() {
                flags |= INODE_UNINIT;
            }
            if self.follows_from_layout(number, tables, used) {
                flags |= BLOCK_UNINIT;
            }
            raw.bg_flags.set(flags);
        }
        let has = |flag| raw.bg_flags.get() & flag != 0;
        if !has(BLOCK_UNINIT) {
            let bits = self.block_bits(number, clusters);
            let len = (superblock.blocks_per_group / superblock.cluster_blocks / 8) as usize;
            let checksum = self.bitmap_checksum(&bits, len);
            raw.bg_block_bitmap_csum_lo.set(checksum as u16);
            raw.bg_block_bitmap_csum_hi.set((checksum >> 16) as u16);
            out.write(tables.block_bitmap * self.size(), &bits)?;
        }
        if raw.bg_flags.get() & INODE_UNINIT == 0 {
            let bits = self.inode_bits(&indexes);
            let checksum = self.bitmap_checksum(&bits, (per_group / 8) as usize);
            raw.bg_inode_bitmap_csum_lo.set(checksum as u16);
            raw.bg_inode_bitmap_csum_hi.set((checksum >> 16) as u16);
            out.write(tables.inode_bitmap * self.size(), &bits)?;
        }
        Ok((raw, free))
    }

    /// Whether nothing is taken in a group but its head and its own metadata. The bitmap of the last group, which may
    /// be shorter, is always written.
    fn follows_from_layout(&self, number: u32, tables: &Tables, used: u32) -> bool {
        let superblock = self.superblock;
        let head = superblock.head_blocks(number);
        if number == superblock.groups - 1 || (superblock.cluster_blocks > 1 && head > 0) {
            return false;
        }
        let start = superblock.group_start(number);
        let end = start + u64::from(superblock.group_blocks(number));
        let table = superblock.inode_table_blocks();
        let ranges = [(tables.block_bitmap, 1), (tables.inode_bitmap, 1), (tables.inode_table, table)];
        let inside = ranges.map(|(at, len)| (at + len).min(end).saturating_sub(at.max(start)));
        // What own metadata has in common with a cluster is not counted here.
        u64::from(used) == if superblock.cluster_blocks == 1 { head + inside.iter().sum::<u64>() } else { 0 }
    }

    fn block_bits(&self, number: u32, clusters: u32) -> Vec<u8> {
        let superblock = self.superblock;
        let mut bits = vec![0; superblock.block_size as usize];
        let start = superblock.group_start(number);
        let end = start + u64::from(superblock.group_blocks(number));
        let cluster = u64::from(superblock.cluster_blocks);
        for range in self.space.taken_within(start..end) {
            let (from, to) = ((range.start - start) / cluster, (range.end - start).div_ceil(cluster));
            bitmap::fill(&mut bits, from as u32, to as u32, true);
        }
        bitmap::fill(&mut bits, clusters, superblock.block_size * 8, true);
        bits
    }

    fn inode_bits(&self, indexes: &[u32]) -> Vec<u8> {
        let mut bits = vec![0; self.superblock.block_size as usize];
        for &index in indexes {
            bitmap::fill(&mut bits, index, index + 1, true);
        }
        let len = self.superblock.block_size * 8;
        bitmap::fill(&mut bits, self.superblock.inodes_per_group, len, true);
        bits
    }

    fn bitmap_checksum(&self, bits: &[u8], len: usize) -> u32 {
        match self.superblock.features.metadata_csum() {
            true => crc32c(self.superblock.checksum_seed, &bits[..len.min(bits.len())]),
            false => 0,
        }
    }

    /// Writes the copies of descriptors and superblock, then the descriptors, then the superblock itself.
    pub(super) fn write_heads(&self, out: &mut Gather<'_>, written: &Written) -> Result<()> {
        let superblock = self.superblock;
        let mut bytes = written.descriptors.clone();
        bytes.resize((superblock.descriptor_blocks() * self.size()) as usize, 0);
        let spread = superblock.features.has_incompat(incompat::META_BG);
        for group in (1..superblock.groups).filter(|group| superblock.has_superblock(*group)) {
            let at = superblock.group_start(group) * self.size();
            out.write(at, &self.copy_of_superblock(group))?;
            if !spread {
                out.write(at + self.size(), &bytes)?;
            }
        }
        if spread {
            self.write_spread(out, &bytes)?;
        } else {
            out.write(superblock.descriptor_block(0) * self.size(), &bytes)?;
        }
        out.finish()?;
        out.write(SUPERBLOCK_OFFSET, &encode(&self.raw))?;
        out.finish()
    }

    /// Writes each block of descriptors into the first, second and last of the groups that it describes.
    fn write_spread(&self, out: &mut Gather<'_>, bytes: &[u8]) -> Result<()> {
        let superblock = self.superblock;
        let per_block = superblock.block_size / u32::from(superblock.desc_size);
        for (index, block) in (0_u32..).zip(bytes.chunks(superblock.block_size as usize)) {
            let first = index * per_block;
            for group in [first, first + 1, first + per_block - 1] {
                if group < superblock.groups {
                    let skip = u64::from(superblock.has_superblock(group));
                    let start = match superblock.group_start(group) {
                        // In a volume of clusters of small blocks the superblock stands in the second block.
                        0 if superblock.block_size == 1024 => 1,
                        start => start,
                    };
                    out.write((start + skip) * self.size(), block)?;
                }
            }
        }
        Ok(())
    }

    /// A copy says where it is, and not that the volume is sound.
    fn copy_of_superblock(&self, group: u32) -> Vec<u8> {
        let mut raw = self.raw.clone();
        raw.s_block_group_nr.set(group as u16);
        raw.s_state.set(raw.s_state.get() & !STATE_VALID);
        let mut bytes = encode(&raw).to_vec();
        bytes.resize(self.size() as usize, 0);
        bytes
    }
}

/// Encodes a superblock with its checksum.
pub(super) fn encode(raw: &RawSuperblock) -> [u8; 1024] {
    let mut bytes = [0; 1024];
    bytes.copy_from_slice(raw.as_bytes());
    if raw.s_checksum_type != 0 {
        let checksum = crc32c(!0, &bytes[..1020]);
        bytes[1020..].copy_from_slice(&checksum.to_le_bytes());
    }
    bytes
}

/// The parts of a range that do not read as zeros already.
pub(super) fn zero(disk: &dyn Disk, range: Range<u64>) -> Result<()> {
    let mut at = range.start;
    while at < range.end {
        let extent = disk.extent_at(at).map_err(|source| Error::disk("read", source))?;
        let end = extent.end().min(range.end);
        if !extent.is_zero() {
            disk.zero_at(at, end - at).map_err(|source| Error::disk("write", source))?;
        }
        at = end;
    }
    Ok(())
}
