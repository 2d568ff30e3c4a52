//! How large everything is: blocks, groups, inodes, descriptors.

use super::options::MakeOptions;
use super::presets::preset;
use crate::error::{Error, Result};
use crate::features::{Features, compat, incompat, ro_compat};
use crate::superblock::keeps_superblock;

/// The first inode that files may use.
pub(super) const FIRST_INODE: u32 = 11;

/// The most blocks or clusters that a group may have: its counts have 16 bits in descriptors of 32 bytes.
const MAX_PER_GROUP: u32 = (1 << 16) - 8;

/// The room that the last group must have behind its own metadata, in blocks.
const LAST_GROUP_ROOM: u64 = 50;

/// The sizes of a new volume.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Geometry {
    pub(super) features: Features,
    pub(super) block_size: u32,
    /// Blocks per cluster.
    pub(super) cluster_blocks: u32,
    pub(super) first_data_block: u64,
    pub(super) blocks: u64,
    /// Blocks that only root may take.
    pub(super) reserved: u64,
    pub(super) blocks_per_group: u32,
    pub(super) groups: u32,
    pub(super) inodes_per_group: u32,
    pub(super) inode_size: u16,
    /// As recorded: zero without the feature `64bit`.
    pub(super) desc_size: u16,
    /// Blocks kept behind the descriptors for more of them.
    pub(super) reserved_descriptors: u32,
    /// The groups with copies of the superblock, with the feature `sparse_super2`.
    pub(super) backups: [u32; 2],
    pub(super) log_flex: u8,
}

/// What the volume was asked to be, before groups are cut.
struct Asked {
    blocks: u64,
    reserved: u64,
    inodes: u32,
    /// Blocks for descriptors beyond those in use, where the options say how far the volume shall grow.
    reserved_descriptors: Option<u32>,
}

fn too_small() -> Error {
    Error::bad_option("length", "there is no room for a filesystem")
}

fn too_many_inodes() -> Error {
    Error::bad_option("inodes", "there is no room for so many: ask for fewer, or for a larger inode_ratio")
}

impl Geometry {
    /// Decides all sizes for a volume on `len` bytes.
    pub(super) fn new(options: &MakeOptions, features: Features, len: u64) -> Result<Self> {
        let preset = preset(options, len);
        let block_size = options.block_size.unwrap_or(preset.block_size);
        if !block_size.is_power_of_two() || !(1024..=65536).contains(&block_size) {
            return Err(Error::bad_option("block_size", "it must be a power of two from 1024 to 65536"));
        }
        let cluster_blocks = cluster_blocks(options, &features, block_size)?;
        let mut geometry = Self {
            features,
            block_size,
            cluster_blocks,
            first_data_block: u64::from(block_size == 1024 && cluster_blocks == 1),
            blocks: len / u64::from(block_size),
            reserved: 0,
            blocks_per_group: 0,
            groups: 0,
            inodes_per_group: 0,
            inode_size: inode_size(options, &features, preset.inode_size, block_size)?,
            desc_size: desc_size(options, &features)?,
            reserved_descriptors: 0,
            backups: backups(options, &features)?,
            log_flex: log_flex(options, &features)?,
        };
        geometry.check_width()?;
        geometry.blocks_per_group = geometry.group_size(options)?;
        let asked = geometry.ask(options, preset.inode_ratio)?;
        geometry.settle(&asked)?;
        Ok(geometry)
    }

    /// Refuses what 32 bits cannot count.
    fn check_width(&mut self) -> Result<()> {
        if self.blocks > u64::from(u32::MAX) {
            if !self.features.has_incompat(incompat::BIT64) {
                let problem = "so many blocks need the feature 64bit, or larger blocks";
                return Err(Error::bad_option("length", problem));
            }
            // The resize inode's block map has 32 bits.
            self.features.compat &= !compat::RESIZE_INODE;
        }
        if self.blocks >= 1 << 48 {
            return Err(Error::bad_option("length", "a volume has at most 2^48 blocks"));
        }
        Ok(())
    }

    fn bigalloc(&self) -> bool {
        self.features.has_ro_compat(ro_compat::BIGALLOC)
    }

    /// How many blocks a group has.
    fn group_size(&self, options: &MakeOptions) -> Result<u32> {
        let bits = self.block_size * 8;
        let given = options.blocks_per_group;
        if given.is_some_and(|given| !(256..=bits).contains(&given) || !given.is_multiple_of(8)) {
            let problem = "it must be a multiple of 8 from 256 to 8 times the block size";
            return Err(Error::bad_option("blocks_per_group", problem));
        }
        let log_cluster = (self.block_size / 1024 * self.cluster_blocks).ilog2();
        let most = match self.bigalloc() && log_cluster + 15 >= 32 {
            true => (self.block_size - 1) * 8,
            false => bits,
        };
        let clusters = given.unwrap_or(most).min(MAX_PER_GROUP);
        let problem = "a group would have more than 2^32 blocks";
        clusters.checked_mul(self.cluster_blocks).ok_or(Error::bad_option("blocks_per_group", problem))
    }

    /// What is asked for, before whole groups are made of it.
    fn ask(&mut self, options: &MakeOptions, preset_ratio: u32) -> Result<Asked> {
        self.blocks -= self.blocks % u64::from(self.cluster_blocks);
        let blocks = self.blocks;
        if !(0.0..=50.0).contains(&options.reserved_percent) {
            return Err(Error::bad_option("reserved_percent", "it must be from 0 to 50"));
        }
        let reserved = (options.reserved_percent * blocks as f64 / 100.0) as u64;
        if blocks == 0 || reserved >= blocks {
            return Err(too_small());
        }
        let inodes = self.wanted_inodes(options, preset_ratio)?;
        let reserved_descriptors = match options.resize_limit {
            Some(limit) => self.descriptors_for(limit / u64::from(self.block_size))?,
            None => None,
        };
        Ok(Asked { blocks, reserved, inodes, reserved_descriptors })
    }

    fn wanted_inodes(&self, options: &MakeOptions, preset_ratio: u32) -> Result<u32> {
        let bytes = self.blocks * u64::from(self.block_size);
        if options.inode_ratio.is_some_and(|ratio| !(1024..=64 << 20).contains(&ratio)) {
            return Err(Error::bad_option("inode_ratio", "it must be from 1024 to 67108864"));
        }
        let least = self.block_size.max(self.block_size.saturating_mul(self.cluster_blocks));
        let ratio = options.inode_ratio.unwrap_or(preset_ratio.max(least));
        let wanted = match options.inodes.filter(|inodes| *inodes != 0) {
            Some(inodes) => inodes,
            None => match u32::try_from(bytes / u64::from(ratio)) {
                Ok(inodes) => inodes,
                Err(_) if self.features.has_incompat(incompat::BIT64) => u32::MAX,
                Err(_) => return Err(too_many_inodes()),
            },
        };
        if u64::from(wanted) * u64::from(self.inode_size) >= bytes {
            return Err(too_many_inodes());
        }
        let fallback = self.blocks / u64::from((4096 / self.block_size).max(1));
        Ok(if wanted == 0 { u32::try_from(fallback).unwrap_or(u32::MAX) } else { wanted })
    }

    fn descriptors_per_block(&self) -> u32 {
        self.block_size / u32::from(self.desc_size.max(32))
    }

    /// How many pointers a block has.
    fn pointers(&self) -> u32 {
        self.block_size / 4
    }

    /// Blocks to keep so that a volume can grow to some blocks, if any.
    fn descriptors_for(&self, limit: u64) -> Result<Option<u32>> {
        if limit <= self.blocks {
            let problem = "it must be greater than the volume's length";
            return Err(Error::bad_option("resize_limit", problem));
        }
        let per_block = u64::from(self.descriptors_per_block());
        let blocks_for = |blocks: u64| blocks.div_ceil(u64::from(self.blocks_per_group)).div_ceil(per_block);
        let more = blocks_for(limit).saturating_sub(blocks_for(self.blocks));
        let more = more.min(self.pointers().into()) as u32;
        Ok((more > 0).then_some(more))
    }

    /// Blocks of descriptors in use.
    pub(super) fn descriptor_blocks(&self) -> u32 {
        self.groups.div_ceil(self.descriptors_per_block())
    }

    /// Blocks of an inode table.
    pub(super) fn table_blocks(&self) -> u64 {
        let bytes = u64::from(self.inodes_per_group) * u64::from(self.inode_size);
        bytes.div_ceil(self.block_size.into())
    }

    /// Cuts the volume into groups; what is left too small for one is given up.
    fn settle(&mut self, asked: &Asked) -> Result<()> {
        self.reserved = asked.reserved;
        loop {
            let rest = self.blocks.saturating_sub(self.first_data_block);
            self.groups = match u32::try_from(rest.div_ceil(self.blocks_per_group.into())) {
                Ok(0) => return Err(too_small()),
                Ok(groups) => groups,
                Err(_) => return Err(Error::bad_option("length", "there would be too many groups")),
            };
            if !self.settle_inodes(asked)? {
                // Inode bitmaps are full: try with smaller groups, of which there are more.
                self.blocks_per_group -= 8;
                self.blocks = asked.blocks;
                continue;
            }
            self.settle_descriptors(asked)?;
            if self.last_group_fits(rest % u64::from(self.blocks_per_group))? {
                return Ok(());
            }
            self.blocks -= rest % u64::from(self.blocks_per_group);
            let share = 100.0 * asked.reserved as f64 / asked.blocks as f64;
            self.reserved = (share * self.blocks as f64 / 100.0) as u64;
        }
    }

    /// Decides the inodes of a group; answers false where groups must be smaller.
    fn settle_inodes(&mut self, asked: &Asked) -> Result<bool> {
        let mut wanted = asked.inodes.div_ceil(self.groups);
        if wanted > self.block_size * 8 {
            return match !self.bigalloc() && self.blocks_per_group >= 256 {
                true => Ok(false),
                false => Err(too_many_inodes()),
            };
        }
        let per_block = self.block_size / u32::from(self.inode_size);
        wanted = wanted.min((1 << 16) - per_block);
        loop {
            // Tables are filled to their last block, and bitmaps to their last byte.
            let whole = wanted.div_ceil(per_block) * per_block;
            self.inodes_per_group = whole.max(8) & !7;
            match self.inodes_per_group.checked_mul(self.groups) {
                None => wanted -= 1,
                Some(inodes) if inodes < FIRST_INODE + 1 => wanted += 8,
                Some(_) => return Ok(true),
            }
        }
    }

    fn settle_descriptors(&mut self, asked: &Asked) -> Result<()> {
        let in_use = self.descriptor_blocks();
        self.reserved_descriptors = match self.features.has_compat(compat::RESIZE_INODE) {
            true => asked.reserved_descriptors.unwrap_or_else(|| self.growth(in_use)),
            false => 0,
        };
        if self.reserved_descriptors.saturating_add(in_use) > self.blocks_per_group / 4 * 3 {
            self.features.incompat |= incompat::META_BG;
            self.features.compat &= !compat::RESIZE_INODE;
            self.reserved_descriptors = 0;
        }
        if self.features.has_compat(compat::RESIZE_INODE) && self.block_size >= 4096 {
            // Where its map ends, the inode that holds the reserved blocks is a file of 4 GiB.
            self.features.ro_compat |= ro_compat::LARGE_FILE;
        }
        let descriptors = if self.features.has_incompat(incompat::META_BG) { 1 } else { in_use };
        let own = 3 + self.table_blocks() + u64::from(self.reserved_descriptors) + u64::from(descriptors);
        if own > self.blocks_per_group.into() { Err(too_many_inodes()) } else { Ok(()) }
    }

    /// Blocks of descriptors for a volume of 1,024 times the length.
    fn growth(&self, in_use: u32) -> u32 {
        let limit = self.blocks.saturating_mul(1024).min(u32::MAX.into());
        let limit = if self.blocks < u64::from(u32::MAX / 1024) { limit } else { u32::MAX.into() };
        let groups = (limit - self.first_data_block).div_ceil(self.blocks_per_group.into());
        let blocks = groups.div_ceil(self.descriptors_per_block().into()) as u32;
        blocks.saturating_sub(in_use).min(self.pointers())
    }

    /// Whether the last group, which has `rest` blocks unless it is whole, has room for its metadata and more.
    fn last_group_fits(&self, rest: u64) -> Result<bool> {
        let last = self.groups - 1;
        let copy = match self.features.has_compat(compat::SPARSE_SUPER2) {
            true if self.groups == 2 => self.backups[0] != 0,
            true => self.backups[1] != 0,
            false => keeps_superblock(&self.features, self.backups, last),
        };
        let head = match copy {
            true => 1 + u64::from(self.descriptor_blocks()) + u64::from(self.reserved_descriptors),
            false => 0,
        };
        let own = 2 + self.table_blocks() + head;
        if self.groups == 1 && rest != 0 && rest < own {
            return Err(too_small());
        }
        if self.groups == 1 && rest != 0 && rest < own + LAST_GROUP_ROOM {
            return Err(too_small());
        }
        Ok(rest == 0 || rest >= own + LAST_GROUP_ROOM)
    }

    /// Which groups have copies of the superblock, once it is known how many there are.
    pub(super) fn settled_backups(&self) -> [u32; 2] {
        if !self.features.has_compat(compat::SPARSE_SUPER2) {
            return [0; 2];
        }
        let [first, second] = self.backups.map(|group| group.min(self.groups - 1));
        match (first, second) {
            _ if first == second => [0, first],
            _ if first > second => [second, first],
            both => both.into(),
        }
    }
}

fn cluster_blocks(options: &MakeOptions, features: &Features, block_size: u32) -> Result<u32> {
    let wrong = |problem| Err(Error::bad_option("cluster_size", problem));
    if !features.has_ro_compat(ro_compat::BIGALLOC) {
        return match options.cluster_size {
            None => Ok(1),
            Some(_) => wrong("it needs the feature bigalloc"),
        };
    }
    let size = options.cluster_size.unwrap_or(block_size * 16);
    if !size.is_power_of_two() || size < block_size || size > 1 << 29 {
        return wrong("it must be a power of two from the block size to 512 MiB");
    }
    Ok(size / block_size)
}

fn inode_size(options: &MakeOptions, features: &Features, preset: u16, block_size: u32) -> Result<u16> {
    let project = features.has_ro_compat(ro_compat::PROJECT);
    let size = options.inode_size.unwrap_or(if project { preset.max(256) } else { preset });
    let wrong = |problem| Err(Error::bad_option("inode_size", problem));
    if !size.is_power_of_two() || size < 128 || u32::from(size) > block_size {
        return wrong("it must be a power of two from 128 to the block size");
    }
    if size == 128 && project {
        return wrong("128 bytes are too few for the feature project");
    }
    if size == 128 && features.has_incompat(incompat::INLINE_DATA) {
        return wrong("128 bytes are too few for the feature inline_data");
    }
    Ok(size)
}

fn desc_size(options: &MakeOptions, features: &Features) -> Result<u16> {
    let wide = features.has_incompat(incompat::BIT64);
    match options.descriptor_size {
        None => Ok(if wide { 64 } else { 0 }),
        Some(_) if !wide => Err(Error::bad_option("descriptor_size", "it needs the feature 64bit")),
        Some(size) if size.is_power_of_two() && (64..=1024).contains(&size) => Ok(size),
        Some(_) => Err(Error::bad_option("descriptor_size", "it must be a power of two from 64 to 1024")),
    }
}

fn backups(options: &MakeOptions, features: &Features) -> Result<[u32; 2]> {
    if options.backups > 2 {
        return Err(Error::bad_option("backups", "there are 0 to 2"));
    }
    let sparse = features.has_compat(compat::SPARSE_SUPER2);
    let first = if sparse && options.backups >= 1 { 1 } else { 0 };
    let last = if sparse && options.backups >= 2 { u32::MAX } else { 0 };
    Ok([first, last])
}

fn log_flex(options: &MakeOptions, features: &Features) -> Result<u8> {
    let flex = features.has_incompat(incompat::FLEX_BG);
    match options.flex_groups {
        None => Ok(if flex { 4 } else { 0 }),
        Some(_) if !flex => Err(Error::bad_option("flex_groups", "it needs the feature flex_bg")),
        Some(count) if count.is_power_of_two() => Ok(count.ilog2() as u8),
        Some(_) => Err(Error::bad_option("flex_groups", "it must be a power of two")),
    }
}
