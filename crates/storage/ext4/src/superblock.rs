//! The superblock: what a volume is, validated once.

use vmwright_disk::Disk;
use zerocopy::{FromBytes, IntoBytes};

use crate::checksum::crc32c;
use crate::error::{Error, Place, Result};
use crate::features::{Features, compat, incompat, ro_compat};
use crate::hash::HashConfig;
use crate::layout::{RawSuperblock, SUPERBLOCK_MAGIC, SUPERBLOCK_OFFSET};

/// `s_creator_os`, where it gives fields of inodes another meaning.
const CREATOR_HURD: u32 = 1;
const CREATOR_MASIX: u32 = 2;

/// `s_state`: unmounted cleanly.
const STATE_VALID: u16 = 0x1;
/// `s_state`: the kernel met errors.
const STATE_ERROR: u16 = 0x2;
/// `s_flags`: names hash with unsigned characters.
const FLAG_UNSIGNED_HASH: u32 = 0x2;
/// The revision from which on features and inode sizes are recorded.
const DYNAMIC_REVISION: u32 = 1;
/// The first inode that files may use, before it was recorded.
const GOOD_OLD_FIRST_INODE: u32 = 11;

/// The longest label, in bytes.
pub(crate) const LABEL_MAX: usize = 16;

/// The most block groups that are handled: 128 TiB with blocks of 4 KiB. All descriptors are kept in memory.
const MAX_GROUPS: u32 = 1 << 20;

/// The most bytes that all descriptors together may have.
const MAX_DESCRIPTORS: u64 = 64 << 20;

fn corrupt(problem: &'static str) -> Error {
    Error::corrupt(Place::Superblock, problem)
}

/// A validated superblock. The counts are kept up to date in memory and encoded at each sync.
#[derive(Clone)]
pub(crate) struct Superblock {
    raw: RawSuperblock,
    pub(crate) features: Features,
    pub(crate) block_size: u32,
    pub(crate) blocks: u64,
    pub(crate) first_data_block: u64,
    pub(crate) blocks_per_group: u32,
    /// How many blocks one bit of a block bitmap stands for: a power of two, 1 without `bigalloc`.
    pub(crate) cluster_blocks: u32,
    pub(crate) inodes_per_group: u32,
    pub(crate) inodes: u32,
    pub(crate) groups: u32,
    pub(crate) inode_size: u16,
    pub(crate) desc_size: u16,
    /// In clusters, as the descriptors count them too.
    pub(crate) free_blocks: u64,
    pub(crate) free_inodes: u32,
    /// The seed of every checksum of metadata.
    pub(crate) checksum_seed: u32,
}

impl Superblock {
    /// Reads the superblock from where it stands on a disk.
    pub(crate) fn read(disk: &dyn Disk) -> Result<Self> {
        let mut bytes = [0; 1024];
        if disk.len() < SUPERBLOCK_OFFSET + 1024 {
            return Err(Error::corrupt(Place::Superblock, "the disk is too small to hold one"));
        }
        disk.read_at(&mut bytes, SUPERBLOCK_OFFSET).map_err(|source| Error::disk("read", source))?;
        Self::parse(&bytes, disk.len())
    }

    /// Validates the 1,024 bytes of a superblock on a disk of `disk_len` bytes.
    pub(crate) fn parse(bytes: &[u8; 1024], disk_len: u64) -> Result<Self> {
        let raw = RawSuperblock::read_from_bytes(bytes)
            .map_err(|_| Error::corrupt(Place::Superblock, "it is cut short"))?;
        let mismatch =
            |what, expected, actual| Err(Error::mismatch(Place::Superblock, what, expected, actual));
        if raw.s_magic == SUPERBLOCK_MAGIC.swap_bytes() {
            return Err(Error::unsupported("the filesystem is big-endian, as Linux on m68k once had it"));
        }
        if raw.s_magic != SUPERBLOCK_MAGIC {
            return mismatch("the magic number", SUPERBLOCK_MAGIC.into(), raw.s_magic.get().into());
        }
        let dynamic = raw.s_rev_level.get() >= DYNAMIC_REVISION;
        if raw.s_rev_level.get() > DYNAMIC_REVISION {
            return Err(Error::unsupported("the filesystem has a revision later than 1"));
        }
        let features = Features {
            compat: if dynamic { raw.s_feature_compat.get() } else { 0 },
            incompat: if dynamic { raw.s_feature_incompat.get() } else { 0 },
            ro_compat: if dynamic { raw.s_feature_ro_compat.get() } else { 0 },
        };
        if features.metadata_csum() {
            // The checksum covers everything before itself.
            let actual = crc32c(!0, &bytes[..1020]);
            if raw.s_checksum != actual {
                return mismatch("the checksum", actual.into(), raw.s_checksum.get().into());
            }
        }
        features.check_readable()?;
        let superblock = Self::geometry(raw, features, dynamic)?;
        let len = u128::from(superblock.blocks) * u128::from(superblock.block_size);
        if len > u128::from(disk_len) {
            return mismatch(
                "the volume's length in bytes, at most",
                disk_len,
                len.try_into().unwrap_or(u64::MAX),
            );
        }
        Ok(superblock)
    }

    /// Takes over the geometry of a superblock for a check of the volume: whatever else is wrong with it, its
    /// checksum included, is for the check to say.
    pub(crate) fn for_check(bytes: &[u8; 1024]) -> Result<Self> {
        let raw = RawSuperblock::read_from_bytes(bytes)
            .map_err(|_| Error::corrupt(Place::Superblock, "it is cut short"))?;
        if raw.s_magic != SUPERBLOCK_MAGIC {
            let (expected, actual) = (SUPERBLOCK_MAGIC.into(), raw.s_magic.get().into());
            return Err(Error::mismatch(Place::Superblock, "the magic number", expected, actual));
        }
        let dynamic = raw.s_rev_level.get() >= DYNAMIC_REVISION;
        let features = Features {
            compat: if dynamic { raw.s_feature_compat.get() } else { 0 },
            incompat: if dynamic { raw.s_feature_incompat.get() } else { 0 },
            ro_compat: if dynamic { raw.s_feature_ro_compat.get() } else { 0 },
        };
        Self::geometry(raw, features, dynamic)
    }

    /// The same superblock with some fields changed, validated again for a disk of `disk_len` bytes.
    pub(crate) fn edited(&self, disk_len: u64, edit: impl FnOnce(&mut RawSuperblock)) -> Result<Self> {
        let mut raw = RawSuperblock::read_from_bytes(&self.encode())
            .map_err(|_| Error::corrupt(Place::Superblock, "it is cut short"))?;
        edit(&mut raw);
        let mut bytes = [0; 1024];
        bytes.copy_from_slice(raw.as_bytes());
        if raw.s_feature_ro_compat.get() & ro_compat::METADATA_CSUM != 0 {
            let checksum = crc32c(!0, &bytes[..1020]);
            bytes[1020..].copy_from_slice(&checksum.to_le_bytes());
        }
        Self::parse(&bytes, disk_len)
    }

    /// The copy that a group begins with.
    pub(crate) fn copy_for(&self, group: u32) -> [u8; 1024] {
        let mut copy = self.clone();
        // Kernels number groups with 16 bits here.
        copy.raw.s_block_group_nr.set(group as u16);
        copy.raw.s_state.set(copy.raw.s_state.get() & !STATE_VALID);
        copy.features.incompat &= !incompat::RECOVER;
        copy.encode()
    }

    /// The superblock that a copy stands in for. It says that the volume is not clean, until that was checked, and
    /// whether the journal holds changes.
    pub(crate) fn restored(&self, pending: bool) -> [u8; 1024] {
        let mut restored = self.clone();
        restored.raw.s_block_group_nr.set(0);
        restored.raw.s_state.set(restored.raw.s_state.get() & !STATE_VALID);
        if pending {
            restored.features.incompat |= incompat::RECOVER;
        }
        restored.encode()
    }

    /// The first block of descriptors that is not kept with the others, with `meta_bg`.
    pub(crate) fn first_meta_group(&self) -> u64 {
        self.raw.s_first_meta_bg.get().into()
    }

    /// The superblock as it was read.
    pub(crate) fn raw(&self) -> &RawSuperblock {
        &self.raw
    }

    /// Derives and checks every size that later arithmetic divides or indexes by.
    fn geometry(raw: RawSuperblock, features: Features, dynamic: bool) -> Result<Self> {
        let log_block_size = raw.s_log_block_size.get();
        if log_block_size > 6 {
            return Err(corrupt("the block size is not between 1 and 64 KiB"));
        }
        let wide = features.has_incompat(incompat::BIT64);
        let join = |low: u32, high: u32| u64::from(low) | if wide { u64::from(high) << 32 } else { 0 };
        let mut superblock = Self {
            features,
            block_size: 1024_u32 << log_block_size,
            blocks: join(raw.s_blocks_count_lo.get(), raw.s_blocks_count_hi.get()),
            first_data_block: raw.s_first_data_block.get().into(),
            blocks_per_group: raw.s_blocks_per_group.get(),
            cluster_blocks: cluster_blocks(&raw, features)?,
            inodes_per_group: raw.s_inodes_per_group.get(),
            inodes: raw.s_inodes_count.get(),
            groups: 0,
            inode_size: if dynamic { raw.s_inode_size.get() } else { 128 },
            desc_size: if wide { raw.s_desc_size.get() } else { 32 },
            free_blocks: 0,
            free_inodes: raw.s_free_inodes_count.get(),
            checksum_seed: match features.has_incompat(incompat::CSUM_SEED) {
                true => raw.s_checksum_seed.get(),
                false => crc32c(!0, &raw.s_uuid),
            },
            raw,
        };
        superblock.check_sizes()?;
        superblock.free_blocks = superblock.recorded_free_blocks() / u64::from(superblock.cluster_blocks);
        superblock.groups = superblock.count_groups()?;
        Ok(superblock)
    }

    fn check_sizes(&self) -> Result<()> {
        let (inode_size, desc_size) = (self.inode_size, self.desc_size);
        if inode_size < 128 || !inode_size.is_power_of_two() || u32::from(inode_size) > self.block_size {
            return Err(corrupt("the inode size is not a power of two between 128 and the block size"));
        }
        let least = if self.features.has_incompat(incompat::BIT64) { 64 } else { 32 };
        if !(least..=1024).contains(&desc_size) || !desc_size.is_power_of_two() {
            return Err(corrupt("the size of group descriptors is impossible"));
        }
        let bits = self.block_size * 8;
        let bigalloc = self.features.has_ro_compat(ro_compat::BIGALLOC);
        let per_group = self.blocks_per_group;
        let clusters = per_group / self.cluster_blocks;
        if clusters == 0 || clusters > bits || !per_group.is_multiple_of(8 * self.cluster_blocks) {
            return Err(corrupt("the number of blocks per group is impossible"));
        }
        if bigalloc && self.raw.s_clusters_per_group != clusters {
            return Err(corrupt("the numbers of blocks and of clusters per group do not agree"));
        }
        if self.inodes_per_group == 0 || self.inodes_per_group > bits {
            return Err(corrupt("the number of inodes per group is impossible"));
        }
        let first = u64::from(self.block_size == 1024);
        let expected = self.first_data_block == first || (bigalloc && self.first_data_block <= 1);
        if !expected || self.first_data_block >= self.blocks {
            return Err(corrupt("the first data block is impossible"));
        }
        Ok(())
    }

    fn count_groups(&self) -> Result<u32> {
        let groups = (self.blocks - self.first_data_block).div_ceil(u64::from(self.blocks_per_group));
        let Ok(groups @ 1..=MAX_GROUPS) = u32::try_from(groups) else {
            return Err(Error::unsupported("the filesystem has more block groups than can be handled"));
        };
        if u64::from(groups) * u64::from(self.desc_size) > MAX_DESCRIPTORS {
            return Err(Error::unsupported("the filesystem has larger descriptors than can be handled"));
        }
        if u64::from(groups) * u64::from(self.inodes_per_group) != u64::from(self.inodes) {
            return Err(corrupt("the number of inodes is not that of all groups together"));
        }
        Ok(groups)
    }

    /// Encodes the superblock with its checksum.
    pub(crate) fn encode(&self) -> [u8; 1024] {
        let mut raw = self.raw.clone();
        // Recorded in blocks, though whole clusters are free.
        let free = self.free_blocks.saturating_mul(self.cluster_blocks.into());
        raw.s_free_blocks_count_lo.set(free as u32);
        if self.features.has_incompat(incompat::BIT64) {
            raw.s_free_blocks_count_hi.set((free >> 32) as u32);
        }
        raw.s_free_inodes_count.set(self.free_inodes);
        if raw.s_rev_level.get() >= DYNAMIC_REVISION {
            raw.s_feature_compat.set(self.features.compat);
            raw.s_feature_incompat.set(self.features.incompat);
            raw.s_feature_ro_compat.set(self.features.ro_compat);
        }
        let mut bytes = [0; 1024];
        bytes.copy_from_slice(raw.as_bytes());
        if self.features.metadata_csum() {
            let checksum = crc32c(!0, &bytes[..1020]);
            bytes[1020..].copy_from_slice(&checksum.to_le_bytes());
        }
        bytes
    }

    /// Whether the superblock can say which features there are; those of revision 0 cannot.
    pub(crate) fn has_features(&self) -> bool {
        self.raw.s_rev_level.get() >= DYNAMIC_REVISION
    }

    /// Refuses volumes that are unsafe to write here.
    pub(crate) fn check_writable(&self) -> Result<()> {
        match self.raw.s_creator_os.get() {
            // Their inodes keep a translator and an author where Linux has a version and a checksum.
            CREATOR_HURD => Err(Error::unsupported("the filesystem was made by the Hurd: writing it")),
            CREATOR_MASIX => Err(Error::unsupported("the filesystem was made by MASIX: writing it")),
            _ => self.features.check_writable(),
        }
    }

    /// Whether the volume was left without pending work: unmounted, or with a journal that tells what to do.
    pub(crate) fn is_clean(&self) -> bool {
        self.raw.s_state.get() & (STATE_VALID | STATE_ERROR) == STATE_VALID
    }

    /// The label, without the zero bytes that fill its field.
    pub(crate) fn label(&self) -> Vec<u8> {
        let name = &self.raw.s_volume_name;
        let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
        name[..end].to_vec()
    }

    /// Sets the label, which must have at most [`LABEL_MAX`] bytes.
    pub(crate) fn set_label(&mut self, label: &[u8]) {
        let mut name = [0; LABEL_MAX];
        name.iter_mut().zip(label).for_each(|(slot, byte)| *slot = *byte);
        self.raw.s_volume_name = name;
    }

    pub(crate) fn uuid(&self) -> uuid::Uuid {
        uuid::Uuid::from_bytes(self.raw.s_uuid)
    }

    /// How many blocks are free, as the superblock has it: kernels bring that up to date only now and then.
    pub(crate) fn recorded_free_blocks(&self) -> u64 {
        let wide = self.features.has_incompat(incompat::BIT64);
        let high = if wide { self.raw.s_free_blocks_count_hi.get() } else { 0 };
        u64::from(self.raw.s_free_blocks_count_lo.get()) | u64::from(high) << 32
    }

    /// Blocks that only root may take.
    pub(crate) fn reserved_blocks(&self) -> u64 {
        let high =
            if self.features.has_incompat(incompat::BIT64) { self.raw.s_r_blocks_count_hi.get() } else { 0 };
        u64::from(self.raw.s_r_blocks_count_lo.get()) | u64::from(high) << 32
    }

    /// Blocks of each group with a superblock that are kept for more descriptors.
    pub(crate) fn reserved_descriptor_blocks(&self) -> u64 {
        self.raw.s_reserved_gdt_blocks.get().into()
    }

    /// The blocks that no file can ever use, where a kernel has recorded them.
    pub(crate) fn recorded_overhead(&self) -> u64 {
        self.raw.s_overhead_blocks.get().into()
    }

    /// The size of the journal as its inode's backup in the superblock has it, in bytes.
    pub(crate) fn journal_size(&self) -> u64 {
        let [.., high, low] = self.raw.s_jnl_blocks.map(|word| u64::from(word.get()));
        if self.raw.s_jnl_backup_type == 1 { low | high << 32 } else { 0 }
    }

    /// How many blocks an inode table has.
    pub(crate) fn inode_table_blocks(&self) -> u64 {
        let bytes = u64::from(self.inodes_per_group) * u64::from(self.inode_size);
        bytes.div_ceil(self.block_size.into())
    }

    /// The first inode that is not reserved.
    pub(crate) fn first_inode(&self) -> u32 {
        match self.raw.s_rev_level.get() >= DYNAMIC_REVISION {
            true => self.raw.s_first_ino.get().max(GOOD_OLD_FIRST_INODE),
            false => GOOD_OLD_FIRST_INODE,
        }
    }

    /// How names are hashed where their case is not folded.
    pub(crate) fn hash_config(&self) -> HashConfig {
        HashConfig {
            version: self.raw.s_def_hash_version,
            unsigned: self.raw.s_flags.get() & FLAG_UNSIGNED_HASH != 0,
            seed: self.raw.s_hash_seed.map(|word| word.get()),
            folding: false,
        }
    }

    /// How names of folding directories are encoded: a number, and flags that say what else is to hold.
    pub(crate) fn encoding(&self) -> (u16, u16) {
        (self.raw.s_encoding.get(), self.raw.s_encoding_flags.get())
    }

    /// The inode of the journal, or zero where it is on another device.
    pub(crate) fn journal_inode(&self) -> u32 {
        self.raw.s_journal_inum.get()
    }

    /// The inode whose content lists orphans, with the feature `orphan_file`.
    pub(crate) fn orphan_file_inode(&self) -> u32 {
        self.raw.s_orphan_file_inum.get()
    }

    /// The UUID of the disk that the journal is on, where it is on one of its own.
    pub(crate) fn journal_uuid(&self) -> [u8; 16] {
        self.raw.s_journal_uuid
    }

    /// The block that guards mounts, with the feature `mmp`.
    pub(crate) fn mmp_block(&self) -> u64 {
        self.raw.s_mmp_block.get()
    }

    /// The inodes of the quota files of users, groups and projects; zero where there is none.
    pub(crate) fn quota_inodes(&self) -> [u32; 3] {
        let raw = &self.raw;
        let inodes = [&raw.s_usr_quota_inum, &raw.s_grp_quota_inum, &raw.s_prj_quota_inum];
        let tracked = self.features.has_ro_compat(ro_compat::QUOTA);
        inodes.map(|inode| if tracked { inode.get() } else { 0 })
    }

    /// The head of the list of inodes whose removal or truncation was under way.
    pub(crate) fn last_orphan(&self) -> u32 {
        self.raw.s_last_orphan.get()
    }

    pub(crate) fn set_last_orphan(&mut self, inode: u32) {
        self.raw.s_last_orphan.set(inode);
    }

    /// How many bytes of fields beyond the classic 128 new inodes get.
    pub(crate) fn wanted_extra_isize(&self) -> u16 {
        let room = self.inode_size.saturating_sub(128);
        if room == 0 {
            return 0;
        }
        let wanted = self.raw.s_want_extra_isize.get().max(self.raw.s_min_extra_isize.get());
        // 32 bytes reach to the field before the project, which is what kernels record by default.
        if wanted == 0 || wanted > room || !wanted.is_multiple_of(4) { room.min(32) } else { wanted }
    }

    /// Adds to the lifetime's count of written kibibytes and stamps the time of writing, in seconds.
    pub(crate) fn record_write(&mut self, kibibytes: u64, seconds: i64) {
        let total = self.raw.s_kbytes_written.get().saturating_add(kibibytes);
        self.raw.s_kbytes_written.set(total);
        if let Ok(seconds) = u64::try_from(seconds) {
            self.raw.s_wtime.set(seconds as u32);
            self.raw.s_wtime_hi = (seconds >> 32) as u8;
        }
    }

    /// When the volume was last mounted or written, in seconds.
    pub(crate) fn last_used(&self) -> i64 {
        let wide = |low: u32, high: u8| i64::from(low) | i64::from(high) << 32;
        let written = wide(self.raw.s_wtime.get(), self.raw.s_wtime_hi);
        written.max(wide(self.raw.s_mtime.get(), self.raw.s_mtime_hi))
    }

    /// The first block of a group.
    pub(crate) fn group_start(&self, group: u32) -> u64 {
        self.first_data_block + u64::from(group) * u64::from(self.blocks_per_group)
    }

    /// How many blocks a group has; the last one may be shorter.
    pub(crate) fn group_blocks(&self, group: u32) -> u32 {
        let rest = self.blocks.saturating_sub(self.group_start(group));
        rest.min(self.blocks_per_group.into()) as u32
    }

    /// How many bits of a group's block bitmap stand for blocks of the volume.
    pub(crate) fn group_clusters(&self, group: u32) -> u32 {
        self.group_blocks(group).div_ceil(self.cluster_blocks)
    }

    /// How many clusters every group but the last one has.
    pub(crate) fn clusters_per_group(&self) -> u32 {
        self.blocks_per_group / self.cluster_blocks
    }

    /// How many sectors of 512 bytes an inode is charged for a cluster.
    pub(crate) fn cluster_sectors(&self) -> u64 {
        u64::from(self.cluster_blocks) * (u64::from(self.block_size) / 512)
    }

    /// How many groups lie together with their bitmaps and tables.
    pub(crate) fn flex_groups(&self) -> u32 {
        match self.features.has_incompat(incompat::FLEX_BG) {
            true => 1_u32.checked_shl(self.raw.s_log_groups_per_flex.into()).unwrap_or(1),
            false => 1,
        }
    }

    /// Refuses clusters whose numbers in files and on the volume do not go together.
    pub(crate) fn check_clusters(&self) -> Result<()> {
        if self.cluster_blocks > 1 && self.first_data_block != 0 {
            return Err(Error::unsupported("clusters that do not begin with the volume"));
        }
        Ok(())
    }

    /// Which group a block belongs to, and which bit of its bitmap stands for it.
    pub(crate) fn bit_of_block(&self, block: u64) -> Result<(u32, u32)> {
        let (group, index) = self.group_of_block(block)?;
        Ok((group, index / self.cluster_blocks))
    }

    /// Which group a block belongs to, and its number within.
    pub(crate) fn group_of_block(&self, block: u64) -> Result<(u32, u32)> {
        if !self.is_valid_block(block) {
            return Err(Error::corrupt(Place::Block(block), "there is no such block"));
        }
        let index = block - self.first_data_block;
        let per_group = u64::from(self.blocks_per_group);
        Ok(((index / per_group) as u32, (index % per_group) as u32))
    }

    /// Whether a block may hold anything but the superblock.
    pub(crate) fn is_valid_block(&self, block: u64) -> bool {
        block > self.first_data_block && block < self.blocks
    }

    /// Whether a group begins with a copy of the superblock.
    pub(crate) fn has_superblock(&self, group: u32) -> bool {
        keeps_superblock(&self.features, self.raw.s_backup_bgs.map(|backup| backup.get()), group)
    }

    /// How many blocks at a group's beginning hold the superblock and the descriptors, or are kept for more.
    pub(crate) fn head_blocks(&self, group: u32) -> u64 {
        let superblock = self.has_superblock(group);
        // In a volume of clusters of small blocks the superblock stands behind the first block of the first group.
        let before = u64::from(group == 0 && self.first_data_block == 0 && self.block_size == 1024);
        let meta_bg = self.features.has_incompat(incompat::META_BG);
        let first = u64::from(self.raw.s_first_meta_bg.get());
        let per_block = self.block_size / u32::from(self.desc_size);
        let spread = meta_bg && u64::from(group / per_block) >= first;
        before
            + match (spread, superblock) {
                (true, _) => {
                    let holds = [0, 1, per_block - 1].contains(&(group % per_block));
                    u64::from(superblock) + u64::from(holds)
                }
                (false, false) => 0,
                (false, true) if meta_bg => 1 + first,
                (false, true) => 1 + self.descriptor_blocks() + self.reserved_descriptor_blocks(),
            }
    }

    /// How many blocks all descriptors together fill.
    pub(crate) fn descriptor_blocks(&self) -> u64 {
        (u64::from(self.groups) * u64::from(self.desc_size)).div_ceil(self.block_size.into())
    }

    /// The block that holds the n-th block of descriptors.
    pub(crate) fn descriptor_block(&self, index: u64) -> u64 {
        let first = u64::from(self.raw.s_first_meta_bg.get());
        if !self.features.has_incompat(incompat::META_BG) || index < first {
            // Behind the superblock's own block, which is not the first data block in a volume of clusters.
            return SUPERBLOCK_OFFSET / u64::from(self.block_size) + 1 + index;
        }
        let per_block = u64::from(self.block_size) / u64::from(self.desc_size);
        let group = index * per_block;
        if group == 0 {
            // Volumes of clusters of 1,024-byte blocks have a block before the superblock's.
            return SUPERBLOCK_OFFSET / u64::from(self.block_size) + 1;
        }
        let start = self.first_data_block + group * u64::from(self.blocks_per_group);
        let skip = u32::try_from(group).is_ok_and(|group| self.has_superblock(group));
        start + u64::from(skip)
    }
}

/// Whether a group of a volume with these features begins with a copy of the superblock; `backups` are the groups
/// that do with the feature `sparse_super2`.
pub(crate) fn keeps_superblock(features: &Features, backups: [u32; 2], group: u32) -> bool {
    let power_of = |base: u32| {
        let mut power = base;
        while power < group {
            power = power.saturating_mul(base);
        }
        power == group
    };
    if group == 0 {
        true
    } else if features.has_compat(compat::SPARSE_SUPER2) {
        backups.contains(&group)
    } else if features.has_ro_compat(ro_compat::SPARSE_SUPER) {
        group == 1 || [3, 5, 7].into_iter().any(power_of)
    } else {
        true
    }
}

/// How many blocks make a cluster.
fn cluster_blocks(raw: &RawSuperblock, features: Features) -> Result<u32> {
    if !features.has_ro_compat(ro_compat::BIGALLOC) {
        return Ok(1);
    }
    let ratio = raw.s_log_cluster_size.get().checked_sub(raw.s_log_block_size.get());
    // Kernels know clusters of up to 2^30 bytes.
    match ratio {
        Some(ratio) if raw.s_log_cluster_size.get() <= 20 => Ok(1 << ratio),
        _ => Err(corrupt("the cluster size is not between the block size and 1 GiB")),
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;
    use crate::ErrorKind;

    #[test]
    fn more_descriptors_than_memory_allows_are_refused() {
        let mut raw = RawSuperblock::new_zeroed();
        raw.s_magic.set(SUPERBLOCK_MAGIC);
        raw.s_rev_level.set(DYNAMIC_REVISION);
        raw.s_feature_incompat.set(incompat::BIT64);
        raw.s_inode_size.set(128);
        raw.s_first_data_block.set(1);
        raw.s_blocks_per_group.set(8);
        raw.s_inodes_per_group.set(8);
        let groups = MAX_GROUPS;
        raw.s_inodes_count.set(groups * 8);
        raw.s_blocks_count_lo.set(groups * 8 + 1);
        let parse = |raw: &RawSuperblock| {
            let bytes = raw.as_bytes().try_into().expect("it has 1,024 bytes");
            Superblock::parse(bytes, 1 << 40)
        };
        raw.s_desc_size.set(64);
        assert_eq!(parse(&raw).map(|superblock| superblock.groups).ok(), Some(groups));
        raw.s_desc_size.set(1024);
        assert_eq!(parse(&raw).map(|_| ()).unwrap_err().kind(), ErrorKind::Unsupported);
    }
}
