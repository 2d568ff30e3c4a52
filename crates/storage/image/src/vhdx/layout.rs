//! The structures of the file, after [MS-VHDX] sections 2.2 to 2.6; all numbers are little-endian.
//!
//! [MS-VHDX]: https://learn.microsoft.com/en-us/openspecs/windows_protocols/ms-vhdx/

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The unit in which everything but the inside of regions is placed.
pub(super) const MIB: u64 = 1 << 20;
/// The unit of the log, and of our cache of metadata.
pub(super) const SECTOR: u64 = 4096;
/// The first bytes of a file.
pub(super) const FILE_SIGNATURE: &[u8; 8] = b"vhdxfile";
/// Where the two headers are.
pub(super) const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
/// Where the two region tables are.
pub(super) const REGION_TABLES: [u64; 2] = [192 << 10, 256 << 10];
/// The length of a region table, and of the table at the start of the metadata region.
pub(super) const TABLE_LEN: usize = 64 << 10;
/// The most entries of a region table or metadata table.
pub(super) const MAX_TABLE_ENTRIES: u16 = 2047;
/// The most bytes that a disk may have.
pub(super) const MAX_SIZE: u64 = 64 << 40;
/// The smallest and the largest block.
pub(super) const BLOCK_SIZES: std::ops::RangeInclusive<u32> = 1 << 20..=256 << 20;
/// How many sectors of the disk one sector bitmap block covers.
pub(super) const SECTORS_PER_BITMAP: u64 = 1 << 23;

/// A GUID as its bytes stand in the file.
pub(super) type Guid = [u8; 16];

/// The GUID of nothing.
pub(super) const NO_GUID: Guid = [0; 16];

const fn guid(text: &str) -> Guid {
    match uuid::Uuid::try_parse(text) {
        Ok(uuid) => uuid.to_bytes_le(),
        Err(_) => NO_GUID,
    }
}

/// Of the region that holds the block allocation table.
pub(super) const REGION_BAT: Guid = guid("2dc27766-f623-4200-9d64-115e9bfd4a08");
/// Of the region that holds the metadata.
pub(super) const REGION_METADATA: Guid = guid("8b7ca206-4790-4b9a-b8fe-575f050f886e");
/// Of the metadata item with the block size and the flags.
pub(super) const ITEM_FILE_PARAMETERS: Guid = guid("caa16737-fa36-4d43-b3b6-33f0aa44e76b");
/// Of the metadata item with the size of the disk.
pub(super) const ITEM_VIRTUAL_DISK_SIZE: Guid = guid("2fa54224-cd1b-4876-b211-5dbed83bf4b8");
/// Of the metadata item with the identity of the disk.
pub(super) const ITEM_VIRTUAL_DISK_ID: Guid = guid("beca12ab-b2e6-4523-93ef-c309e000c746");
/// Of the metadata item with the logical sector size.
pub(super) const ITEM_LOGICAL_SECTOR_SIZE: Guid = guid("8141bf1d-a96f-4709-ba47-f233a8faab5f");
/// Of the metadata item with the physical sector size.
pub(super) const ITEM_PHYSICAL_SECTOR_SIZE: Guid = guid("cda348c7-445d-4471-9cc9-e9885251c556");
/// Of the metadata item that says where the parent is.
pub(super) const ITEM_PARENT_LOCATOR: Guid = guid("a8d35f2d-b30b-454d-abf7-d3d84834ab0c");
/// Of the only type of parent locator there is.
pub(super) const LOCATOR_VHDX: Guid = guid("b04aefb7-d19e-4a81-b789-25b8e9445913");

/// A header (2.2.2).
#[derive(Debug, Clone, Copy, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawHeader {
    pub(super) signature: [u8; 4],
    pub(super) checksum: U32,
    pub(super) sequence_number: U64,
    pub(super) file_write_guid: Guid,
    pub(super) data_write_guid: Guid,
    pub(super) log_guid: Guid,
    pub(super) log_version: U16,
    pub(super) version: U16,
    pub(super) log_length: U32,
    pub(super) log_offset: U64,
    pub(super) reserved: [u8; 4016],
}

/// The beginning of a region table (2.2.3.1).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawRegionTable {
    pub(super) signature: [u8; 4],
    pub(super) checksum: U32,
    pub(super) entry_count: U32,
    pub(super) reserved: U32,
}

/// One region (2.2.3.2).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawRegion {
    pub(super) guid: Guid,
    pub(super) file_offset: U64,
    pub(super) length: U32,
    pub(super) required: U32,
}

/// The beginning of the metadata table (2.6.1.1).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawMetadataTable {
    pub(super) signature: [u8; 8],
    pub(super) reserved: U16,
    pub(super) entry_count: U16,
    pub(super) reserved2: [u8; 20],
}

/// One metadata item (2.6.1.2).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawItem {
    pub(super) item_id: Guid,
    pub(super) offset: U32,
    pub(super) length: U32,
    pub(super) flags: U32,
    pub(super) reserved: U32,
}

/// Of an item: made by a user, not by the format.
pub(super) const ITEM_IS_USER: u32 = 1;
/// Of an item: about the disk, not about the file.
pub(super) const ITEM_IS_VIRTUAL_DISK: u32 = 2;
/// Of an item: who does not know it must not open the image.
pub(super) const ITEM_IS_REQUIRED: u32 = 4;

/// Of the file parameters: blocks keep their place, so the image is fixed.
pub(super) const LEAVE_BLOCKS_ALLOCATED: u32 = 1;
/// Of the file parameters: the image is differencing.
pub(super) const HAS_PARENT: u32 = 2;

/// The beginning of a parent locator (2.6.2.6.1).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawLocator {
    pub(super) locator_type: Guid,
    pub(super) reserved: U16,
    pub(super) key_value_count: U16,
}

/// One key with its value, by their places in the locator (2.6.2.6.2).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawLocatorEntry {
    pub(super) key_offset: U32,
    pub(super) value_offset: U32,
    pub(super) key_length: U16,
    pub(super) value_length: U16,
}

/// The beginning of a log entry (2.3.1.1).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawLogEntry {
    pub(super) signature: [u8; 4],
    pub(super) checksum: U32,
    pub(super) entry_length: U32,
    pub(super) tail: U32,
    pub(super) sequence_number: U64,
    pub(super) descriptor_count: U32,
    pub(super) reserved: U32,
    pub(super) log_guid: Guid,
    pub(super) flushed_file_offset: U64,
    pub(super) last_file_offset: U64,
}

/// A zero or data descriptor (2.3.1.2, 2.3.1.3).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawDescriptor {
    pub(super) signature: [u8; 4],
    /// Reserved in a zero descriptor.
    pub(super) trailing_bytes: [u8; 4],
    /// The number of zeros in a zero descriptor.
    pub(super) leading_bytes: U64,
    pub(super) file_offset: U64,
    pub(super) sequence_number: U64,
}

/// A sector of data in the log (2.3.1.4).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawDataSector {
    pub(super) signature: [u8; 4],
    pub(super) sequence_high: U32,
    pub(super) data: [u8; 4084],
    pub(super) sequence_low: U32,
}

const _: () = {
    assert!(size_of::<RawHeader>() == 4096);
    assert!(size_of::<RawRegionTable>() == 16 && size_of::<RawRegion>() == 32);
    assert!(size_of::<RawMetadataTable>() == 32 && size_of::<RawItem>() == 32);
    assert!(size_of::<RawLocator>() == 20 && size_of::<RawLocatorEntry>() == 12);
    assert!(size_of::<RawLogEntry>() == 64 && size_of::<RawDescriptor>() == 32);
    assert!(size_of::<RawDataSector>() == 4096);
    assert!(REGION_BAT[0] == 0x66 && ITEM_PARENT_LOCATOR[0] == 0x2d && LOCATOR_VHDX[0] == 0xb7);
};

/// The states of a payload block (2.5.1.1).
pub(super) mod state {
    /// Never written; a parent shows.
    pub(crate) const NOT_PRESENT: u64 = 0;
    /// Of no meaning any more.
    pub(crate) const UNDEFINED: u64 = 1;
    /// Zeros.
    pub(crate) const ZERO: u64 = 2;
    /// Given back by the guest.
    pub(crate) const UNMAPPED: u64 = 3;
    /// As [`UNMAPPED`], in images of version 0.95 of the specification.
    pub(crate) const UNMAPPED_095: u64 = 5;
    /// All sectors are in the file. Of a sector bitmap block: in the file.
    pub(crate) const FULLY_PRESENT: u64 = 6;
    /// The sector bitmap says which sectors are in the file.
    pub(crate) const PARTIALLY_PRESENT: u64 = 7;
    /// The bits of the state.
    pub(crate) const MASK: u64 = 7;
}

/// The CRC-32C of some bytes, those of the checksum at 4 taken as zeros.
pub(super) fn checksum(bytes: &[u8]) -> u32 {
    match bytes.split_at_checked(8) {
        Some((head, rest)) => {
            crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(&head[..4]), &[0; 4]), rest)
        }
        None => crc32c::crc32c(bytes),
    }
}

/// A number of 64 bits in `bytes` at `at`, which the caller knows to be there.
pub(super) fn read_u64(bytes: &[u8], at: usize) -> u64 {
    match bytes.get(at..).and_then(<[u8]>::first_chunk) {
        Some(number) => u64::from_le_bytes(*number),
        None => 0,
    }
}
