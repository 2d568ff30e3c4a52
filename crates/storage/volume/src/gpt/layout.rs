use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The header of a table (UEFI specification 2.10, table 5.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawHeader {
    pub(crate) signature: [u8; 8],
    pub(crate) revision: U32,
    pub(crate) header_size: U32,
    pub(crate) header_crc32: U32,
    pub(crate) reserved: U32,
    pub(crate) my_lba: U64,
    pub(crate) alternate_lba: U64,
    pub(crate) first_usable_lba: U64,
    pub(crate) last_usable_lba: U64,
    pub(crate) disk_guid: [u8; 16],
    pub(crate) partition_entry_lba: U64,
    pub(crate) number_of_partition_entries: U32,
    pub(crate) size_of_partition_entry: U32,
    pub(crate) partition_entry_array_crc32: U32,
}
const _: () = assert!(size_of::<RawHeader>() == 92);
const _: () = assert!(std::mem::offset_of!(RawHeader, disk_guid) == 56);

/// The first 128 bytes of an entry (UEFI 2.10, table 5.6); longer entries have room behind it.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawEntry {
    pub(crate) partition_type_guid: [u8; 16],
    pub(crate) unique_partition_guid: [u8; 16],
    pub(crate) starting_lba: U64,
    /// The last sector itself, not the one after it.
    pub(crate) ending_lba: U64,
    pub(crate) attributes: U64,
    pub(crate) partition_name: [U16; 36],
}
const _: () = assert!(size_of::<RawEntry>() == 128);

pub(crate) const SIGNATURE: [u8; 8] = *b"EFI PART";
pub(crate) const REVISION: u32 = 0x0001_0000;
/// The attribute bit "legacy BIOS bootable".
pub(crate) const LEGACY_BIOS_BOOTABLE: u64 = 1 << 2;
