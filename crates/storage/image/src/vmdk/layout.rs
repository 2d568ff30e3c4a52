//! The bytes of sparse extents, after VMware's technical note "Virtual Disk Format 5.0" and
//! <https://github.com/libyal/libvmdk/blob/main/documentation/VMWare%20Virtual%20Disk%20Format%20(VMDK).asciidoc>.
//!
//! All numbers are little-endian, and all places in a file are counted in sectors of 512 bytes. Raw structs stay in
//! this file; what they mean is [`SparseHeader`], [`CowdHeader`] and [`SeSparseHeader`].

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::Reason;
use crate::{Error, Result};

pub(super) const SECTOR: u64 = 512;
pub(super) const SPARSE_MAGIC: &[u8; 4] = b"KDMV";
pub(super) const COWD_MAGIC: &[u8; 4] = b"COWD";
const SESPARSE_MAGIC: u64 = 0xcafe_babe;
const SESPARSE_VOLATILE_MAGIC: u64 = 0xcafe_cafe;
const SESPARSE_VERSION: u64 = 0x2_0000_0001;

/// Set in the header where the line ends behind it are as they were written.
pub(super) const FLAG_NEWLINES: u32 = 1;
/// Set where there is a redundant grain directory.
pub(super) const FLAG_REDUNDANT: u32 = 1 << 1;
/// Set where the entry 1 of a grain table stands for a grain of zeros.
pub(super) const FLAG_ZEROED: u32 = 1 << 2;
pub(super) const FLAG_COMPRESSED: u32 = 1 << 16;
pub(super) const FLAG_MARKERS: u32 = 1 << 17;
/// The place of the grain directory of a stream: the footer knows.
pub(super) const AT_END: u64 = u64::MAX;
/// The entry of a grain of zeros, where [`FLAG_ZEROED`] is set.
pub(super) const ZEROED: u64 = 1;
const NEWLINES: [u8; 4] = *b"\n \r\n";

pub(super) const MARKER_END: u32 = 0;
pub(super) const MARKER_TABLE: u32 = 1;
pub(super) const MARKER_DIRECTORY: u32 = 2;
pub(super) const MARKER_FOOTER: u32 = 3;

/// The most sectors of a grain, as in QEMU.
const MAX_GRAIN: u64 = 1 << 21;
/// The most sectors of a grain that is compressed: one is unpacked in memory.
const MAX_PACKED_GRAIN: u64 = 1 << 15;
/// The most entries of a grain directory; enough for 2 TiB in grains of one sector.
pub(super) const MAX_DIRECTORY: u64 = 8 << 20;
/// Where the next free sector stands in a COWD header.
pub(super) const COWD_AT_FREE: u64 = 28;
/// The length of a COWD header.
pub(super) const COWD_HEADER: u64 = 2048;
/// The entries of a COWD grain table.
pub(super) const COWD_ENTRIES: u64 = 4096;

/// "Hosted sparse extent header".
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawSparse {
    magic: [u8; 4],
    version: U32,
    flags: U32,
    capacity: U64,
    grain_size: U64,
    descriptor_offset: U64,
    descriptor_size: U64,
    num_gtes_per_gt: U32,
    rgd_offset: U64,
    gd_offset: U64,
    over_head: U64,
    unclean_shutdown: u8,
    newlines: [u8; 4],
    compress_algorithm: U16,
    pad: [u8; 433],
}
const _: () = assert!(size_of::<RawSparse>() == 512);
const _: () = assert!(std::mem::offset_of!(RawSparse, compress_algorithm) == 77);

/// "ESX Server sparse extent header".
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawCowd {
    magic: [u8; 4],
    version: U32,
    flags: U32,
    num_sectors: U32,
    grain_size: U32,
    gd_offset: U32,
    num_gd_entries: U32,
    free_sector: U32,
    parent_file_name: [u8; 1024],
    parent_generation: U32,
    generation: U32,
    name: [u8; 60],
    description: [u8; 512],
    saved_generation: U32,
    reserved: [u8; 8],
    unclean_shutdown: U32,
    pad: [u8; 396],
}
const _: () = assert!(size_of::<RawCowd>() == COWD_HEADER as usize);
const _: () = assert!(std::mem::offset_of!(RawCowd, free_sector) == COWD_AT_FREE as usize);

/// The constant header of a space-efficient sparse extent, as QEMU reads it.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawSeSparse {
    magic: U64,
    version: U64,
    capacity: U64,
    grain_size: U64,
    grain_table_size: U64,
    flags: U64,
    reserved: [U64; 4],
    volatile_header_offset: U64,
    volatile_header_size: U64,
    journal: [U64; 4],
    grain_dir_offset: U64,
    grain_dir_size: U64,
    grain_tables_offset: U64,
    grain_tables_size: U64,
    free_bitmap: [U64; 2],
    backmap: [U64; 2],
    grains_offset: U64,
    grains_size: U64,
    pad: [u8; 304],
}
const _: () = assert!(size_of::<RawSeSparse>() == 512);

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawSeSparseVolatile {
    magic: U64,
    free_gt_number: U64,
    next_txn_seq_number: U64,
    replay_journal: U64,
}

/// The header of a hosted sparse extent, and the footer of a stream. Places and lengths are in sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SparseHeader {
    pub(super) version: u32,
    pub(super) flags: u32,
    pub(super) capacity: u64,
    pub(super) grain: u64,
    pub(super) descriptor_at: u64,
    pub(super) descriptor_len: u64,
    pub(super) entries: u32,
    pub(super) rgd: u64,
    pub(super) gd: u64,
    pub(super) overhead: u64,
    pub(super) unclean: bool,
    pub(super) compressed: bool,
}

impl SparseHeader {
    /// Reads the header that is at `at`, for errors, in the file.
    pub(super) fn parse(bytes: &[u8; 512], at: u64) -> Result<Self> {
        let (raw, _) = RawSparse::ref_from_prefix(bytes).map_err(|_| not_an_extent(at))?;
        if raw.magic != *SPARSE_MAGIC {
            return Err(Error::corrupt("the signature of a VMDK extent", at, "KDMV", first_four(bytes)));
        }
        let (version, flags) = (raw.version.get(), raw.flags.get());
        if !(1..=3).contains(&version) {
            return Err(Reason::Version { what: "a VMDK extent", version: version.into() }.into());
        }
        if flags & FLAG_NEWLINES != 0 && raw.newlines != NEWLINES {
            let found = u64::from(u32::from_le_bytes(raw.newlines));
            return Err(Error::corrupt(
                "the line ends in the header of a VMDK extent",
                at + 73,
                "LF, space, CR, LF: \
                the file was transferred as text",
                found,
            ));
        }
        let header = Self {
            version,
            flags,
            capacity: raw.capacity.get(),
            grain: raw.grain_size.get(),
            descriptor_at: raw.descriptor_offset.get(),
            descriptor_len: raw.descriptor_size.get(),
            entries: raw.num_gtes_per_gt.get(),
            rgd: raw.rgd_offset.get(),
            gd: raw.gd_offset.get(),
            overhead: raw.over_head.get(),
            unclean: raw.unclean_shutdown != 0,
            compressed: raw.compress_algorithm.get() == 1,
        };
        header.check(raw.compress_algorithm.get(), at)?;
        Ok(header)
    }

    fn check(&self, algorithm: u16, at: u64) -> Result<()> {
        if algorithm > 1 {
            return Err(Error::unsupported("a VMDK compressed by something else than deflate"));
        }
        // A header without a capacity is that of an empty disk, or only holds a descriptor.
        if self.capacity == 0 {
            return Ok(());
        }
        check_grain(self.grain, at + 20)?;
        if self.compressed && self.grain > MAX_PACKED_GRAIN {
            return Err(Error::unsupported("a compressed VMDK grain of more than 16 MiB"));
        }
        if !(1..=512).contains(&self.entries) {
            let found = self.entries.into();
            return Err(Error::corrupt("the number of entries in a grain table", at + 44, "512", found));
        }
        check_capacity(self.capacity, self.directory_len(), at + 12)
    }

    /// How many grain tables the capacity takes.
    pub(super) fn directory_len(&self) -> u64 {
        self.capacity.div_ceil((u64::from(self.entries) * self.grain).max(1))
    }

    pub(super) fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// The sector with this header.
    pub(super) fn encode(&self) -> [u8; 512] {
        let raw = RawSparse {
            magic: *SPARSE_MAGIC,
            version: self.version.into(),
            flags: self.flags.into(),
            capacity: self.capacity.into(),
            grain_size: self.grain.into(),
            descriptor_offset: self.descriptor_at.into(),
            descriptor_size: self.descriptor_len.into(),
            num_gtes_per_gt: self.entries.into(),
            rgd_offset: self.rgd.into(),
            gd_offset: self.gd.into(),
            over_head: self.overhead.into(),
            unclean_shutdown: self.unclean.into(),
            newlines: NEWLINES,
            compress_algorithm: u16::from(self.compressed).into(),
            pad: [0; 433],
        };
        let mut bytes = [0; 512];
        bytes.copy_from_slice(raw.as_bytes());
        bytes
    }
}

/// The header of an ESX Server sparse extent. Places and lengths are in sectors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CowdHeader {
    pub(super) capacity: u64,
    pub(super) grain: u64,
    pub(super) gd: u64,
    pub(super) directory_len: u64,
    pub(super) free: u32,
    /// Whether the header names a parent file, which only old programs wrote.
    pub(super) names_parent: bool,
    pub(super) unclean: bool,
}

impl CowdHeader {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let (raw, _) = RawCowd::ref_from_prefix(bytes).map_err(|_| not_an_extent(0))?;
        if raw.magic != *COWD_MAGIC {
            return Err(Error::corrupt(
                "the signature of a VMFS sparse extent",
                0,
                "COWD",
                first_four(bytes),
            ));
        }
        if raw.version.get() != 1 {
            let version = raw.version.get().into();
            return Err(Reason::Version { what: "a VMFS sparse extent", version }.into());
        }
        // In an extent without a parent, the place of its name holds the geometry in three numbers.
        let name = &raw.parent_file_name;
        let header = Self {
            capacity: raw.num_sectors.get().into(),
            grain: raw.grain_size.get().into(),
            gd: raw.gd_offset.get().into(),
            directory_len: raw.num_gd_entries.get().into(),
            free: raw.free_sector.get(),
            names_parent: name[..4].iter().all(|byte| (0x20..0x7f).contains(byte)),
            unclean: raw.unclean_shutdown.get() != 0,
        };
        check_grain(header.grain, 16)?;
        check_capacity(header.capacity, header.directory_len, 12)?;
        if header.directory_len * header.grain * COWD_ENTRIES < header.capacity {
            let found = header.directory_len;
            return Err(Error::corrupt(
                "the length of the grain directory",
                24,
                "enough for the capacity",
                found,
            ));
        }
        Ok(header)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut geometry = [0; 1024];
        geometry[0..4].copy_from_slice(&((self.capacity / (255 * 63)) as u32).to_le_bytes());
        geometry[4..8].copy_from_slice(&255u32.to_le_bytes());
        geometry[8..12].copy_from_slice(&63u32.to_le_bytes());
        let raw = RawCowd {
            magic: *COWD_MAGIC,
            version: 1.into(),
            flags: 3.into(),
            num_sectors: (self.capacity as u32).into(),
            grain_size: (self.grain as u32).into(),
            gd_offset: (self.gd as u32).into(),
            num_gd_entries: (self.directory_len as u32).into(),
            free_sector: self.free.into(),
            parent_file_name: geometry,
            parent_generation: 0.into(),
            generation: 1.into(),
            name: [0; 60],
            description: [0; 512],
            saved_generation: 1.into(),
            reserved: [0; 8],
            unclean_shutdown: 0.into(),
            pad: [0; 396],
        };
        raw.as_bytes().to_vec()
    }
}

/// The headers of a space-efficient sparse extent. Places and lengths are in sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SeSparseHeader {
    pub(super) capacity: u64,
    pub(super) grain: u64,
    pub(super) table: u64,
    pub(super) volatile_at: u64,
    pub(super) gd: u64,
    pub(super) gd_len: u64,
    pub(super) tables: u64,
    pub(super) grains: u64,
}

impl SeSparseHeader {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let (raw, _) = RawSeSparse::ref_from_prefix(bytes).map_err(|_| not_an_extent(0))?;
        let magic = raw.magic.get();
        if magic != SESPARSE_MAGIC {
            return Err(Error::corrupt("the signature of a space-efficient extent", 0, "0xcafebabe", magic));
        }
        let version = raw.version.get();
        if version != SESPARSE_VERSION {
            return Err(Reason::Version { what: "a space-efficient VMDK extent", version }.into());
        }
        let strange = raw.flags.get() != 0
            || raw.reserved.iter().any(|word| word.get() != 0)
            || raw.pad.iter().any(|byte| *byte != 0);
        if raw.grain_size.get() != 8 || raw.grain_table_size.get() != 64 || strange {
            return Err(Error::unsupported("a space-efficient VMDK extent with this layout"));
        }
        let header = Self {
            capacity: raw.capacity.get(),
            grain: 8,
            table: 64,
            volatile_at: raw.volatile_header_offset.get(),
            gd: raw.grain_dir_offset.get(),
            gd_len: raw.grain_dir_size.get(),
            tables: raw.grain_tables_offset.get(),
            grains: raw.grains_offset.get(),
        };
        let entries = header.gd_len.saturating_mul(SECTOR / 8);
        check_capacity(header.capacity, entries, 16)?;
        if entries * header.table * (SECTOR / 8) * header.grain < header.capacity {
            let found = header.gd_len;
            return Err(Error::corrupt(
                "the length of the grain directory",
                136,
                "enough for the capacity",
                found,
            ));
        }
        Ok(header)
    }

    /// Refuses an extent whose journal waits to be replayed.
    pub(super) fn check_volatile(self, bytes: &[u8]) -> Result<()> {
        let at = self.volatile_at.saturating_mul(SECTOR);
        let (raw, _) = RawSeSparseVolatile::ref_from_prefix(bytes).map_err(|_| not_an_extent(at))?;
        let magic = raw.magic.get();
        if magic != SESPARSE_VOLATILE_MAGIC {
            let what = "the signature of a space-efficient extent's second header";
            return Err(Error::corrupt(what, at, "0xcafecafe", magic));
        }
        match raw.replay_journal.get() {
            0 => Ok(()),
            _ => Err(Error::unsupported("a space-efficient VMDK extent whose journal must be replayed")),
        }
    }
}

fn check_grain(grain: u64, at: u64) -> Result<()> {
    if grain > MAX_GRAIN || !grain.is_power_of_two() {
        return Err(Error::corrupt("the size of a grain", at, "a power of two up to 1 GiB", grain));
    }
    Ok(())
}

fn check_capacity(capacity: u64, directory: u64, at: u64) -> Result<()> {
    if capacity > i64::MAX as u64 / SECTOR || directory > MAX_DIRECTORY {
        return Err(Error::corrupt(
            "the capacity of a VMDK extent",
            at,
            "what its tables can hold",
            capacity,
        ));
    }
    Ok(())
}

fn first_four(bytes: &[u8]) -> u64 {
    bytes.iter().take(4).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn not_an_extent(at: u64) -> Error {
    Error::corrupt("the header of a VMDK extent", at, "a whole header", 0)
}

/// A marker in front of a part of a stream: `sectors` of what `kind` says follow.
pub(super) fn marker(sectors: u64, kind: u32) -> [u8; 512] {
    let mut bytes = [0; 512];
    bytes[..8].copy_from_slice(&sectors.to_le_bytes());
    bytes[12..16].copy_from_slice(&kind.to_le_bytes());
    bytes
}

/// What a marker says: its value, its size and, where that is zero, its kind.
pub(super) fn parse_marker(bytes: &[u8]) -> Option<(u64, u32, u32)> {
    let value = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    let size = u32::from_le_bytes(bytes.get(8..12)?.try_into().ok()?);
    let kind = u32::from_le_bytes(bytes.get(12..16)?.try_into().ok()?);
    Some((value, size, kind))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vmwright_disk::ErrorKind;

    fn sound() -> SparseHeader {
        SparseHeader {
            version: 1,
            flags: FLAG_NEWLINES | FLAG_REDUNDANT,
            capacity: 1 << 20,
            grain: 128,
            descriptor_at: 1,
            descriptor_len: 20,
            entries: 512,
            rgd: 21,
            gd: 90,
            overhead: 256,
            unclean: false,
            compressed: false,
        }
    }

    proptest! {
        #[test]
        fn a_header_encodes_and_parses_back(
            version in 1u32..=3, capacity in 1u64..1 << 30, grain in 3u32..16, gd in any::<u64>(), unclean in any::<bool>(),
        ) {
            let header = SparseHeader { version, capacity, grain: 1 << grain, gd, unclean, ..sound() };
            prop_assert_eq!(SparseHeader::parse(&header.encode(), 0).unwrap(), header);
        }
    }

    #[test]
    fn fields_out_of_range_are_named() {
        let cases: [(SparseHeader, &str); 6] = [
            (SparseHeader { grain: 0, ..sound() }, "size of a grain"),
            (SparseHeader { grain: 100, ..sound() }, "size of a grain"),
            (SparseHeader { grain: 1 << 22, ..sound() }, "size of a grain"),
            (SparseHeader { entries: 0, ..sound() }, "entries in a grain table"),
            (SparseHeader { entries: 513, ..sound() }, "entries in a grain table"),
            (SparseHeader { capacity: 1 << 63, ..sound() }, "capacity"),
        ];
        for (header, what) in cases {
            let error = SparseHeader::parse(&header.encode(), 0).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            assert!(error.to_string().contains(what), "{error}");
        }
        let newer = SparseHeader { version: 4, ..sound() };
        assert_eq!(SparseHeader::parse(&newer.encode(), 0).unwrap_err().kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn a_file_transferred_as_text_is_told_from_others() {
        let mut bytes = sound().encode();
        bytes[75] = b'\n';
        let error = SparseHeader::parse(&bytes, 0).unwrap_err();
        assert!(error.to_string().contains("transferred as text"), "{error}");
    }
}
