//! The bytes of VDI, version 1.1, as VirtualBox and QEMU write them:
//! <https://forums.virtualbox.org/viewtopic.php?t=8046>.
//!
//! All numbers are little-endian. The raw struct stays in this file; [`Header`] is what it means.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::Reason;
use crate::{Error, Result};

pub(super) const SIGNATURE: u32 = 0xbeda_107f;
const VERSION: u32 = 0x1_0001;
/// The bytes of all headers together.
pub(super) const HEADER: u64 = 512;
/// What the header says of its own length, without the text before it.
const HEADER_LEN: u32 = 400;
/// What is written at the beginning of a file.
const TEXT: &[u8] = b"<<< Oracle VM VirtualBox Disk Image >>>\n";
/// Where the number of stored blocks is.
pub(super) const AT_ALLOCATED: u64 = 388;
/// The number of a block that is zeros.
pub(super) const ZERO: u32 = u32::MAX - 1;
/// The smallest and the largest blocks that are accepted.
pub(super) const BLOCK_SIZES: std::ops::RangeInclusive<u32> = 4096..=256 << 20;

/// What an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Blocks where there is data.
    Dynamic,
    /// All blocks.
    Static,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Dynamic => "dynamic",
            Self::Static => "static",
        }
    }
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Debug)]
#[repr(C)]
struct RawHeader {
    text: [u8; 64],
    signature: U32,
    version: U32,
    header_size: U32,
    image_type: U32,
    image_flags: U32,
    description: [u8; 256],
    offset_bmap: U32,
    offset_data: U32,
    cylinders: U32,
    heads: U32,
    sectors: U32,
    sector_size: U32,
    unused1: U32,
    disk_size: U64,
    block_size: U32,
    block_extra: U32,
    blocks_in_image: U32,
    blocks_allocated: U32,
    uuid_image: [u8; 16],
    uuid_last_snap: [u8; 16],
    uuid_link: [u8; 16],
    uuid_parent: [u8; 16],
    unused2: [u8; 56],
}
const _: () = assert!(size_of::<RawHeader>() == HEADER as usize);
const _: () = assert!(std::mem::offset_of!(RawHeader, blocks_allocated) as u64 == AT_ALLOCATED);

/// The header.
#[derive(Debug, Clone)]
pub(super) struct Header {
    raw: RawHeader,
    pub(super) kind: Kind,
}

impl Header {
    /// The header of a new image without stored blocks.
    pub(super) fn new(kind: Kind, size: u64, block_size: u32, id: [u8; 16], snapshot: [u8; 16]) -> Self {
        let mut raw = RawHeader::new_zeroed();
        raw.text[..TEXT.len()].copy_from_slice(TEXT);
        raw.signature = U32::new(SIGNATURE);
        raw.version = U32::new(VERSION);
        raw.header_size = U32::new(HEADER_LEN);
        raw.image_type = U32::new(if kind == Kind::Static { 2 } else { 1 });
        raw.sector_size = U32::new(512);
        raw.disk_size = U64::new(size);
        raw.block_size = U32::new(block_size);
        (raw.uuid_image, raw.uuid_last_snap) = (id, snapshot);
        Self { raw, kind }
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let raw = RawHeader::read_from_bytes(bytes)
            .map_err(|_| Error::corrupt("the header", 0, "512 bytes", bytes.len() as u64))?;
        let check = |right: bool, what, at, expected, found: u32| match right {
            true => Ok(()),
            false => Err(Error::corrupt(what, at, expected, found.into())),
        };
        let signature = raw.signature.get();
        check(signature == SIGNATURE, "the signature", 64, "0xbeda107f", signature)?;
        let version = raw.version.get();
        if version != VERSION {
            return Err(Reason::Version { what: "VDI", version: version.into() }.into());
        }
        let kind = match raw.image_type.get() {
            1 => Kind::Dynamic,
            2 => Kind::Static,
            3 => return Err(Error::unsupported("an undo image of VirtualBox")),
            4 => {
                return Err(Error::unsupported(
                    "a differencing VDI, which names its parent by an id that only VirtualBox's registry can find,",
                ));
            }
            other => return Err(Error::corrupt("the type of the image", 76, "1 to 4", other.into())),
        };
        if raw.uuid_link != [0; 16] || raw.uuid_parent != [0; 16] {
            return Err(Error::unsupported("a VDI that names a parent"));
        }
        check(raw.sector_size.get() == 512, "the size of sectors", 360, "512", raw.sector_size.get())?;
        if raw.block_extra.get() != 0 {
            return Err(Error::unsupported("a VDI with extra data before its blocks"));
        }
        let block_size = raw.block_size.get();
        let fits = block_size.is_power_of_two() && BLOCK_SIZES.contains(&block_size);
        check(fits, "the size of blocks", 376, "a power of two from 4 KiB to 256 MiB", block_size)?;
        let (map, data) = (raw.offset_bmap.get(), raw.offset_data.get());
        let aligned = |at: u32| at.is_multiple_of(512) && u64::from(at) >= HEADER;
        check(
            aligned(map),
            "the offset of the block table",
            340,
            "a multiple of 512 behind the header",
            map,
        )?;
        check(aligned(data), "the offset of the blocks", 344, "a multiple of 512 behind the header", data)?;
        let header = Self { raw, kind };
        let room = header.blocks() * u64::from(block_size);
        if header.size() > room {
            return Err(Error::corrupt("the size of the disk", 368, "at most its blocks", header.size()));
        }
        let table_end = u64::from(map) + header.blocks() * 4;
        if u64::from(map) < u64::from(data) && table_end > u64::from(data) {
            return Err(Error::corrupt(
                "the block table",
                map.into(),
                "a table before the blocks",
                table_end,
            ));
        }
        if map >= data {
            return Err(Error::corrupt(
                "the offset of the block table",
                340,
                "one before the blocks",
                map.into(),
            ));
        }
        Ok(header)
    }

    pub(super) fn encode(&self) -> [u8; HEADER as usize] {
        let mut bytes = [0; HEADER as usize];
        bytes.copy_from_slice(self.raw.as_bytes());
        bytes
    }

    /// The size of the disk in bytes; of old images, rounded up to a sector.
    pub(super) fn size(&self) -> u64 {
        self.raw.disk_size.get().checked_next_multiple_of(512).unwrap_or(u64::MAX)
    }

    pub(super) fn block_size(&self) -> u32 {
        self.raw.block_size.get()
    }

    /// How many blocks the disk has.
    pub(super) fn blocks(&self) -> u64 {
        self.raw.blocks_in_image.get().into()
    }

    /// How many blocks the file has places for.
    pub(super) fn allocated(&self) -> u64 {
        self.raw.blocks_allocated.get().into()
    }

    pub(super) fn table_at(&self) -> u64 {
        self.raw.offset_bmap.get().into()
    }

    pub(super) fn data_at(&self) -> u64 {
        self.raw.offset_data.get().into()
    }

    pub(super) fn id(&self) -> [u8; 16] {
        self.raw.uuid_image
    }

    /// Sets where table and blocks are.
    pub(super) fn set_places(&mut self, table_at: u64, data_at: u64) -> Result<()> {
        let fit =
            |at: u64| u32::try_from(at).map_err(|_| Error::unsupported("a block table of so many bytes"));
        self.raw.offset_bmap = U32::new(fit(table_at)?);
        self.raw.offset_data = U32::new(fit(data_at)?);
        Ok(())
    }

    /// Sets the size of the disk and the number of its blocks.
    pub(super) fn set_size(&mut self, size: u64, blocks: u32) {
        self.raw.disk_size = U64::new(size);
        self.raw.blocks_in_image = U32::new(blocks);
    }

    pub(super) fn set_allocated(&mut self, blocks: u64) {
        self.raw.blocks_allocated = U32::new(u32::try_from(blocks).unwrap_or(u32::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmwright_disk::ErrorKind;

    fn header() -> Header {
        let mut header = Header::new(Kind::Dynamic, 5 << 20, 1 << 20, [1; 16], [2; 16]);
        header.set_places(512, 1 << 20).unwrap();
        header.set_size(5 << 20, 5);
        header
    }

    #[test]
    fn a_header_parses_back_to_itself() {
        let bytes = header().encode();
        let parsed = Header::parse(&bytes).unwrap();
        assert_eq!(parsed.encode(), bytes);
        assert_eq!((parsed.size(), parsed.blocks(), parsed.table_at()), (5 << 20, 5, 512));
    }

    #[test]
    fn each_field_out_of_range_is_named() {
        for (at, value, kind) in [
            (64, 7, ErrorKind::Corrupt),
            (68, 0x2_0001, ErrorKind::Unsupported),
            (76, 3, ErrorKind::Unsupported),
            (76, 4, ErrorKind::Unsupported),
            (76, 9, ErrorKind::Corrupt),
            (340, 513, ErrorKind::Corrupt),
            (340, 2 << 20, ErrorKind::Corrupt),
            (344, 256, ErrorKind::Corrupt),
            (344, 0, ErrorKind::Corrupt),
            (360, 4096, ErrorKind::Corrupt),
            (372, 1, ErrorKind::Corrupt),
            (376, 3 << 20, ErrorKind::Corrupt),
            (376, 512, ErrorKind::Corrupt),
            (380, 512, ErrorKind::Unsupported),
            (384, 4, ErrorKind::Corrupt),
            (384, u32::MAX, ErrorKind::Corrupt),
            (424, 1, ErrorKind::Unsupported),
            (440, 1, ErrorKind::Unsupported),
        ] {
            let mut bytes = header().encode();
            bytes[at..at + 4].copy_from_slice(&u32::to_le_bytes(value));
            assert_eq!(Header::parse(&bytes).unwrap_err().kind(), kind, "{value} at {at}");
        }
    }
}
