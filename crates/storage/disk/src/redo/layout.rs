//! The bytes of a redo file, as `docs/formats/redo.md` has them. All numbers are little-endian.

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Record, RecordKind};

pub(super) const HEADER_LEN: usize = 512;
pub(super) const MAGIC_REDO: [u8; 8] = *b"VMWREDO1";
pub(super) const MAGIC_POINTER: [u8; 8] = *b"VMWRPTR1";
pub(super) const MAGIC_VOID: [u8; 8] = *b"VMWRVOID";
pub(super) const MAGIC_CHUNK: u32 = 0x4b4e_4843;

/// Bounds that a reader holds a file to, so that it never allocates more than a few MiB.
pub(super) const MAX_FILES: u32 = 4096;
pub(super) const MAX_PATH: u32 = 4096;
pub(super) const MAX_CHUNK_RECORDS: u32 = 8192;
pub(super) const MAX_CHUNK_DIGESTS: u32 = 1 << 17;
pub(super) const MAX_CHUNK_DATA: u32 = 2 << 20;

pub(super) const DIGEST_LEN: usize = 16;

/// The first 16 bytes of a BLAKE3 hash.
pub(crate) type Digest = [u8; DIGEST_LEN];

/// The digest of the bytes of a sector, completed with zeros where the file ends within it.
pub(crate) fn digest(bytes: &[u8]) -> Digest {
    let mut digest = [0; DIGEST_LEN];
    digest.copy_from_slice(&blake3::hash(bytes).as_bytes()[..DIGEST_LEN]);
    digest
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    pub(super) magic: [u8; 8],
    /// BLAKE3 of this header with this field zero.
    pub(super) check: Digest,
    pub(super) files: U32,
    pub(super) reserved: U32,
    pub(super) body_len: U64,
    /// BLAKE3 of everything after the header.
    pub(super) body_hash: [u8; 32],
    pub(super) padding: [u8; 440],
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawEntry {
    pub(super) device: U64,
    pub(super) inode: U64,
    pub(super) old_len: U64,
    pub(super) new_len: U64,
    pub(super) flags: U32,
    pub(super) path_len: U32,
}

/// The file is a block device.
pub(super) const ENTRY_BLOCK: u32 = 1;
/// The path is a name in the folder of the redo file.
pub(super) const ENTRY_BESIDE: u32 = 2;

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawChunk {
    pub(super) magic: U32,
    pub(super) file: U32,
    pub(super) records: U32,
    pub(super) digests: U32,
    pub(super) data_len: U32,
    pub(super) reserved: U32,
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawRecord {
    pub(super) start: U64,
    pub(super) len: U64,
    pub(super) kind: U32,
    pub(super) flags: U32,
}

/// The range read as zeros before.
pub(super) const RECORD_OLD_ZERO: u32 = 1;

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawPointer {
    pub(super) magic: [u8; 8],
    /// BLAKE3 of the pointer with this field zero, and of the path after it.
    pub(super) check: Digest,
    /// The hash of the body of the redo pointed to, of which there may be another by now.
    pub(super) body_hash: [u8; 32],
    pub(super) flags: U32,
    pub(super) path_len: U32,
    pub(super) padding: [u8; 448],
}

const _: () = {
    assert!(size_of::<Header>() == HEADER_LEN);
    assert!(size_of::<RawPointer>() == HEADER_LEN);
    assert!(size_of::<RawEntry>() == 40);
    assert!(size_of::<RawChunk>() == 24);
    assert!(size_of::<RawRecord>() == 24);
};

impl Header {
    pub(super) fn new(files: u32, body_len: u64, body_hash: [u8; 32]) -> Self {
        let mut header = Self {
            magic: MAGIC_REDO,
            check: [0; DIGEST_LEN],
            files: files.into(),
            reserved: 0.into(),
            body_len: body_len.into(),
            body_hash,
            padding: [0; 440],
        };
        header.check = digest(header.as_bytes());
        header
    }

    pub(super) fn is_sound(&self) -> bool {
        let unchecked = Self { check: [0; DIGEST_LEN], ..*self };
        self.check == digest(unchecked.as_bytes())
    }
}

/// Gives bytes that may have been damaged the checksums of a sound redo file.
#[cfg(any(test, feature = "test-util"))]
pub(crate) fn reseal(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().max(HEADER_LEN), 0);
    let (head, body) = bytes.split_at_mut(HEADER_LEN);
    if let Ok((header, _)) = Header::mut_from_prefix(head) {
        let body_hash = *blake3::hash(body).as_bytes();
        *header = Header {
            padding: header.padding,
            ..Header::new(header.files.get(), body.len() as u64, body_hash)
        };
        header.check = [0; DIGEST_LEN];
        header.check = digest(header.as_bytes());
    }
}

/// The header of a redo file that means nothing any more.
pub(super) fn void_header() -> [u8; HEADER_LEN] {
    let mut bytes = [0; HEADER_LEN];
    bytes[..8].copy_from_slice(&MAGIC_VOID);
    bytes
}

impl RawRecord {
    pub(super) fn encode(record: &Record) -> Self {
        let kind: u32 = match record.kind {
            RecordKind::Write => 1,
            RecordKind::Zero => 2,
            RecordKind::Cut => 3,
        };
        let flags = if record.old_zero { RECORD_OLD_ZERO } else { 0 };
        Self { start: record.start.into(), len: record.len.into(), kind: kind.into(), flags: flags.into() }
    }

    pub(super) fn decode(&self) -> Result<Record, &'static str> {
        let kind = match self.kind.get() {
            1 => RecordKind::Write,
            2 => RecordKind::Zero,
            3 => RecordKind::Cut,
            _ => return Err("a record of no known kind"),
        };
        if self.flags.get() & !RECORD_OLD_ZERO != 0 {
            return Err("a record with an unknown flag");
        }
        let old_zero = self.flags.get() == RECORD_OLD_ZERO;
        Ok(Record { kind, start: self.start.get(), len: self.len.get(), old_zero })
    }
}

/// What stands beside a file whose redo is elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pointer {
    pub(crate) redo: std::path::PathBuf,
    pub(crate) body_hash: [u8; 32],
}
