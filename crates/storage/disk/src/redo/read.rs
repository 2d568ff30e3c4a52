use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zerocopy::FromBytes;

use super::layout::{
    DIGEST_LEN, ENTRY_BESIDE, ENTRY_BLOCK, HEADER_LEN, Header, MAGIC_CHUNK, MAGIC_POINTER, MAGIC_REDO,
    MAGIC_VOID, MAX_CHUNK_DATA, MAX_CHUNK_DIGESTS, MAX_CHUNK_RECORDS, MAX_FILES, MAX_PATH, RawChunk,
    RawEntry, RawPointer, RawRecord, void_header,
};
use super::{Entry, MAX_RANGE, MAX_SPARSE, MAX_WRITE, Pointer, Record, RecordKind, digest};
use crate::host::Handle;
use crate::overlay::SECTOR;
use crate::{Error, Result};

/// What a file named like a redo is.
#[derive(Debug)]
pub(crate) enum Parsed {
    Redo(Redo),
    Pointer(Pointer),
    /// Its change was applied, or given up; it only waits to be removed.
    Void,
}

/// A redo file that was opened, its header and table of files read and found sound.
#[derive(Debug, Clone)]
pub(crate) struct Redo {
    handle: Arc<dyn Handle>,
    path: PathBuf,
    /// The user the redo file belongs to.
    pub(crate) owner: u32,
    pub(crate) entries: Vec<Entry>,
    pub(crate) body_hash: [u8; 32],
    chunks_start: u64,
    end: u64,
}

/// Up to about two MiB of records of one file.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) file: usize,
    pub(crate) records: Vec<Record>,
    bytes: Vec<u8>,
    digests_start: usize,
    data_start: usize,
    /// Where `bytes` begins in the redo file.
    position: u64,
}

/// A record with what belongs to it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Item<'a> {
    pub(crate) record: Record,
    pub(crate) digests: &'a [u8],
    pub(crate) data: &'a [u8],
    /// Where the data begins in the redo file.
    pub(crate) data_position: u64,
}

impl Redo {
    /// Reads the head of the file that `handle` has open, which is at `path`.
    pub(crate) fn parse(handle: Arc<dyn Handle>, path: &Path) -> Result<Parsed> {
        let stat = handle.stat().map_err(|source| Error::host("stat", path, source))?;
        let len = stat.len;
        let mut cursor = Cursor { handle: &*handle, path, at: 0, end: len };
        let mut magic = [0; 8];
        cursor.peek(&mut magic)?;
        match magic {
            MAGIC_VOID => Ok(Parsed::Void),
            MAGIC_POINTER => parse_pointer(&mut cursor).map(Parsed::Pointer),
            MAGIC_REDO => {
                let header: Header = cursor.take()?;
                if !header.is_sound() {
                    return Err(cursor.damaged("a header whose checksum is wrong"));
                }
                if header.body_len.get().checked_add(HEADER_LEN as u64) != Some(len) {
                    return Err(cursor.damaged("a length that is not the one in its header"));
                }
                let entries = parse_entries(&mut cursor, header.files.get())?;
                let (chunks_start, body_hash) = (cursor.at, header.body_hash);
                let path = path.to_owned();
                Ok(Parsed::Redo(Self {
                    handle,
                    path,
                    owner: stat.owner,
                    entries,
                    body_hash,
                    chunks_start,
                    end: len,
                }))
            }
            _ => Err(cursor.damaged("no header of a redo file")),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn handle(&self) -> Arc<dyn Handle> {
        self.handle.clone()
    }

    /// Reads the whole file once and compares its checksum.
    pub(crate) fn check_body(&self) -> Result<()> {
        let mut hash = blake3::Hasher::new();
        let mut cursor = self.cursor(HEADER_LEN as u64);
        let mut buf = vec![0; (self.end - cursor.at).min(1 << 20) as usize];
        while cursor.at < cursor.end {
            let step = (cursor.end - cursor.at).min(buf.len() as u64) as usize;
            cursor.read(&mut buf[..step])?;
            hash.update(&buf[..step]);
        }
        match hash.finalize() == blake3::Hash::from_bytes(self.body_hash) {
            true => Ok(()),
            false => Err(Error::damaged(&self.path, 0, "a body whose checksum is wrong")),
        }
    }

    /// Calls `visit` with every chunk, in order.
    pub(crate) fn for_each_chunk(&self, visit: &mut dyn FnMut(&Chunk) -> Result<()>) -> Result<()> {
        let mut cursor = self.cursor(self.chunks_start);
        // Records of a file are in rising order, and so are the files.
        let mut reached = (0, 0);
        while cursor.at < cursor.end {
            let chunk = self.read_chunk(&mut cursor, &mut reached)?;
            visit(&chunk)?;
        }
        Ok(())
    }

    fn read_chunk(&self, cursor: &mut Cursor<'_>, reached: &mut (usize, u64)) -> Result<Chunk> {
        let position = cursor.at;
        let raw: RawChunk = cursor.take()?;
        let (records, digests) = (raw.records.get(), raw.digests.get());
        let (file, data_len) = (raw.file.get() as usize, raw.data_len.get());
        let sound = raw.magic.get() == MAGIC_CHUNK
            && raw.reserved.get() == 0
            && (1..=MAX_CHUNK_RECORDS).contains(&records)
            && digests <= MAX_CHUNK_DIGESTS
            && data_len <= MAX_CHUNK_DATA;
        let Some(entry) = self.entries.get(file).filter(|_| sound && file >= reached.0) else {
            return Err(Error::damaged(&self.path, position, "a chunk header that makes no sense"));
        };
        if file > reached.0 {
            *reached = (file, 0);
        }
        let digests_start = records as usize * size_of::<RawRecord>();
        let data_start = digests_start + digests as usize * DIGEST_LEN;
        let position = cursor.at;
        let mut bytes = vec![0; data_start + data_len as usize];
        cursor.read(&mut bytes)?;

        let mut list = Vec::with_capacity(records as usize);
        let (mut needs_digests, mut needs_data) = (0u64, 0u64);
        for raw in bytes[..digests_start].chunks_exact(size_of::<RawRecord>()) {
            let record = RawRecord::read_from_bytes(raw).map_err(|_| cursor.damaged("a short record"))?;
            let record = record.decode().map_err(|what| cursor.damaged(what))?;
            if !is_in_order(&record, entry, reached.1) {
                return Err(Error::damaged(&self.path, position, "a record out of order or bounds"));
            }
            reached.1 = record.end();
            needs_digests += record.digests();
            needs_data += record.data_len();
            list.push(record);
        }
        if needs_digests != u64::from(digests) || needs_data != u64::from(data_len) {
            return Err(Error::damaged(&self.path, position, "a chunk whose parts do not add up"));
        }
        Ok(Chunk { file, records: list, bytes, digests_start, data_start, position })
    }

    /// Makes the redo mean nothing any more, durably.
    pub(crate) fn void(handle: &dyn Handle) -> io::Result<()> {
        handle.write_at(&void_header(), 0)?;
        handle.sync(false)
    }

    fn cursor(&self, at: u64) -> Cursor<'_> {
        Cursor { handle: &*self.handle, path: &self.path, at, end: self.end }
    }
}

/// Whether a record lies within its file, on sectors, after the one before.
fn is_in_order(record: &Record, entry: &Entry, after: u64) -> bool {
    let Some(end) = record.start.checked_add(record.len) else { return false };
    let placed = match record.kind {
        RecordKind::Cut => {
            record.start >= entry.new_len
                && (record.start - entry.new_len).is_multiple_of(super::CUT_GRANULE)
                && end <= entry.old_len
                && (record.len.is_multiple_of(super::CUT_GRANULE) || end == entry.old_len)
        }
        _ => {
            record.start.is_multiple_of(SECTOR)
                && end <= entry.new_len
                && (record.len.is_multiple_of(SECTOR) || end == entry.new_len)
        }
    };
    let max = match record.kind {
        RecordKind::Write => MAX_WRITE,
        RecordKind::Zero if record.old_zero => MAX_SPARSE,
        _ => MAX_RANGE,
    };
    placed && record.len > 0 && record.len <= max && record.start >= after
}

impl Chunk {
    /// The data of all its records, one after the other.
    pub(crate) fn data(&self) -> &[u8] {
        &self.bytes[self.data_start..]
    }

    /// The records with their digests and data.
    pub(crate) fn items(&self) -> impl Iterator<Item = Item<'_>> {
        let (mut digest_at, mut data_at) = (self.digests_start, self.data_start);
        self.records.iter().map(move |record| {
            // That the parts add up was checked when the chunk was read.
            let digests_end = digest_at + record.digests() as usize * DIGEST_LEN;
            let data_end = data_at + record.data_len() as usize;
            let item = Item {
                record: *record,
                digests: &self.bytes[digest_at..digests_end],
                data: &self.bytes[data_at..data_end],
                data_position: self.position + data_at as u64,
            };
            (digest_at, data_at) = (digests_end, data_end);
            item
        })
    }
}

fn parse_pointer(cursor: &mut Cursor<'_>) -> Result<Pointer> {
    let raw: RawPointer = cursor.take()?;
    let path = cursor.path_bytes(raw.path_len.get())?;
    let unchecked = RawPointer { check: [0; DIGEST_LEN], ..raw };
    let sum = digest(&[zerocopy::IntoBytes::as_bytes(&unchecked), &path].concat());
    if sum != raw.check || cursor.at != cursor.end {
        return Err(cursor.damaged("a pointer whose checksum is wrong"));
    }
    let redo = cursor.resolve(&path, raw.flags.get() & ENTRY_BESIDE != 0)?;
    Ok(Pointer { redo, body_hash: raw.body_hash })
}

fn parse_entries(cursor: &mut Cursor<'_>, count: u32) -> Result<Vec<Entry>> {
    if count == 0 || count > MAX_FILES {
        return Err(cursor.damaged("a number of files that makes no sense"));
    }
    let mut entries = Vec::new();
    for _ in 0..count {
        let raw: RawEntry = cursor.take()?;
        let path = cursor.path_bytes(raw.path_len.get())?;
        let path = cursor.resolve(&path, raw.flags.get() & ENTRY_BESIDE != 0)?;
        let (old_len, new_len) = (raw.old_len.get(), raw.new_len.get());
        let block_device = raw.flags.get() & ENTRY_BLOCK != 0;
        let fits = old_len.max(new_len) <= i64::MAX as u64 - SECTOR && (!block_device || old_len == new_len);
        if !fits || raw.flags.get() & !(ENTRY_BLOCK | ENTRY_BESIDE) != 0 {
            return Err(cursor.damaged("a file whose description makes no sense"));
        }
        let (device, inode) = (raw.device.get(), raw.inode.get());
        entries.push(Entry { path, device, inode, old_len, new_len, block_device });
    }
    Ok(entries)
}

/// Reads a redo file front to back.
struct Cursor<'a> {
    handle: &'a dyn Handle,
    path: &'a Path,
    at: u64,
    end: u64,
}

impl Cursor<'_> {
    fn damaged(&self, what: &'static str) -> Error {
        Error::damaged(self.path, self.at, what)
    }

    fn peek(&mut self, buf: &mut [u8]) -> Result<()> {
        let at = self.at;
        self.read(buf)?;
        self.at = at;
        Ok(())
    }

    fn read(&mut self, buf: &mut [u8]) -> Result<()> {
        let len = buf.len() as u64;
        if self.end.saturating_sub(self.at) < len {
            return Err(self.damaged("an end too early"));
        }
        self.handle.read_at(buf, self.at).map_err(|source| Error::host("read", self.path, source))?;
        self.at += len;
        Ok(())
    }

    fn take<T: FromBytes>(&mut self) -> Result<T> {
        let mut bytes = vec![0; size_of::<T>()];
        self.read(&mut bytes)?;
        T::read_from_bytes(&bytes).map_err(|_| self.damaged("a short structure"))
    }

    fn path_bytes(&mut self, len: u32) -> Result<Vec<u8>> {
        if len == 0 || len > MAX_PATH {
            return Err(self.damaged("a path of no sensible length"));
        }
        let mut bytes = vec![0; len as usize];
        self.read(&mut bytes)?;
        match bytes.contains(&0) {
            true => Err(self.damaged("a path with a NUL byte")),
            false => Ok(bytes),
        }
    }

    /// Turns a recorded path into an absolute one.
    fn resolve(&self, path: &[u8], beside: bool) -> Result<PathBuf> {
        let recorded = Path::new(OsStr::from_bytes(path));
        match beside {
            true if Some(recorded.as_os_str()) == recorded.file_name() => {
                Ok(self.path.with_file_name(recorded))
            }
            false if recorded.is_absolute() => Ok(recorded.to_owned()),
            _ => Err(self.damaged("a path that is neither absolute nor a name")),
        }
    }
}
