//! Block groups: their descriptors, read in one piece and written back block by block.

use zerocopy::{FromBytes, IntoBytes};

use crate::block_cache::BlockCache;
use crate::checksum::{crc16, crc32c};
use crate::error::{Error, Place, Result};
use crate::layout::RawGroup;
use crate::superblock::Superblock;

/// `bg_flags`: the inode bitmap and table were never written.
pub(crate) const INODE_UNINIT: u16 = 0x1;
/// `bg_flags`: the block bitmap was never written.
pub(crate) const BLOCK_UNINIT: u16 = 0x2;
/// `bg_flags`: the inode table holds zeros where it was never used.
pub(crate) const INODE_ZEROED: u16 = 0x4;

/// One group, as its descriptor has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) block_bitmap: u64,
    pub(crate) inode_bitmap: u64,
    pub(crate) inode_table: u64,
    pub(crate) free_blocks: u32,
    pub(crate) free_inodes: u32,
    pub(crate) used_dirs: u32,
    /// How many inodes at the table's end were never used.
    pub(crate) itable_unused: u32,
    pub(crate) flags: u16,
    pub(crate) block_bitmap_csum: u32,
    pub(crate) inode_bitmap_csum: u32,
}

/// All groups of a volume.
pub(crate) struct Groups {
    groups: Vec<Group>,
    /// The descriptors as they stand on the disk, in order.
    raw: Vec<u8>,
    dirty: Vec<bool>,
}

impl Groups {
    /// Reads every descriptor, each with its checksum.
    pub(crate) fn read(cache: &BlockCache, superblock: &Superblock) -> Result<Self> {
        let block_size = u64::from(superblock.block_size);
        let count = superblock.descriptor_blocks();
        if superblock.descriptor_block(count - 1) >= superblock.blocks {
            return Err(Error::corrupt(
                Place::Superblock,
                "the group descriptors lie beyond the volume's end",
            ));
        }
        let mut raw = vec![0; (count * block_size) as usize];
        let mut index = 0;
        while index < count {
            let first = superblock.descriptor_block(index);
            let run = (index..count).zip(first..).take_while(|(i, b)| superblock.descriptor_block(*i) == *b);
            let run = run.count() as u64;
            let range = (index * block_size) as usize..((index + run) * block_size) as usize;
            cache.read_data(&mut raw[range], first * block_size)?;
            index += run;
        }
        let size = usize::from(superblock.desc_size);
        raw.truncate(superblock.groups as usize * size);
        let parse = |(number, bytes): (usize, &[u8])| parse(superblock, number as u32, bytes);
        let groups = raw.chunks_exact(size).enumerate().map(parse).collect::<Result<Vec<_>>>()?;
        let dirty = vec![false; groups.len()];
        Ok(Self { groups, raw, dirty })
    }

    /// Takes over groups that a volume shall have; `raw` are the bytes of those that it had, from the first on.
    pub(crate) fn of(superblock: &Superblock, groups: Vec<Group>, mut raw: Vec<u8>) -> Result<Self> {
        groups.iter().zip(0..).try_for_each(|(group, number)| validate(superblock, number, group))?;
        raw.resize(groups.len() * usize::from(superblock.desc_size), 0);
        let dirty = vec![true; groups.len()];
        Ok(Self { groups, raw, dirty })
    }

    /// The groups, and the bytes of their descriptors as they stand on the disk.
    pub(crate) fn into_parts(self) -> (Vec<Group>, Vec<u8>) {
        (self.groups, self.raw)
    }

    /// All descriptors as they shall stand on the disk, in whole blocks.
    pub(crate) fn table(&self, superblock: &Superblock) -> Vec<u8> {
        let size = usize::from(superblock.desc_size);
        let mut table = self.raw.clone();
        for ((bytes, group), number) in table.chunks_exact_mut(size).zip(&self.groups).zip(0..) {
            encode(superblock, number, group, bytes);
        }
        table.resize(table.len().next_multiple_of(superblock.block_size as usize), 0);
        table
    }

    pub(crate) fn count(&self) -> u32 {
        self.groups.len() as u32
    }

    /// Sums up what is free; kernels bring the superblock's counts up to date only now and then.
    pub(crate) fn count_free(&self, superblock: &mut Superblock) {
        superblock.free_blocks = self.groups.iter().map(|group| u64::from(group.free_blocks)).sum();
        // Bounded by the number of inodes, which has 32 bits.
        superblock.free_inodes = self.groups.iter().map(|group| group.free_inodes).sum();
    }

    /// A group by its number.
    pub(crate) fn get(&self, number: u32) -> Result<&Group> {
        let group = self.groups.get(number as usize);
        group.ok_or_else(|| Error::corrupt(Place::Group(number), "there is no such group"))
    }

    /// A group in order to change it.
    pub(crate) fn modify(&mut self, number: u32) -> Result<&mut Group> {
        let group = self.groups.get_mut(number as usize);
        let group = group.ok_or_else(|| Error::corrupt(Place::Group(number), "there is no such group"))?;
        self.dirty[number as usize] = true;
        Ok(group)
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = &Group> {
        self.groups.iter()
    }

    /// The numbers of the groups changed since the last write.
    pub(crate) fn changed(&self) -> Vec<u32> {
        let numbers = (0..).zip(&self.dirty).filter(|(_, dirty)| **dirty);
        numbers.map(|(number, _)| number).collect()
    }

    /// Puts the changed descriptors into the cache, with their checksums.
    pub(crate) fn write(&mut self, cache: &mut BlockCache, superblock: &Superblock) -> Result<()> {
        let size = usize::from(superblock.desc_size);
        let per_block = superblock.block_size as usize / size;
        for number in self.changed() {
            let at = number as usize * size;
            let bytes = &mut self.raw[at..at + size];
            encode(superblock, number, &self.groups[number as usize], bytes);
            let block = superblock.descriptor_block((number as usize / per_block) as u64);
            let within = number as usize % per_block * size;
            cache.modify(block)?[within..within + size].copy_from_slice(bytes);
            self.dirty[number as usize] = false;
        }
        Ok(())
    }
}

/// Reads the fixed fields; a short descriptor has zeros for its upper halves.
fn raw_group(bytes: &[u8]) -> RawGroup {
    let mut full = [0; size_of::<RawGroup>()];
    let len = bytes.len().min(full.len());
    full[..len].copy_from_slice(&bytes[..len]);
    RawGroup::read_from_bytes(&full).expect("the array has the size of the structure")
}

fn parse(superblock: &Superblock, number: u32, bytes: &[u8]) -> Result<Group> {
    let (expected, actual) = checksums(superblock, number, bytes);
    if expected != actual {
        let (expected, actual) = (expected.into(), actual.into());
        return Err(Error::mismatch(Place::Group(number), "the descriptor's checksum", expected, actual));
    }
    let group = decode(superblock, bytes);
    validate(superblock, number, &group)?;
    Ok(group)
}

/// The checksum that a descriptor must have, and the one that it has; the same where there is none.
pub(crate) fn checksums(superblock: &Superblock, number: u32, bytes: &[u8]) -> (u16, u16) {
    match superblock.features.group_csum() {
        true => (checksum(superblock, number, bytes), raw_group(bytes).bg_checksum.get()),
        false => (0, 0),
    }
}

/// Whether a descriptor declares anything never written or unused, which means nothing without a checksum.
pub(crate) fn has_flags(bytes: &[u8]) -> bool {
    let raw = raw_group(bytes);
    let unused = raw.bg_itable_unused_lo != 0 || raw.bg_itable_unused_hi != 0;
    unused || raw.bg_flags.get() & (INODE_UNINIT | BLOCK_UNINIT) != 0
}

/// Reads a descriptor without believing any of it.
pub(crate) fn decode(superblock: &Superblock, bytes: &[u8]) -> Group {
    let raw = raw_group(bytes);
    let join = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    let join16 = |low: u16, high: u16| u32::from(low) | u32::from(high) << 16;
    // Without a checksum the flags and the unused count have no meaning.
    let trusted = superblock.features.group_csum();
    Group {
        block_bitmap: join(raw.bg_block_bitmap_lo.get(), raw.bg_block_bitmap_hi.get()),
        inode_bitmap: join(raw.bg_inode_bitmap_lo.get(), raw.bg_inode_bitmap_hi.get()),
        inode_table: join(raw.bg_inode_table_lo.get(), raw.bg_inode_table_hi.get()),
        free_blocks: join16(raw.bg_free_blocks_count_lo.get(), raw.bg_free_blocks_count_hi.get()),
        free_inodes: join16(raw.bg_free_inodes_count_lo.get(), raw.bg_free_inodes_count_hi.get()),
        used_dirs: join16(raw.bg_used_dirs_count_lo.get(), raw.bg_used_dirs_count_hi.get()),
        itable_unused: match trusted {
            true => join16(raw.bg_itable_unused_lo.get(), raw.bg_itable_unused_hi.get()),
            false => 0,
        },
        flags: if trusted { raw.bg_flags.get() } else { 0 },
        block_bitmap_csum: join16(raw.bg_block_bitmap_csum_lo.get(), raw.bg_block_bitmap_csum_hi.get()),
        inode_bitmap_csum: join16(raw.bg_inode_bitmap_csum_lo.get(), raw.bg_inode_bitmap_csum_hi.get()),
    }
}

/// Checks what later arithmetic relies on.
pub(crate) fn validate(superblock: &Superblock, number: u32, group: &Group) -> Result<()> {
    let corrupt = |problem| Err(Error::corrupt(Place::Group(number), problem));
    let table = u64::from(superblock.inodes_per_group) * u64::from(superblock.inode_size);
    let table_blocks = table.div_ceil(superblock.block_size.into());
    let table_end = group.inode_table.saturating_add(table_blocks);
    let bitmaps = [group.block_bitmap, group.inode_bitmap];
    if !bitmaps.into_iter().all(|block| superblock.is_valid_block(block)) {
        return corrupt("a bitmap lies outside the volume");
    }
    if !superblock.is_valid_block(group.inode_table) || table_end > superblock.blocks {
        return corrupt("the inode table lies outside the volume");
    }
    if group.free_inodes > superblock.inodes_per_group || group.itable_unused > superblock.inodes_per_group {
        return corrupt("more inodes are free than there are");
    }
    Ok(())
}

/// Patches the fields into the bytes of a descriptor, and its checksum.
pub(crate) fn encode(superblock: &Superblock, number: u32, group: &Group, bytes: &mut [u8]) {
    let mut raw = raw_group(bytes);
    raw.bg_block_bitmap_lo.set(group.block_bitmap as u32);
    raw.bg_block_bitmap_hi.set((group.block_bitmap >> 32) as u32);
    raw.bg_inode_bitmap_lo.set(group.inode_bitmap as u32);
    raw.bg_inode_bitmap_hi.set((group.inode_bitmap >> 32) as u32);
    raw.bg_inode_table_lo.set(group.inode_table as u32);
    raw.bg_inode_table_hi.set((group.inode_table >> 32) as u32);
    raw.bg_free_blocks_count_lo.set(group.free_blocks as u16);
    raw.bg_free_blocks_count_hi.set((group.free_blocks >> 16) as u16);
    raw.bg_free_inodes_count_lo.set(group.free_inodes as u16);
    raw.bg_free_inodes_count_hi.set((group.free_inodes >> 16) as u16);
    raw.bg_used_dirs_count_lo.set(group.used_dirs as u16);
    raw.bg_used_dirs_count_hi.set((group.used_dirs >> 16) as u16);
    if superblock.features.group_csum() {
        raw.bg_itable_unused_lo.set(group.itable_unused as u16);
        raw.bg_itable_unused_hi.set((group.itable_unused >> 16) as u16);
        raw.bg_flags.set(group.flags);
    } else {
        raw.bg_itable_unused_lo.set(0);
        raw.bg_itable_unused_hi.set(0);
        raw.bg_flags.set(0);
        raw.bg_checksum.set(0);
    }
    if superblock.features.metadata_csum() {
        raw.bg_block_bitmap_csum_lo.set(group.block_bitmap_csum as u16);
        raw.bg_block_bitmap_csum_hi.set((group.block_bitmap_csum >> 16) as u16);
        raw.bg_inode_bitmap_csum_lo.set(group.inode_bitmap_csum as u16);
        raw.bg_inode_bitmap_csum_hi.set((group.inode_bitmap_csum >> 16) as u16);
    }
    let len = bytes.len().min(size_of::<RawGroup>());
    bytes[..len].copy_from_slice(&raw.as_bytes()[..len]);
    if superblock.features.group_csum() {
        raw.bg_checksum.set(checksum(superblock, number, bytes));
        bytes[..len].copy_from_slice(&raw.as_bytes()[..len]);
    }
}

/// Sets the checksum of a descriptor, where there is one.
pub(crate) fn seal(superblock: &Superblock, number: u32, bytes: &mut [u8]) {
    if superblock.features.group_csum() {
        const FIELD: usize = std::mem::offset_of!(RawGroup, bg_checksum);
        let checksum = checksum(superblock, number, bytes);
        bytes[FIELD..FIELD + 2].copy_from_slice(&checksum.to_le_bytes());
    }
}

/// The checksum of a descriptor: over its number and its bytes, the checksum itself left out.
fn checksum(superblock: &Superblock, number: u32, bytes: &[u8]) -> u16 {
    const FIELD: usize = std::mem::offset_of!(RawGroup, bg_checksum);
    let (before, after) = (&bytes[..FIELD], &bytes[FIELD + 2..]);
    if superblock.features.metadata_csum() {
        // The field counts as zero.
        let crc = crc32c(superblock.checksum_seed, &number.to_le_bytes());
        return crc32c(crc32c(crc32c(crc, before), &[0; 2]), after) as u16;
    }
    // The field is skipped.
    let crc = crc16(crc16(!0, superblock.uuid().as_bytes()), &number.to_le_bytes());
    crc16(crc16(crc, before), after)
}
