use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// An entry of a partition table (UEFI specification 2.10, table 5.2).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Entry {
    /// 0x80 on the partition that is booted, else 0.
    pub(crate) boot_indicator: u8,
    pub(crate) starting_chs: [u8; 3],
    pub(crate) os_type: u8,
    pub(crate) ending_chs: [u8; 3],
    pub(crate) starting_lba: U32,
    pub(crate) size_in_lba: U32,
}
const _: () = assert!(size_of::<Entry>() == 16);

/// The first sector of a disk, or of each link of an extended partition (UEFI 2.10, table 5.1).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Sector {
    pub(crate) boot_code: [u8; 440],
    pub(crate) unique_mbr_signature: U32,
    pub(crate) unknown: U16,
    pub(crate) entries: [Entry; 4],
    pub(crate) signature: U16,
}
const _: () = assert!(size_of::<Sector>() == 512);
const _: () = assert!(std::mem::offset_of!(Sector, entries) == 446);

/// The value of [`Sector::signature`].
pub(crate) const SIGNATURE: u16 = 0xaa55;
/// The type of the entry that covers a disk with a GPT.
pub(crate) const PROTECTIVE: u8 = 0xee;

impl Entry {
    pub(crate) fn is_empty(&self) -> bool {
        self.os_type == 0 || self.size_in_lba.get() == 0
    }

    pub(crate) fn is_extended(&self) -> bool {
        matches!(self.os_type, 0x05 | 0x0f | 0x85)
    }
}
