//! The bytes of qcow2, after <https://www.qemu.org/docs/master/interop/qcow2.html>.
//!
//! All numbers are big-endian. Raw structs stay in this file; [`Header`] is what they mean.

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::Reason;
use crate::{Error, Result};

pub(super) const MAGIC: u32 = 0x5146_49fb;

/// The most bytes that the active L1 table may take, as in QEMU.
pub(super) const MAX_L1_BYTES: u64 = 32 << 20;
/// The most bytes that the refcount table may take, as in QEMU.
pub(super) const MAX_REFTABLE_BYTES: u64 = 8 << 20;
/// The longest name of a backing file.
pub(super) const MAX_BACKING_NAME: usize = 1023;

/// The host offset in an L1 or standard L2 entry.
pub(super) const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// Set in L1 and L2 entries where the refcount of what they point to is exactly one.
pub(super) const COPIED: u64 = 1 << 63;
/// Set in L2 entries of compressed clusters.
pub(super) const COMPRESSED: u64 = 1 << 62;
/// Set in standard L2 entries whose cluster reads as zeros.
pub(super) const ZERO: u64 = 1;
/// The offset in an entry of the refcount table.
pub(super) const REFTABLE_MASK: u64 = !0x1ff;

pub(super) const INCOMPATIBLE_DIRTY: u64 = 1;
pub(super) const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
pub(super) const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;
pub(super) const INCOMPATIBLE_COMPRESSION: u64 = 1 << 3;
pub(super) const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;
const INCOMPATIBLE_KNOWN: u64 = (1 << 5) - 1;
pub(super) const COMPATIBLE_LAZY_REFCOUNTS: u64 = 1;
pub(super) const AUTOCLEAR_BITMAPS: u64 = 1;
pub(super) const AUTOCLEAR_RAW_DATA_FILE: u64 = 1 << 1;

const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTENSION_FEATURE_NAMES: u32 = 0x6803_f857;
pub(super) const EXTENSION_BITMAPS: u32 = 0x2385_2875;
pub(super) const EXTENSION_ENCRYPTION: u32 = 0x0537_be77;
const EXTENSION_DATA_FILE: u32 = 0x4441_5441;

/// The methods of encryption.
pub(super) const ENCRYPTION_AES: u32 = 1;
pub(super) const ENCRYPTION_LUKS: u32 = 2;

/// The length of the header of version 3, with the fields that are known here.
const V3_LEN: usize = 112;

/// Where single fields of the header lie that are written in place.
pub(super) const AT_BACKING_NAME: u64 = 8;
pub(super) const AT_SIZE: u64 = 24;
/// The number of entries of the L1 table, and its offset behind that.
pub(super) const AT_L1: u64 = 36;
pub(super) const AT_REFTABLE: u64 = 48;
pub(super) const AT_SNAPSHOTS: u64 = 60;
pub(super) const AT_INCOMPATIBLE: u64 = 72;
pub(super) const AT_AUTOCLEAR: u64 = 88;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: U32,
    version: U32,
    backing_file_offset: U64,
    backing_file_size: U32,
    cluster_bits: U32,
    size: U64,
    crypt_method: U32,
    l1_size: U32,
    l1_table_offset: U64,
    refcount_table_offset: U64,
    refcount_table_clusters: U32,
    nb_snapshots: U32,
    snapshots_offset: U64,
}
const _: () = assert!(size_of::<RawHeader>() == 72);
const _: () = assert!(std::mem::offset_of!(RawHeader, size) == AT_SIZE as usize);
const _: () = assert!(std::mem::offset_of!(RawHeader, l1_size) == AT_L1 as usize);
const _: () = assert!(std::mem::offset_of!(RawHeader, l1_table_offset) == AT_L1 as usize + 4);
const _: () = assert!(std::mem::offset_of!(RawHeader, refcount_table_offset) == AT_REFTABLE as usize);

const _: () = assert!(std::mem::offset_of!(RawHeader, nb_snapshots) == AT_SNAPSHOTS as usize);

/// What version 3 adds; version 2 behaves as if all bits were clear and `refcount_order` were 4.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeaderV3 {
    incompatible_features: U64,
    compatible_features: U64,
    autoclear_features: U64,
    refcount_order: U32,
    header_length: U32,
}
const _: () = assert!(size_of::<RawHeaderV3>() == 32);

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawExtension {
    kind: U32,
    len: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawFeatureName {
    kind: u8,
    bit: u8,
    name: [u8; 46],
}
const _: () = assert!(size_of::<RawFeatureName>() == 48);

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawBitmaps {
    nb_bitmaps: U32,
    reserved: U32,
    bitmap_directory_size: U64,
    bitmap_directory_offset: U64,
}
const _: () = assert!(size_of::<RawBitmaps>() == 24);

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawSnapshot {
    pub(super) l1_table_offset: U64,
    pub(super) l1_size: U32,
    pub(super) id_str_size: U16,
    pub(super) name_size: U16,
    pub(super) date_sec: U32,
    pub(super) date_nsec: U32,
    pub(super) vm_clock_nsec: U64,
    pub(super) vm_state_size: U32,
    pub(super) extra_data_size: U32,
}
const _: () = assert!(size_of::<RawSnapshot>() == 40);

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawBitmapEntry {
    pub(super) bitmap_table_offset: U64,
    pub(super) bitmap_table_size: U32,
    pub(super) flags: U32,
    pub(super) kind: u8,
    pub(super) granularity_bits: u8,
    pub(super) name_size: U16,
    pub(super) extra_data_size: U32,
}
const _: () = assert!(size_of::<RawBitmapEntry>() == 24);

/// How clusters of an image are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Raw deflate with a window of 12 bits.
    Deflate,
    /// Zstandard frames.
    Zstd,
}

/// The version of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    V2,
    V3,
}

/// A backing file as an image names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BackingName {
    pub(crate) name: String,
    pub(crate) format: Option<String>,
}

/// Where the directory of persistent bitmaps is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BitmapDirectory {
    pub(crate) count: u32,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// Where the header extensions are in the first cluster.
pub(super) struct Extensions {
    /// The kind of each, where its head is, and how long its data is.
    pub(super) list: Vec<(u32, usize, usize)>,
    /// Where the end marker is.
    pub(super) end: usize,
}

/// The header of an image with its extensions, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) version: Version,
    pub(crate) cluster_bits: u32,
    pub(crate) size: u64,
    pub(crate) encryption: u32,
    pub(crate) l1_len: u32,
    pub(crate) l1_offset: u64,
    pub(crate) reftable_offset: u64,
    pub(crate) reftable_clusters: u32,
    pub(crate) snapshot_count: u32,
    pub(crate) snapshots_offset: u64,
    pub(crate) incompatible: u64,
    pub(crate) compatible: u64,
    pub(crate) autoclear: u64,
    pub(crate) refcount_order: u32,
    pub(crate) compression: Compression,
    pub(crate) backing: Option<BackingName>,
    pub(crate) bitmaps: Option<BitmapDirectory>,
    pub(crate) data_file: Option<String>,
    /// Where the LUKS header is, and its length.
    pub(crate) encryption_header: Option<(u64, u64)>,
    /// Extensions of which nothing is known here.
    pub(crate) more_extensions: Vec<(u32, Vec<u8>)>,
    /// Fields behind those that are known here.
    pub(crate) more_fields: Vec<u8>,
    /// Where the name of the backing file is in the file, if there is one.
    pub(crate) name_at: u64,
    /// Names of feature bits: kind (0 incompatible, 1 compatible, 2 autoclear), bit, name.
    pub(crate) feature_names: Vec<(u8, u8, String)>,
}

/// The features that this crate names in images it makes.
const FEATURE_NAMES: [(u8, u8, &str); 8] = [
    (0, 0, "dirty bit"),
    (0, 1, "corrupt bit"),
    (0, 2, "external data file"),
    (0, 3, "compression type"),
    (0, 4, "extended L2 entries"),
    (1, 0, "lazy refcounts"),
    (2, 0, "bitmaps"),
    (2, 1, "raw external data"),
];

impl Header {
    pub(crate) fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    pub(crate) fn has(&self, incompatible: u64) -> bool {
        self.incompatible & incompatible != 0
    }

    /// How many bytes of the disk one L2 table maps.
    pub(crate) fn l2_coverage(&self) -> u64 {
        let entry_bits = if self.has(INCOMPATIBLE_EXTENDED_L2) { 4 } else { 3 };
        1 << (2 * self.cluster_bits - entry_bits)
    }

    /// The cluster size that the first bytes of an image state, to know how much [`Header::parse`] needs.
    pub(crate) fn peek_cluster_size(first: &[u8]) -> Result<u64> {
        let (raw, _) = RawHeader::ref_from_prefix(first)
            .map_err(|_| Error::corrupt("the header", 0, "72 bytes", first.len() as u64))?;
        if raw.magic != MAGIC {
            return Err(Error::corrupt("the signature", 0, "\"QFI\\xfb\"", raw.magic.get().into()));
        }
        if !(2..=3).contains(&raw.version.get()) {
            let version = raw.version.get().into();
            return Err(Reason::Version { what: "qcow2", version }.into());
        }
        let bits = raw.cluster_bits.get();
        if !(9..=21).contains(&bits) {
            return Err(Error::corrupt("cluster_bits", 20, "9 to 21", bits.into()));
        }
        Ok(1 << bits)
    }

    /// Reads the header and its extensions out of the first cluster, or as much of it as the file has.
    pub(crate) fn parse(first: &[u8]) -> Result<Self> {
        let cluster_size = Self::peek_cluster_size(first)?;
        let (raw, rest) = RawHeader::ref_from_prefix(first)
            .map_err(|_| Error::corrupt("the header", 0, "72 bytes", first.len() as u64))?;
        let mut header = Self {
            version: if raw.version == 2 { Version::V2 } else { Version::V3 },
            cluster_bits: cluster_size.trailing_zeros(),
            size: raw.size.get(),
            encryption: raw.crypt_method.get(),
            l1_len: raw.l1_size.get(),
            l1_offset: raw.l1_table_offset.get(),
            reftable_offset: raw.refcount_table_offset.get(),
            reftable_clusters: raw.refcount_table_clusters.get(),
            snapshot_count: raw.nb_snapshots.get(),
            snapshots_offset: raw.snapshots_offset.get(),
            incompatible: 0,
            compatible: 0,
            autoclear: 0,
            refcount_order: 4,
            compression: Compression::Deflate,
            backing: None,
            bitmaps: None,
            data_file: None,
            encryption_header: None,
            more_extensions: Vec::new(),
            more_fields: Vec::new(),
            name_at: 0,
            feature_names: Vec::new(),
        };
        let mut extensions_at = size_of::<RawHeader>();
        if header.version == Version::V3 {
            extensions_at = header.parse_v3(first, rest)?;
        }
        let mut backing_format = None;
        header.parse_extensions(first, extensions_at, &mut backing_format)?;
        header.backing =
            parse_backing(first, raw, cluster_size)?.map(|name| BackingName { name, format: backing_format });
        header.name_at = if header.backing.is_some() { raw.backing_file_offset.get() } else { 0 };
        Ok(header)
    }

    /// Reads what version 3 adds; answers where the extensions begin.
    fn parse_v3(&mut self, first: &[u8], rest: &[u8]) -> Result<usize> {
        let (raw, _) = RawHeaderV3::ref_from_prefix(rest)
            .map_err(|_| Error::corrupt("the header", 0, "104 bytes", first.len() as u64))?;
        self.incompatible = raw.incompatible_features.get();
        self.compatible = raw.compatible_features.get();
        self.autoclear = raw.autoclear_features.get();
        self.refcount_order = raw.refcount_order.get();
        if self.refcount_order > 6 {
            return Err(Error::corrupt("refcount_order", 96, "0 to 6", self.refcount_order.into()));
        }
        let len = raw.header_length.get() as usize;
        if len < 104 || len > first.len() {
            return Err(Error::corrupt("header_length", 100, "104 to one cluster", len as u64));
        }
        self.more_fields = first.get(V3_LEN..len).unwrap_or_default().to_vec();
        let compression = if len > 104 { first[104] } else { 0 };
        self.compression = match compression {
            0 => Compression::Deflate,
            1 => Compression::Zstd,
            other => return Err(Reason::Version { what: "qcow2 compression", version: other.into() }.into()),
        };
        if (compression != 0) != self.has(INCOMPATIBLE_COMPRESSION) {
            let what = "the compression type, against its feature bit,";
            return Err(Error::corrupt(what, 104, "both or neither", compression.into()));
        }
        Ok(len)
    }

    fn parse_extensions(&mut self, first: &[u8], start: usize, format: &mut Option<String>) -> Result<()> {
        let mut at = start;
        loop {
            let Some(Ok((extension, _))) = first.get(at..).map(RawExtension::ref_from_prefix) else {
                // A header that fills its cluster, or an old image that is no longer than its header.
                return Ok(());
            };
            let kind = extension.kind.get();
            if kind == EXTENSION_END {
                return Ok(());
            }
            let data_at = at + size_of::<RawExtension>();
            let len = extension.len.get() as usize;
            let data = first.get(data_at..).and_then(|rest| rest.get(..len)).ok_or_else(|| {
                Error::corrupt("a header extension", at as u64, "data within the first cluster", len as u64)
            })?;
            match kind {
                EXTENSION_BACKING_FORMAT => *format = Some(text(data)),
                EXTENSION_DATA_FILE => self.data_file = Some(text(data)),
                EXTENSION_FEATURE_NAMES => self.feature_names = parse_feature_names(data),
                EXTENSION_BITMAPS => self.bitmaps = Some(parse_bitmaps(data, data_at)?),
                EXTENSION_ENCRYPTION => self.encryption_header = Some(parse_encryption(data, data_at)?),
                // Every other extension may be ignored, says the specification.
                _ => self.more_extensions.push((kind, data.to_vec())),
            }
            at = data_at + len.next_multiple_of(8);
        }
    }

    /// Where the header extensions are in the first cluster; `None` if they do not end there.
    pub(super) fn extensions(first: &[u8]) -> Option<Extensions> {
        let (raw, rest) = RawHeader::ref_from_prefix(first).ok()?;
        let mut at = match raw.version.get() {
            2 => size_of::<RawHeader>(),
            _ => RawHeaderV3::ref_from_prefix(rest).ok()?.0.header_length.get() as usize,
        };
        let mut list = Vec::new();
        loop {
            let (extension, rest) = RawExtension::ref_from_prefix(first.get(at..)?).ok()?;
            let (kind, len) = (extension.kind.get(), extension.len.get() as usize);
            if kind == EXTENSION_END {
                return Some(Extensions { list, end: at });
            }
            rest.get(..len)?;
            list.push((kind, at, len));
            at += size_of::<RawExtension>() + len.next_multiple_of(8);
        }
    }

    /// The data of a header extension, out of the first cluster.
    pub(super) fn find_extension(first: &[u8], wanted: u32) -> Option<&[u8]> {
        let list = Self::extensions(first)?.list;
        let (_, at, len) = list.into_iter().find(|(kind, ..)| *kind == wanted)?;
        first.get(at + size_of::<RawExtension>()..)?.get(..len)
    }

    /// Refuses features that change what the tables mean in a way that is not known.
    pub(super) fn check_known(&self) -> Result<()> {
        let unknown = self.incompatible & !INCOMPATIBLE_KNOWN;
        if unknown != 0 {
            let bits = (0..64u8).filter(|bit| unknown & (1 << bit) != 0);
            let names = bits.map(|bit| self.feature_name(bit)).collect();
            return Err(Reason::UnknownFeatures { names }.into());
        }
        if self.has(INCOMPATIBLE_EXTENDED_L2) && self.cluster_bits < 14 {
            let expected = "at least 14 with extended L2 entries";
            return Err(Error::corrupt("cluster_bits", 20, expected, self.cluster_bits.into()));
        }
        Ok(())
    }

    /// Refuses what this crate cannot even read.
    pub(crate) fn check_readable(&self) -> Result<()> {
        self.check_known()?;
        match self.encryption {
            0 => {}
            ENCRYPTION_LUKS if self.has(INCOMPATIBLE_DATA_FILE) => {
                return Err(Error::unsupported("an encrypted qcow2 image with an external data file"));
            }
            ENCRYPTION_LUKS => {}
            ENCRYPTION_AES => {
                let what = "the old AES encryption of qcow2, whose key is the passphrase itself,";
                return Err(Error::unsupported(what));
            }
            other => return Err(Reason::Version { what: "qcow2 encryption", version: other.into() }.into()),
        }
        Ok(())
    }

    fn feature_name(&self, bit: u8) -> String {
        let found = self.feature_names.iter().find(|(kind, at, _)| *kind == 0 && *at == bit);
        found.map_or_else(|| format!("incompatible feature {bit}"), |(_, _, name)| name.clone())
    }

    /// The header with its extensions as the beginning of the first cluster.
    pub(crate) fn encode(&self) -> Vec<u8> {
        self.encode_with_name_at(self.encode_extensions_end())
    }

    /// Where the extensions end.
    pub(super) fn encode_extensions_end(&self) -> usize {
        self.header_len() + self.encode_extensions().len()
    }

    fn header_len(&self) -> usize {
        match self.version {
            Version::V3 => V3_LEN + self.more_fields.len(),
            Version::V2 => size_of::<RawHeader>(),
        }
    }

    /// The same, with the name of the backing file at this offset, which is behind the extensions.
    pub(super) fn encode_with_name_at(&self, name_at: usize) -> Vec<u8> {
        let header_len = self.header_len();
        let name = self.backing.as_ref().map(|backing| backing.name.as_bytes()).unwrap_or_default();
        let place = if name.is_empty() { 0 } else { name_at };
        let mut out = self.encode_fixed(place as u64, name.len() as u32).as_bytes().to_vec();
        if self.version == Version::V3 {
            out.extend_from_slice(self.encode_v3(header_len as u32).as_bytes());
            out.push(match self.compression {
                Compression::Deflate => 0,
                Compression::Zstd => 1,
            });
            out.resize(V3_LEN, 0);
            out.extend_from_slice(&self.more_fields);
        }
        out.extend_from_slice(&self.encode_extensions());
        if !name.is_empty() {
            out.resize(name_at.max(out.len()), 0);
            out.extend_from_slice(name);
        }
        out
    }

    /// The extensions: first those that matter, so that they are within the first sector.
    fn encode_extensions(&self) -> Vec<u8> {
        let mut extensions = Vec::new();
        if let Some(format) = self.backing.as_ref().and_then(|backing| backing.format.as_ref()) {
            push_extension(&mut extensions, EXTENSION_BACKING_FORMAT, format.as_bytes());
        }
        if let Some((offset, len)) = self.encryption_header {
            let place = [offset.to_be_bytes(), len.to_be_bytes()].concat();
            push_extension(&mut extensions, EXTENSION_ENCRYPTION, &place);
        }
        if let Some(bitmaps) = &self.bitmaps {
            push_extension(&mut extensions, EXTENSION_BITMAPS, encode_bitmaps(bitmaps).as_bytes());
        }
        if let Some(name) = &self.data_file {
            push_extension(&mut extensions, EXTENSION_DATA_FILE, name.as_bytes());
        }
        for (kind, data) in &self.more_extensions {
            push_extension(&mut extensions, *kind, data);
        }
        if self.version == Version::V3 && !self.feature_names.is_empty() {
            push_extension(
                &mut extensions,
                EXTENSION_FEATURE_NAMES,
                &encode_feature_names(&self.feature_names),
            );
        }
        push_extension(&mut extensions, EXTENSION_END, &[]);
        extensions
    }

    fn encode_fixed(&self, name_at: u64, name_len: u32) -> RawHeader {
        RawHeader {
            magic: MAGIC.into(),
            version: if self.version == Version::V2 { 2 } else { 3 }.into(),
            backing_file_offset: name_at.into(),
            backing_file_size: name_len.into(),
            cluster_bits: self.cluster_bits.into(),
            size: self.size.into(),
            crypt_method: self.encryption.into(),
            l1_size: self.l1_len.into(),
            l1_table_offset: self.l1_offset.into(),
            refcount_table_offset: self.reftable_offset.into(),
            refcount_table_clusters: self.reftable_clusters.into(),
            nb_snapshots: self.snapshot_count.into(),
            snapshots_offset: self.snapshots_offset.into(),
        }
    }

    fn encode_v3(&self, header_len: u32) -> RawHeaderV3 {
        RawHeaderV3 {
            incompatible_features: self.incompatible.into(),
            compatible_features: self.compatible.into(),
            autoclear_features: self.autoclear.into(),
            refcount_order: self.refcount_order.into(),
            header_length: header_len.into(),
        }
    }

    /// The feature names that an image made by this crate carries.
    pub(crate) fn default_feature_names() -> Vec<(u8, u8, String)> {
        FEATURE_NAMES.map(|(kind, bit, name)| (kind, bit, name.to_owned())).to_vec()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn parse_backing(first: &[u8], raw: &RawHeader, cluster_size: u64) -> Result<Option<String>> {
    let (offset, len) = (raw.backing_file_offset.get(), raw.backing_file_size.get() as usize);
    if offset == 0 || len == 0 {
        return Ok(None);
    }
    if len > MAX_BACKING_NAME {
        return Err(Error::corrupt("the length of the backing file name", 16, "at most 1023", len as u64));
    }
    if offset > cluster_size {
        let expected = "an offset within the first cluster";
        return Err(Error::corrupt("the offset of the backing file name", 8, expected, offset));
    }
    let name = first.get(offset as usize..).and_then(|rest| rest.get(..len)).ok_or_else(|| {
        Error::corrupt("the backing file name", offset, "to end within the first cluster", len as u64)
    })?;
    // A name that is not UTF-8 could not be opened as what it says.
    let name = std::str::from_utf8(name).map_err(|error| {
        Error::corrupt("the backing file name", offset, "UTF-8", error.valid_up_to() as u64)
    })?;
    Ok(Some(name.to_owned()))
}

fn parse_feature_names(data: &[u8]) -> Vec<(u8, u8, String)> {
    let entries = data.chunks_exact(size_of::<RawFeatureName>());
    let entries = entries.filter_map(|bytes| RawFeatureName::ref_from_bytes(bytes).ok());
    let name = |raw: &RawFeatureName| {
        let len = raw.name.iter().position(|byte| *byte == 0).unwrap_or(raw.name.len());
        text(&raw.name[..len])
    };
    entries.map(|raw| (raw.kind, raw.bit, name(raw))).collect()
}

fn encode_feature_names(names: &[(u8, u8, String)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (kind, bit, name) in names {
        let mut raw = RawFeatureName { kind: *kind, bit: *bit, name: [0; 46] };
        let len = name.len().min(raw.name.len());
        raw.name[..len].copy_from_slice(&name.as_bytes()[..len]);
        out.extend_from_slice(raw.as_bytes());
    }
    out
}

fn parse_bitmaps(data: &[u8], at: usize) -> Result<BitmapDirectory> {
    let (raw, _) = RawBitmaps::ref_from_prefix(data)
        .map_err(|_| Error::corrupt("the bitmaps extension", at as u64, "24 bytes", data.len() as u64))?;
    Ok(BitmapDirectory {
        count: raw.nb_bitmaps.get(),
        offset: raw.bitmap_directory_offset.get(),
        len: raw.bitmap_directory_size.get(),
    })
}

fn parse_encryption(data: &[u8], at: usize) -> Result<(u64, u64)> {
    let numbers: Option<(&[u8; 8], &[u8; 8])> =
        data.split_first_chunk().and_then(|(offset, rest)| Some((offset, rest.first_chunk()?)));
    let (offset, len) = numbers.ok_or_else(|| {
        Error::corrupt("the encryption extension", at as u64, "16 bytes", data.len() as u64)
    })?;
    Ok((u64::from_be_bytes(*offset), u64::from_be_bytes(*len)))
}

pub(super) fn encode_bitmaps(bitmaps: &BitmapDirectory) -> impl IntoBytes + Immutable {
    RawBitmaps {
        nb_bitmaps: bitmaps.count.into(),
        reserved: 0.into(),
        bitmap_directory_size: bitmaps.len.into(),
        bitmap_directory_offset: bitmaps.offset.into(),
    }
}

fn push_extension(out: &mut Vec<u8>, kind: u32, data: &[u8]) {
    let head = RawExtension { kind: kind.into(), len: (data.len() as u32).into() };
    out.extend_from_slice(head.as_bytes());
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(8), 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    prop_compose! {
        fn headers()(
            v3 in any::<bool>(), cluster_bits in 9u32..=21, size in any::<u64>(), l1_len in any::<u32>(),
            offsets in any::<[u64; 3]>(), counts in any::<[u32; 2]>(), bits in any::<[u64; 3]>(),
            refcount_order in 0u32..=6, zstd in any::<bool>(), backing in proptest::option::of("[a-z/.]{1,60}"),
            format in proptest::option::of("raw|qcow2"), bitmaps in proptest::option::of(any::<(u32, u64, u64)>()),
        ) -> Header {
            let compression = if v3 && zstd { Compression::Zstd } else { Compression::Deflate };
            let bit = if v3 && zstd { INCOMPATIBLE_COMPRESSION } else { 0 };
            let [incompatible, compatible, autoclear] = if v3 { bits } else { [0; 3] };
            Header {
                version: if v3 { Version::V3 } else { Version::V2 },
                cluster_bits, size, encryption: 0, l1_len,
                l1_offset: offsets[0], reftable_offset: offsets[1], reftable_clusters: counts[0],
                snapshot_count: counts[1], snapshots_offset: offsets[2],
                incompatible: incompatible & !INCOMPATIBLE_COMPRESSION | bit, compatible, autoclear,
                refcount_order: if v3 { refcount_order } else { 4 }, compression,
                backing: backing.map(|name| BackingName { name, format }),
                bitmaps: bitmaps.map(|(count, offset, len)| BitmapDirectory { count, offset, len }),
                data_file: None, encryption_header: None, more_extensions: Vec::new(), more_fields: Vec::new(), name_at: 0,
                feature_names: Vec::new(),
            }
        }
    }

    proptest! {
        #[test]
        fn a_header_parses_back_to_itself(header in headers()) {
            let parsed = Header::parse(&header.encode()).unwrap();
            prop_assert_eq!(Header { name_at: 0, ..parsed }, header);
        }

        #[test]
        fn no_bytes_make_the_parser_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = Header::parse(&bytes);
            if let Some(magic) = bytes.get_mut(..8) {
                magic.copy_from_slice(b"QFI\xfb\0\0\0\x03");
            }
            let _ = Header::parse(&bytes);
        }
    }

    #[test]
    fn an_unknown_feature_is_named_by_the_image_itself() {
        let first = super::super::create::empty_header(1 << 20, &Default::default());
        let mut header = Header { incompatible: 1 << 9, ..first };
        header.feature_names.push((0, 9, "time travel".to_owned()));
        let error = Header::parse(&header.encode()).unwrap().check_readable().unwrap_err();
        assert_eq!(error.kind(), vmwright_disk::ErrorKind::Unsupported);
        assert!(error.to_string().contains("time travel"), "{error}");
    }
}
