//! One inode: its record in the table, validated into fields, and encoded again.

use vmwright_vfs::{DeviceNumber, FileType, Timestamp};
use zerocopy::{FromBytes, IntoBytes};

use crate::checksum::crc32c;
use crate::error::{Error, Place, Result};
use crate::features::{incompat, ro_compat};
use crate::layout::{CLASSIC_INODE_SIZE, RawInode};
use crate::superblock::Superblock;

/// The root directory.
pub(crate) const ROOT_INODE: u32 = 2;

/// Bits of `i_flags`.
pub(crate) mod flags {
    /// Nothing of the inode may change.
    pub(crate) const IMMUTABLE: u32 = 0x10;
    /// Content and names may only be added.
    pub(crate) const APPEND: u32 = 0x20;
    pub(crate) const ENCRYPT: u32 = 0x800;
    /// The directory is indexed by hashes.
    pub(crate) const INDEX: u32 = 0x1000;
    /// A flag of AFS servers, which needs a feature.
    pub(crate) const IMAGIC: u32 = 0x2000;
    /// `i_blocks` counts filesystem blocks.
    pub(crate) const HUGE_FILE: u32 = 0x4_0000;
    pub(crate) const EXTENTS: u32 = 0x8_0000;
    pub(crate) const VERITY: u32 = 0x10_0000;
    /// The inode holds the value of a large extended attribute.
    pub(crate) const EA_INODE: u32 = 0x20_0000;
    pub(crate) const INLINE_DATA: u32 = 0x1000_0000;
    /// New entries of the directory take over its project.
    pub(crate) const PROJECT_INHERIT: u32 = 0x2000_0000;
    pub(crate) const CASEFOLD: u32 = 0x4000_0000;
}

/// The largest content that a symbolic link keeps in its inode, exclusive.
const FAST_SYMLINK: u64 = 60;

/// The upper bits of `i_mode`, and the file type of directory entries.
const TYPES: [(u16, FileType, u8); 7] = [
    (0x8000, FileType::Regular, 1),
    (0x4000, FileType::Directory, 2),
    (0x2000, FileType::CharDevice, 3),
    (0x6000, FileType::BlockDevice, 4),
    (0x1000, FileType::Fifo, 5),
    (0xc000, FileType::Socket, 6),
    (0xa000, FileType::Symlink, 7),
];

/// The upper bits of `i_mode` for a type.
pub(crate) fn type_bits(file_type: FileType) -> u16 {
    TYPES.iter().find(|(_, known, _)| *known == file_type).map_or(0, |(bits, _, _)| *bits)
}

/// The number that directory entries have for a type.
pub(crate) fn entry_type(file_type: FileType) -> u8 {
    TYPES.iter().find(|(_, known, _)| *known == file_type).map_or(0, |(_, _, number)| *number)
}

/// The type that a directory entry's number stands for; `None` where it says nothing.
pub(crate) fn type_of_entry(number: u8) -> Option<FileType> {
    TYPES.iter().find(|(_, _, known)| *known == number).map(|(_, file_type, _)| *file_type)
}

/// An inode. Fields that are not named here, unknown ones among them, are kept as they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Inode {
    pub(crate) number: u32,
    pub(crate) file_type: FileType,
    /// Permission, set-id and sticky bits.
    pub(crate) permissions: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    pub(crate) accessed: Timestamp,
    pub(crate) changed: Timestamp,
    pub(crate) modified: Timestamp,
    pub(crate) created: Option<Timestamp>,
    /// When it was removed; before that the next orphan's number.
    pub(crate) dtime: u32,
    pub(crate) links: u16,
    /// The space taken, in units of 512 bytes.
    pub(crate) sectors: u64,
    pub(crate) flags: u32,
    /// The block map, the extent tree's root, a short link's target, a device, or inline content.
    pub(crate) block: [u8; 60],
    pub(crate) generation: u32,
    /// The block of extended attributes, or zero.
    pub(crate) xattr_block: u64,
    pub(crate) project: u32,
    /// How many bytes of fields follow the classic 128.
    pub(crate) extra_isize: u16,
    /// The whole record. Behind the fields it holds the inode's own extended attributes.
    pub(crate) record: Vec<u8>,
}

impl Inode {
    /// Validates the record of an inode that is in use.
    pub(crate) fn parse(superblock: &Superblock, number: u32, record: &[u8]) -> Result<Self> {
        let place = Place::Inode(number.into());
        let raw = raw_inode(record);
        let extra_isize = extra_isize(superblock, number, record, &raw)?;
        verify(superblock, number, record, &raw, extra_isize)?;
        let mode = raw.i_mode.get();
        let known = TYPES.iter().find(|(bits, _, _)| mode & 0xf000 == *bits);
        let Some((_, file_type, _)) = known else {
            let problem =
                if mode == 0 { "it is in use but was never initialised" } else { "its type is unknown" };
            return Err(Error::corrupt(place, problem));
        };
        let join16 = |low: u16, high: u16| u32::from(low) | u32::from(high) << 16;
        let size = u64::from(raw.i_size_lo.get()) | u64::from(raw.i_size_high.get()) << 32;
        if size > i64::MAX as u64 {
            return Err(Error::corrupt(place, "its size is negative"));
        }
        let has = |end: usize| CLASSIC_INODE_SIZE + usize::from(extra_isize) >= end;
        let time =
            |seconds: u32, extra: u32, end: usize| decode_time(seconds, if has(end) { extra } else { 0 });
        Ok(Self {
            number,
            file_type: *file_type,
            permissions: mode & 0xfff,
            uid: join16(raw.i_uid.get(), raw.l_i_uid_high.get()),
            gid: join16(raw.i_gid.get(), raw.l_i_gid_high.get()),
            size,
            changed: time(raw.i_ctime.get(), raw.i_ctime_extra.get(), 0x88),
            modified: time(raw.i_mtime.get(), raw.i_mtime_extra.get(), 0x8c),
            accessed: time(raw.i_atime.get(), raw.i_atime_extra.get(), 0x90),
            created: has(0x98).then(|| decode_time(raw.i_crtime.get(), raw.i_crtime_extra.get())),
            dtime: raw.i_dtime.get(),
            links: raw.i_links_count.get(),
            sectors: decode_sectors(superblock, &raw),
            flags: raw.i_flags.get(),
            block: raw.i_block,
            generation: raw.i_generation.get(),
            xattr_block: decode_xattr_block(superblock, &raw),
            project: if has(0xa0) { raw.i_projid.get() } else { 0 },
            extra_isize,
            record: record.to_vec(),
        })
    }

    /// Validates a record whose checksum is of no concern, and makes that right.
    pub(crate) fn parse_unsealed(superblock: &Superblock, number: u32, mut record: Vec<u8>) -> Result<Self> {
        extra_isize(superblock, number, &record, &raw_inode(&record))?;
        seal(superblock, number, &mut record);
        Self::parse(superblock, number, &record)
    }

    /// Makes an inode that nothing has used yet.
    pub(crate) fn new(superblock: &Superblock, number: u32, file_type: FileType, now: Timestamp) -> Self {
        let extra_isize = superblock.wanted_extra_isize();
        let has_created = CLASSIC_INODE_SIZE + usize::from(extra_isize) >= 0x98;
        Self {
            number,
            file_type,
            permissions: 0,
            uid: 0,
            gid: 0,
            size: 0,
            accessed: now,
            changed: now,
            modified: now,
            created: has_created.then_some(now),
            dtime: 0,
            links: 0,
            sectors: 0,
            flags: 0,
            block: [0; 60],
            generation: 0,
            xattr_block: 0,
            project: 0,
            extra_isize,
            record: vec![0; superblock.inode_size.into()],
        }
    }

    /// Encodes the record with its checksum.
    pub(crate) fn encode(&self, superblock: &Superblock) -> Vec<u8> {
        let mut raw = raw_inode(&self.record);
        let has = |end: usize| CLASSIC_INODE_SIZE + usize::from(self.extra_isize) >= end;
        raw.i_mode.set(type_bits(self.file_type) | self.permissions);
        raw.i_uid.set(self.uid as u16);
        raw.l_i_uid_high.set((self.uid >> 16) as u16);
        raw.i_gid.set(self.gid as u16);
        raw.l_i_gid_high.set((self.gid >> 16) as u16);
        raw.i_size_lo.set(self.size as u32);
        raw.i_size_high.set((self.size >> 32) as u32);
        let wide = has(0x90);
        let ((ctime, ctime_extra), (mtime, mtime_extra), (atime, atime_extra)) = (
            encode_time(self.changed, wide),
            encode_time(self.modified, wide),
            encode_time(self.accessed, wide),
        );
        raw.i_ctime.set(ctime);
        raw.i_mtime.set(mtime);
        raw.i_atime.set(atime);
        raw.i_dtime.set(self.dtime);
        raw.i_links_count.set(self.links);
        raw.i_block = self.block;
        raw.i_generation.set(self.generation);
        raw.i_file_acl_lo.set(self.xattr_block as u32);
        if superblock.features.has_incompat(incompat::BIT64) {
            raw.l_i_file_acl_high.set((self.xattr_block >> 32) as u16);
        }
        let flags = encode_sectors(superblock, self.sectors, self.flags, &mut raw);
        raw.i_flags.set(flags);
        if wide {
            raw.i_ctime_extra.set(ctime_extra);
            raw.i_mtime_extra.set(mtime_extra);
            raw.i_atime_extra.set(atime_extra);
        }
        if let (true, Some(created)) = (has(0x98), self.created) {
            let (crtime, crtime_extra) = encode_time(created, true);
            raw.i_crtime.set(crtime);
            raw.i_crtime_extra.set(crtime_extra);
        }
        if has(0xa0) {
            raw.i_projid.set(self.project);
        }
        raw.i_extra_isize.set(self.extra_isize);
        let mut record = self.record.clone();
        // What lies beyond the recorded fields belongs to extended attributes.
        let len =
            (CLASSIC_INODE_SIZE + usize::from(self.extra_isize)).min(size_of::<RawInode>()).min(record.len());
        record[..len].copy_from_slice(&raw.as_bytes()[..len]);
        seal(superblock, self.number, &mut record);
        record
    }

    pub(crate) fn is_directory(&self) -> bool {
        self.file_type == FileType::Directory
    }

    pub(crate) fn has_flag(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// The seed of the checksums of all metadata that belongs to this inode.
    pub(crate) fn checksum_seed(&self, superblock: &Superblock) -> Option<u32> {
        let seed = seed(superblock, self.number, self.generation);
        superblock.features.metadata_csum().then_some(seed)
    }

    /// The number of users of an inode that holds the value of an attribute, kept in `i_ctime` and `i_version`.
    pub(crate) fn value_users(&self) -> u64 {
        let low = raw_inode(&self.record).i_version.get();
        u64::from(self.changed.seconds as u32) << 32 | u64::from(low)
    }

    /// Records the number of users of an inode that holds the value of an attribute.
    pub(crate) fn set_value_users(&mut self, users: u64) {
        let high = (users >> 32) as u32;
        self.changed = Timestamp { seconds: high.cast_signed().into(), nanoseconds: 0 };
        self.record[VERSION..VERSION + 4].copy_from_slice(&(users as u32).to_le_bytes());
    }

    /// The hash of the value that the inode holds, kept in `i_atime`.
    pub(crate) fn value_hash(&self) -> u32 {
        self.accessed.seconds as u32
    }

    /// Records the hash of the value that the inode holds.
    pub(crate) fn set_value_hash(&mut self, hash: u32) {
        // As a signed number it needs no more bits of time than the smallest inodes have.
        self.accessed = Timestamp { seconds: hash.cast_signed().into(), nanoseconds: 0 };
    }

    /// Whether this is a symbolic link that keeps its target in the inode.
    pub(crate) fn is_fast_symlink(&self, superblock: &Superblock) -> bool {
        let xattr_sectors = if self.xattr_block == 0 { 0 } else { superblock.cluster_sectors() };
        // Values of attributes in inodes of their own are counted in sectors too.
        let blockless = superblock.features.has_incompat(incompat::EA_INODE) || self.sectors <= xattr_sectors;
        self.file_type == FileType::Symlink
            && !self.has_flag(flags::INLINE_DATA | flags::EXTENTS)
            && self.size < FAST_SYMLINK
            && blockless
    }

    /// Whether the inode's content is in blocks at all.
    pub(crate) fn has_blocks(&self, superblock: &Superblock) -> bool {
        match self.file_type {
            FileType::Regular | FileType::Directory => !self.has_flag(flags::INLINE_DATA),
            FileType::Symlink => !self.has_flag(flags::INLINE_DATA) && !self.is_fast_symlink(superblock),
            _ => false,
        }
    }

    /// The device that a device node stands for.
    pub(crate) fn device(&self) -> DeviceNumber {
        let word = |at: usize| {
            let b = &self.block;
            u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
        };
        match (self.file_type, word(0), word(4)) {
            (FileType::CharDevice | FileType::BlockDevice, 0, wide) => {
                DeviceNumber { major: (wide >> 8) & 0xfff, minor: (wide & 0xff) | ((wide >> 12) & 0xf_ff00) }
            }
            (FileType::CharDevice | FileType::BlockDevice, old, _) => {
                DeviceNumber { major: (old >> 8) & 0xff, minor: old & 0xff }
            }
            _ => DeviceNumber::default(),
        }
    }

    /// Records the device that a device node stands for; the old form where it fits, as kernels do.
    pub(crate) fn set_device(&mut self, device: DeviceNumber) -> Result<()> {
        let DeviceNumber { major, minor } = device;
        if major > 0xfff || minor > 0xf_ffff {
            return Err(Error::plain(crate::ErrorKind::InvalidInput, "the device number is too large"));
        }
        let (old, wide) = match major < 256 && minor < 256 {
            true => (major << 8 | minor, 0),
            false => (0, (minor & 0xff) | major << 8 | (minor & 0xf_ff00) << 12),
        };
        self.block[..4].copy_from_slice(&old.to_le_bytes());
        self.block[4..8].copy_from_slice(&wide.to_le_bytes());
        Ok(())
    }
}

/// The inode that a record held, where it was in use and is not damaged; its checksum is of no concern.
pub(crate) fn in_use(superblock: &Superblock, number: u32, record: &[u8]) -> Option<Inode> {
    let raw = raw_inode(record);
    if raw.i_mode.get() == 0 || raw.i_links_count.get() == 0 {
        return None;
    }
    Inode::parse_unsealed(superblock, number, record.to_vec()).ok()
}

pub(crate) fn raw_inode(record: &[u8]) -> RawInode {
    let mut full = [0; size_of::<RawInode>()];
    let len = record.len().min(full.len());
    full[..len].copy_from_slice(&record[..len]);
    RawInode::read_from_bytes(&full).expect("the array has the size of the structure")
}

fn extra_isize(superblock: &Superblock, number: u32, record: &[u8], raw: &RawInode) -> Result<u16> {
    if record.len() <= CLASSIC_INODE_SIZE {
        return Ok(0);
    }
    let extra = raw.i_extra_isize.get();
    let room = superblock.inode_size - CLASSIC_INODE_SIZE as u16;
    if extra > room || !extra.is_multiple_of(4) {
        return Err(Error::corrupt(Place::Inode(number.into()), "its extra size is impossible"));
    }
    Ok(extra)
}

/// The seed of the checksums of all metadata of an inode.
pub(crate) fn seed(superblock: &Superblock, number: u32, generation: u32) -> u32 {
    crc32c(crc32c(superblock.checksum_seed, &number.to_le_bytes()), &generation.to_le_bytes())
}

const VERSION: usize = std::mem::offset_of!(RawInode, i_version);
const CHECKSUM_LOW: usize = std::mem::offset_of!(RawInode, l_i_checksum_lo);
const CHECKSUM_HIGH: usize = std::mem::offset_of!(RawInode, i_checksum_hi);

/// Whether the record has the upper half of the checksum.
fn has_checksum_high(record: &[u8], extra_isize: u16) -> bool {
    record.len() > CLASSIC_INODE_SIZE && extra_isize >= 4
}

/// The checksum of a record, its own fields counted as zero.
fn checksum(superblock: &Superblock, number: u32, record: &[u8], generation: u32, extra_isize: u16) -> u32 {
    let mut crc = seed(superblock, number, generation);
    crc = crc32c(crc, &record[..CHECKSUM_LOW]);
    crc = crc32c(crc, &[0; 2]);
    if !has_checksum_high(record, extra_isize) {
        return crc32c(crc, &record[CHECKSUM_LOW + 2..]) & 0xffff;
    }
    crc = crc32c(crc, &record[CHECKSUM_LOW + 2..CHECKSUM_HIGH]);
    crc = crc32c(crc, &[0; 2]);
    crc32c(crc, &record[CHECKSUM_HIGH + 2..])
}

/// The checksum that a record must have, and the one that it has; the same where there is none.
pub(crate) fn checksums(
    superblock: &Superblock,
    number: u32,
    record: &[u8],
    raw: &RawInode,
    extra_isize: u16,
) -> (u32, u32) {
    if !superblock.features.metadata_csum() {
        return (0, 0);
    }
    let high = if has_checksum_high(record, extra_isize) { raw.i_checksum_hi.get() } else { 0 };
    let found = u32::from(raw.l_i_checksum_lo.get()) | u32::from(high) << 16;
    (checksum(superblock, number, record, raw.i_generation.get(), extra_isize), found)
}

fn verify(
    superblock: &Superblock,
    number: u32,
    record: &[u8],
    raw: &RawInode,
    extra_isize: u16,
) -> Result<()> {
    let (expected, found) = checksums(superblock, number, record, raw, extra_isize);
    if found != expected {
        let place = Place::Inode(number.into());
        return Err(Error::mismatch(place, "its checksum", expected.into(), found.into()));
    }
    Ok(())
}

/// Sets the checksum of a record.
pub(crate) fn seal(superblock: &Superblock, number: u32, record: &mut [u8]) {
    if !superblock.features.metadata_csum() {
        return;
    }
    let raw = raw_inode(record);
    let extra_isize = if record.len() > CLASSIC_INODE_SIZE { raw.i_extra_isize.get() } else { 0 };
    let crc = checksum(superblock, number, record, raw.i_generation.get(), extra_isize);
    record[CHECKSUM_LOW..CHECKSUM_LOW + 2].copy_from_slice(&(crc as u16).to_le_bytes());
    if has_checksum_high(record, extra_isize) {
        record[CHECKSUM_HIGH..CHECKSUM_HIGH + 2].copy_from_slice(&((crc >> 16) as u16).to_le_bytes());
    }
}

/// Seconds are signed; the two low bits of `extra` count eras of 2^32 seconds, the rest is nanoseconds.
fn decode_time(seconds: u32, extra: u32) -> Timestamp {
    let era = i64::from(extra & 3) << 32;
    Timestamp { seconds: i64::from(seconds.cast_signed()) + era, nanoseconds: (extra >> 2).min(999_999_999) }
}

/// Times outside of what the record can hold become the nearest that it can.
fn encode_time(time: Timestamp, wide: bool) -> (u32, u32) {
    let earliest = i64::from(i32::MIN);
    let latest = if wide { (3_i64 << 32) + i64::from(i32::MAX) } else { i64::from(i32::MAX) };
    let seconds = time.seconds.clamp(earliest, latest);
    let low = seconds as u32;
    let era = ((seconds - i64::from(low.cast_signed())) >> 32) as u32;
    (low, time.nanoseconds.min(999_999_999) << 2 | era & 3)
}

fn decode_sectors(superblock: &Superblock, raw: &RawInode) -> u64 {
    let low = u64::from(raw.i_blocks_lo.get());
    if !superblock.features.has_ro_compat(ro_compat::HUGE_FILE) {
        return low;
    }
    let count = low | u64::from(raw.l_i_blocks_high.get()) << 32;
    match raw.i_flags.get() & flags::HUGE_FILE != 0 {
        true => count.saturating_mul(u64::from(superblock.block_size) / 512),
        false => count,
    }
}

/// Encodes the space taken; answers the inode's flags, one of which says in what unit it is counted.
fn encode_sectors(superblock: &Superblock, sectors: u64, old_flags: u32, raw: &mut RawInode) -> u32 {
    let per_block = u64::from(superblock.block_size) / 512;
    let in_blocks = superblock.features.has_ro_compat(ro_compat::HUGE_FILE) && sectors >> 48 != 0;
    let count = if in_blocks { sectors / per_block } else { sectors };
    raw.i_blocks_lo.set(count as u32);
    if superblock.features.has_ro_compat(ro_compat::HUGE_FILE) {
        raw.l_i_blocks_high.set((count >> 32) as u16);
    }
    if in_blocks { old_flags | flags::HUGE_FILE } else { old_flags & !flags::HUGE_FILE }
}

fn decode_xattr_block(superblock: &Superblock, raw: &RawInode) -> u64 {
    let high = match superblock.features.has_incompat(incompat::BIT64) {
        true => raw.l_i_file_acl_high.get(),
        false => 0,
    };
    u64::from(raw.i_file_acl_lo.get()) | u64::from(high) << 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_time_of_the_34_bit_range_survives(seconds in -(1_i64 << 31)..(7_i64 << 31), ns in 0_u32..1_000_000_000) {
            let time = Timestamp { seconds, nanoseconds: ns };
            let (low, extra) = encode_time(time, true);
            prop_assert_eq!(decode_time(low, extra), time);
        }
    }

    #[test]
    fn times_out_of_range_become_the_nearest() {
        let far = Timestamp { seconds: i64::MAX, nanoseconds: 5 };
        let (low, _) = encode_time(far, false);
        assert_eq!(decode_time(low, 0).seconds, i64::from(i32::MAX));
        let (low, extra) = encode_time(far, true);
        assert_eq!(decode_time(low, extra).seconds, (7_i64 << 31) - 1);
    }
}
