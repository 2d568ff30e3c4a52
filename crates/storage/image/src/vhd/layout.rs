//! The bytes of VHD, after Microsoft's "Virtual Hard Disk Image Format Specification", version 1.0:
//! <https://learn.microsoft.com/en-us/windows/win32/vstor/about-vhd>.
//!
//! All numbers are big-endian. Raw structs stay in this file; [`Footer`] and [`Header`] are what they mean.

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::geometry::Geometry;
use crate::error::Reason;
use crate::{Error, Result};

/// The length of a footer in bytes; Virtual PC before 2004 left the last one out.
pub(super) const FOOTER: u64 = 512;
/// The length of the header of a dynamic image.
pub(super) const HEADER: u64 = 1024;
pub(super) const COOKIE: &[u8; 8] = b"conectix";
const HEADER_COOKIE: &[u8; 8] = b"cxsparse";
/// What the data offset of an image of fixed size is.
const NO_HEADER: u64 = u64::MAX;
/// The most bytes of a disk: 2040 GiB, since the numbers in the block table count sectors.
pub(super) const MAX_SIZE: u64 = 2040 << 30;
/// The smallest and the largest blocks that are accepted.
pub(super) const BLOCK_SIZES: std::ops::RangeInclusive<u32> = 4096..=256 << 20;

/// What an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// All bytes in order.
    Fixed,
    /// Blocks where there is data.
    Dynamic,
    /// Blocks where it differs from its parent.
    Differencing,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Fixed => "fixed",
            Self::Dynamic => "dynamic",
            Self::Differencing => "differencing",
        }
    }
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Debug)]
#[repr(C)]
struct RawFooter {
    cookie: [u8; 8],
    features: U32,
    file_format_version: U32,
    data_offset: U64,
    time_stamp: U32,
    creator_application: [u8; 4],
    creator_version: U32,
    creator_host_os: [u8; 4],
    original_size: U64,
    current_size: U64,
    cylinders: U16,
    heads: u8,
    sectors: u8,
    disk_type: U32,
    checksum: U32,
    unique_id: [u8; 16],
    saved_state: u8,
    reserved: [u8; 427],
}
const _: () = assert!(size_of::<RawFooter>() == FOOTER as usize);
const _: () = assert!(std::mem::offset_of!(RawFooter, checksum) == 64);

/// The footer, which says what the disk is.
#[derive(Debug, Clone)]
pub(super) struct Footer {
    raw: RawFooter,
    pub(super) kind: Kind,
}

/// What a new footer says.
pub(super) struct NewFooter {
    pub(super) kind: Kind,
    pub(super) size: u64,
    pub(super) geometry: Geometry,
    pub(super) creator: [u8; 4],
    pub(super) id: [u8; 16],
    /// Seconds since the year 2000.
    pub(super) time: u32,
}

impl Footer {
    pub(super) fn new(new: &NewFooter) -> Self {
        let data_offset = if new.kind == Kind::Fixed { NO_HEADER } else { FOOTER };
        let raw = RawFooter {
            cookie: *COOKIE,
            // A bit that is always set.
            features: U32::new(2),
            file_format_version: U32::new(0x1_0000),
            data_offset: U64::new(data_offset),
            time_stamp: U32::new(new.time),
            creator_application: new.creator,
            creator_version: U32::new(0x1_0000),
            creator_host_os: *b"Wi2k",
            original_size: U64::new(new.size),
            current_size: U64::new(new.size),
            cylinders: U16::new(new.geometry.cylinders),
            heads: new.geometry.heads,
            sectors: new.geometry.sectors,
            disk_type: U32::new(match new.kind {
                Kind::Fixed => 2,
                Kind::Dynamic => 3,
                Kind::Differencing => 4,
            }),
            checksum: U32::new(0),
            unique_id: new.id,
            saved_state: 0,
            reserved: [0; 427],
        };
        Self { raw, kind: new.kind }
    }

    /// Reads a footer that was at `at`; one of 511 bytes is one of 512.
    pub(super) fn parse(bytes: &[u8], at: u64, lenient: bool) -> Result<Self> {
        let mut whole = [0; FOOTER as usize];
        let len = bytes.len().min(whole.len());
        whole[..len].copy_from_slice(&bytes[..len]);
        let raw = RawFooter::read_from_bytes(&whole)
            .map_err(|_| Error::corrupt("the footer", at, "512 bytes", bytes.len() as u64))?;
        if raw.cookie != *COOKIE {
            let found = u64::from_be_bytes(raw.cookie);
            return Err(Error::corrupt("the cookie of the footer", at, "conectix", found));
        }
        let sum = checksum(&whole, 64);
        if raw.checksum.get() != sum && !lenient {
            let found = raw.checksum.get().into();
            return Err(Error::corrupt("the checksum of the footer", at + 64, "the sum of its bytes", found));
        }
        let version = raw.file_format_version.get();
        if version >> 16 != 1 {
            return Err(Reason::Version { what: "VHD", version: version.into() }.into());
        }
        let kind = match raw.disk_type.get() {
            2 => Kind::Fixed,
            3 => Kind::Dynamic,
            4 => Kind::Differencing,
            other => {
                let expected = "fixed (2), dynamic (3) or differencing (4)";
                return Err(Error::corrupt("the type of the disk", at + 60, expected, other.into()));
            }
        };
        Ok(Self { raw, kind })
    }

    /// The 512 bytes with their checksum.
    pub(super) fn encode(&self) -> [u8; FOOTER as usize] {
        let mut bytes = [0; FOOTER as usize];
        bytes.copy_from_slice(self.raw.as_bytes());
        let sum = checksum(&bytes, 64);
        bytes[64..68].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    /// Whether the checksum is that of the bytes.
    pub(super) fn is_sound(&self) -> bool {
        checksum(self.raw.as_bytes(), 64) == self.raw.checksum.get()
    }

    /// Whether two footers say the same.
    pub(super) fn says_same(&self, other: &Self) -> bool {
        self.encode() == other.encode()
    }

    pub(super) fn data_offset(&self) -> u64 {
        self.raw.data_offset.get()
    }

    /// The size that the field of that name says, in bytes.
    pub(super) fn current_size(&self) -> u64 {
        self.raw.current_size.get()
    }

    pub(super) fn geometry(&self) -> Geometry {
        let RawFooter { cylinders, heads, sectors, .. } = &self.raw;
        Geometry { cylinders: cylinders.get(), heads: *heads, sectors: *sectors }
    }

    pub(super) fn creator(&self) -> [u8; 4] {
        self.raw.creator_application
    }

    pub(super) fn id(&self) -> [u8; 16] {
        self.raw.unique_id
    }

    pub(super) fn has_saved_state(&self) -> bool {
        self.raw.saved_state != 0
    }

    /// The same disk of another size, which from now on is what the size field says.
    pub(super) fn resized(&self, size: u64, geometry: Geometry, creator: [u8; 4]) -> Self {
        let mut footer = self.clone();
        footer.raw.current_size = U64::new(size);
        footer.raw.cylinders = U16::new(geometry.cylinders);
        (footer.raw.heads, footer.raw.sectors) = (geometry.heads, geometry.sectors);
        footer.raw.creator_application = creator;
        footer
    }
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Debug)]
#[repr(C)]
struct RawLocator {
    platform_code: [u8; 4],
    platform_data_space: U32,
    platform_data_length: U32,
    reserved: U32,
    platform_data_offset: U64,
}
const _: () = assert!(size_of::<RawLocator>() == 24);

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Debug)]
#[repr(C)]
struct RawHeader {
    cookie: [u8; 8],
    data_offset: U64,
    table_offset: U64,
    header_version: U32,
    max_table_entries: U32,
    block_size: U32,
    checksum: U32,
    parent_unique_id: [u8; 16],
    parent_time_stamp: U32,
    reserved1: U32,
    parent_unicode_name: [u8; 512],
    parent_locators: [RawLocator; 8],
    reserved2: [u8; 256],
}
const _: () = assert!(size_of::<RawHeader>() == HEADER as usize);
const _: () = assert!(std::mem::offset_of!(RawHeader, checksum) == 36);
// What a change of the size writes is in one sector.
const _: () = assert!(std::mem::offset_of!(RawHeader, parent_unicode_name) <= 512);

/// The header of a dynamic or differencing image.
#[derive(Debug, Clone)]
pub(super) struct Header {
    raw: RawHeader,
}

/// Where a name of the parent is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Locator {
    pub(super) code: [u8; 4],
    /// The bytes that are reserved for it: some programs write sectors here.
    pub(super) space: u32,
    pub(super) len: u32,
    pub(super) offset: u64,
}

impl Header {
    /// The header of an image with its table at `table_offset`.
    pub(super) fn new(table_offset: u64, entries: u32, block_size: u32) -> Self {
        let mut raw = RawHeader::new_zeroed();
        raw.cookie = *HEADER_COOKIE;
        raw.data_offset = U64::new(u64::MAX);
        raw.table_offset = U64::new(table_offset);
        raw.header_version = U32::new(0x1_0000);
        raw.max_table_entries = U32::new(entries);
        raw.block_size = U32::new(block_size);
        Self { raw }
    }

    /// Reads a header that was at `at`.
    pub(super) fn parse(bytes: &[u8], at: u64, lenient: bool) -> Result<Self> {
        let raw = RawHeader::read_from_bytes(bytes)
            .map_err(|_| Error::corrupt("the dynamic header", at, "1024 bytes", bytes.len() as u64))?;
        if raw.cookie != *HEADER_COOKIE {
            let found = u64::from_be_bytes(raw.cookie);
            return Err(Error::corrupt("the cookie of the dynamic header", at, "cxsparse", found));
        }
        if checksum(bytes, 36) != raw.checksum.get() && !lenient {
            let (expected, found) = ("the sum of its bytes", raw.checksum.get().into());
            return Err(Error::corrupt("the checksum of the dynamic header", at + 36, expected, found));
        }
        let version = raw.header_version.get();
        if version >> 16 != 1 {
            return Err(
                Reason::Version { what: "the dynamic header of a VHD", version: version.into() }.into()
            );
        }
        let block_size = raw.block_size.get();
        if !block_size.is_power_of_two() || !BLOCK_SIZES.contains(&block_size) {
            let expected = "a power of two from 4 KiB to 256 MiB";
            return Err(Error::corrupt("the size of blocks", at + 32, expected, block_size.into()));
        }
        if !raw.table_offset.get().is_multiple_of(512) {
            let found = raw.table_offset.get();
            return Err(Error::corrupt("the offset of the block table", at + 16, "a multiple of 512", found));
        }
        Ok(Self { raw })
    }

    /// The 1024 bytes with their checksum.
    pub(super) fn encode(&self) -> [u8; HEADER as usize] {
        let mut bytes = [0; HEADER as usize];
        bytes.copy_from_slice(self.raw.as_bytes());
        let sum = checksum(&bytes, 36);
        bytes[36..40].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    /// Whether the checksum is that of the bytes.
    pub(super) fn is_sound(&self) -> bool {
        checksum(self.raw.as_bytes(), 36) == self.raw.checksum.get()
    }

    pub(super) fn table_offset(&self) -> u64 {
        self.raw.table_offset.get()
    }

    pub(super) fn entries(&self) -> u64 {
        self.raw.max_table_entries.get().into()
    }

    pub(super) fn block_size(&self) -> u64 {
        self.raw.block_size.get().into()
    }

    /// Where the table is from now on, and how long.
    pub(super) fn set_table(&mut self, at: u64, entries: u32) {
        self.raw.table_offset = U64::new(at);
        self.raw.max_table_entries = U32::new(entries);
    }

    pub(super) fn parent_id(&self) -> [u8; 16] {
        self.raw.parent_unique_id
    }

    /// The name of the parent that stands in the header, in UTF-16, big-endian, up to the first zero.
    pub(super) fn parent_name(&self) -> String {
        let (pairs, _) = self.raw.parent_unicode_name.as_chunks::<2>();
        let units: Vec<u16> =
            pairs.iter().map(|pair| u16::from_be_bytes(*pair)).take_while(|unit| *unit != 0).collect();
        String::from_utf16_lossy(&units)
    }

    /// Names the parent; what of the name does not fit is left out, since the locators have it whole.
    pub(super) fn set_parent(&mut self, id: [u8; 16], time: u32, name: &str) {
        self.raw.parent_unique_id = id;
        self.raw.parent_time_stamp = U32::new(time);
        self.raw.parent_unicode_name = [0; 512];
        let places = self.raw.parent_unicode_name.as_chunks_mut::<2>().0.iter_mut().take(255);
        for (place, unit) in places.zip(name.encode_utf16()) {
            *place = unit.to_be_bytes();
        }
    }

    /// The places of names of the parent.
    pub(super) fn locators(&self) -> impl Iterator<Item = Locator> + '_ {
        let known = self.raw.parent_locators.iter().filter(|raw| raw.platform_code != [0; 4]);
        known.map(|raw| Locator {
            code: raw.platform_code,
            space: raw.platform_data_space.get(),
            len: raw.platform_data_length.get(),
            offset: raw.platform_data_offset.get(),
        })
    }

    /// Sets the places of names of the parent, at most eight.
    pub(super) fn set_locators(&mut self, locators: &[Locator]) {
        for (raw, locator) in self.raw.parent_locators.iter_mut().zip(locators) {
            raw.platform_code = locator.code;
            raw.platform_data_space = U32::new(locator.space);
            raw.platform_data_length = U32::new(locator.len);
            raw.platform_data_offset = U64::new(locator.offset);
        }
    }
}

/// The ones' complement of the sum of all bytes but those of the checksum itself, which is at `field`.
fn checksum(bytes: &[u8], field: usize) -> u32 {
    let counted = bytes.iter().enumerate().filter(|(at, _)| !(field..field + 4).contains(at));
    !counted.fold(0u32, |sum, (_, byte)| sum.wrapping_add((*byte).into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn footer() -> Footer {
        let geometry = Geometry { cylinders: 5, heads: 4, sectors: 17 };
        let (creator, id) = (*b"qem2", [7; 16]);
        Footer::new(&NewFooter { kind: Kind::Dynamic, size: 1 << 20, geometry, creator, id, time: 3 })
    }

    #[test]
    fn a_footer_parses_back_to_itself() {
        let bytes = footer().encode();
        let parsed = Footer::parse(&bytes, 0, false).unwrap();
        assert_eq!(parsed.encode(), bytes);
        assert!(parsed.is_sound() && parsed.says_same(&footer()));
        assert_eq!((parsed.kind, parsed.current_size(), parsed.id()), (Kind::Dynamic, 1 << 20, [7; 16]));
    }

    #[test]
    fn a_wrong_checksum_is_overlooked_only_where_that_is_asked_for() {
        let mut bytes = footer().encode();
        bytes[40] ^= 1;
        assert_eq!(Footer::parse(&bytes, 0, false).unwrap_err().kind(), vmwright_disk::ErrorKind::Corrupt);
        assert!(!Footer::parse(&bytes, 0, true).unwrap().is_sound());
        let mut bytes = Header::new(1536, 4, 2 << 20).encode();
        bytes[600] ^= 1;
        assert_eq!(Header::parse(&bytes, 0, false).unwrap_err().kind(), vmwright_disk::ErrorKind::Corrupt);
        Header::parse(&bytes, 0, true).unwrap();
    }

    #[test]
    fn a_header_keeps_names_and_places_of_its_parent() {
        let mut header = Header::new(1536, 4, 2 << 20);
        header.set_parent([9; 16], 5, "Bäse.vhd");
        let locator = Locator { code: *b"W2ru", space: 512, len: 20, offset: 4096 };
        header.set_locators(&[locator]);
        let parsed = Header::parse(&header.encode(), 512, false).unwrap();
        assert_eq!((parsed.parent_name().as_str(), parsed.parent_id()), ("Bäse.vhd", [9; 16]));
        assert_eq!(parsed.locators().collect::<Vec<_>>(), [locator]);
        assert_eq!((parsed.table_offset(), parsed.entries(), parsed.block_size()), (1536, 4, 2 << 20));
    }
}
