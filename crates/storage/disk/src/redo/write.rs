use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use zerocopy::IntoBytes;

use super::layout::{
    DIGEST_LEN, ENTRY_BESIDE, ENTRY_BLOCK, HEADER_LEN, Header, MAGIC_CHUNK, MAGIC_POINTER, RawChunk,
    RawEntry, RawPointer, RawRecord,
};
use super::{Entry, Pointer, Record, digest};
use crate::host::Handle;

/// How much is collected before it is written out.
const FLUSH: usize = 1 << 20;

/// Writes a redo file front to back, holding about two MiB at a time.
pub(crate) struct RedoWriter {
    handle: Arc<dyn Handle>,
    files: u32,
    hash: blake3::Hasher,
    /// Bytes that follow the ones written already; at first the place of the header.
    out: Vec<u8>,
    written: u64,
    chunk: OpenChunk,
}

#[derive(Default)]
struct OpenChunk {
    file: u32,
    count: u32,
    records: Vec<u8>,
    digests: Vec<u8>,
    data: Vec<u8>,
}

impl RedoWriter {
    /// Begins a redo of these files in a new, empty file that will be in the folder `dir`.
    pub(crate) fn new(handle: Arc<dyn Handle>, entries: &[Entry], dir: &Path) -> Self {
        let mut out = vec![0; HEADER_LEN];
        for entry in entries {
            let (path, beside) = path_in(dir, &entry.path);
            let flags =
                if entry.block_device { ENTRY_BLOCK } else { 0 } | if beside { ENTRY_BESIDE } else { 0 };
            let raw = RawEntry {
                device: entry.device.into(),
                inode: entry.inode.into(),
                old_len: entry.old_len.into(),
                new_len: entry.new_len.into(),
                flags: flags.into(),
                path_len: (path.len() as u32).into(),
            };
            out.extend_from_slice(raw.as_bytes());
            out.extend_from_slice(path);
        }
        let mut hash = blake3::Hasher::new();
        hash.update(&out[HEADER_LEN..]);
        let files = entries.len() as u32;
        Self { handle, files, hash, out, written: 0, chunk: OpenChunk::default() }
    }

    /// Adds a record of file number `file`; files and their records come in rising order.
    pub(crate) fn push(
        &mut self,
        file: usize,
        record: &Record,
        digests: &[u8],
        data: &[u8],
    ) -> io::Result<()> {
        if self.chunk.file != file as u32 {
            self.close_chunk()?;
            self.chunk.file = file as u32;
        }
        self.chunk.count += 1;
        self.chunk.records.extend_from_slice(RawRecord::encode(record).as_bytes());
        self.chunk.digests.extend_from_slice(digests);
        self.chunk.data.extend_from_slice(data);
        let full = self.chunk.count >= 4096
            || self.chunk.digests.len() >= 65536 * DIGEST_LEN
            || self.chunk.data.len() >= FLUSH;
        if full { self.close_chunk() } else { Ok(()) }
    }

    fn close_chunk(&mut self) -> io::Result<()> {
        if self.chunk.count == 0 {
            return Ok(());
        }
        let raw = RawChunk {
            magic: MAGIC_CHUNK.into(),
            file: self.chunk.file.into(),
            records: self.chunk.count.into(),
            digests: ((self.chunk.digests.len() / DIGEST_LEN) as u32).into(),
            data_len: (self.chunk.data.len() as u32).into(),
            reserved: 0.into(),
        };
        let start = self.out.len();
        for part in [raw.as_bytes(), &self.chunk.records, &self.chunk.digests, &self.chunk.data] {
            self.out.extend_from_slice(part);
        }
        self.hash.update(&self.out[start..]);
        self.chunk.count = 0;
        self.chunk.records.clear();
        self.chunk.digests.clear();
        self.chunk.data.clear();
        if self.out.len() >= FLUSH { self.write_out() } else { Ok(()) }
    }

    fn write_out(&mut self) -> io::Result<()> {
        self.handle.write_at(&self.out, self.written)?;
        self.written += self.out.len() as u64;
        self.out.clear();
        Ok(())
    }

    /// Completes the file with its header and answers the hash of its body. The file is not yet synced.
    pub(crate) fn finish(mut self) -> io::Result<[u8; 32]> {
        self.close_chunk()?;
        let body_hash = *self.hash.finalize().as_bytes();
        let body_len = self.written + self.out.len() as u64 - HEADER_LEN as u64;
        let header = Header::new(self.files, body_len, body_hash);
        if self.written == 0 {
            self.out[..HEADER_LEN].copy_from_slice(header.as_bytes());
            self.write_out()?;
        } else {
            self.write_out()?;
            self.handle.write_at(header.as_bytes(), 0)?;
        }
        Ok(body_hash)
    }
}

/// Writes a pointer into a new, empty file that will be in the folder `dir`.
pub(crate) fn write_pointer(handle: &dyn Handle, pointer: &Pointer, dir: &Path) -> io::Result<()> {
    let (path, beside) = path_in(dir, &pointer.redo);
    let mut raw = RawPointer {
        magic: MAGIC_POINTER,
        check: [0; DIGEST_LEN],
        body_hash: pointer.body_hash,
        flags: if beside { ENTRY_BESIDE } else { 0 }.into(),
        path_len: (path.len() as u32).into(),
        padding: [0; 448],
    };
    raw.check = digest(&[raw.as_bytes(), path].concat());
    handle.write_at(&[raw.as_bytes(), path].concat(), 0)
}

/// How a path is recorded in a folder: by its name alone if it is there too, so that the folder can be moved.
fn path_in<'a>(dir: &Path, path: &'a Path) -> (&'a [u8], bool) {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) if parent == dir => (name.as_bytes(), true),
        _ => (<OsStr as OsStrExt>::as_bytes(path.as_os_str()), false),
    }
}
