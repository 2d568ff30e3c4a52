//! An archive as `tar` writes it: POSIX pax and ustar, GNU, and what came before.
//!
//! ```text
//! [header 'g': records for all that follows]
//! [header 'x': records for the next]  [headers 'L', 'K': long names, GNU]   header · content, filled up to 512 bytes
//! …                                                                         two blocks of zeros
//! ```
//!
//! Format: <https://pubs.opengroup.org/onlinepubs/9799919799/utilities/pax.html> and the manual of GNU tar. It is read here,
//! not by a library, because attributes such as capabilities hold any bytes, and sparse files come in four forms.

mod acl;
mod decompress;
mod header;
mod pax;
mod sparse;

use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::{Path, PathBuf};

use vmwright_vfs::{DeviceNumber, Timestamp};

use crate::entry::{Content, Entry, EntryKind, Nothing, Source, clean};
use crate::{Error, ErrorKind, Result};
use header::{BLOCK, Header};
use pax::Records;
use sparse::Map;

/// How many bytes of content are handed on at once.
const CHUNK: usize = 1 << 20;

/// The most bytes of an extended header or of a long name.
const RECORDS_MAX: u64 = 4 << 20;

/// A tar archive, compressed by gzip, zstd or xz or not at all.
pub struct TarArchive {
    input: Input,
}

enum Input {
    File(PathBuf),
    Stream(Box<dyn Read>),
}

impl TarArchive {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// Kind `NotFound` or `Io` where it cannot be opened.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::host("open", path))?;
        let repeatable = file.metadata().is_ok_and(|metadata| metadata.is_file());
        // A pipe can be read once only.
        Ok(if repeatable { Self { input: Input::File(path.to_owned()) } } else { Self::stream(file) })
    }

    /// Reads a stream, once.
    pub fn stream(reader: impl Read + 'static) -> Self {
        Self { input: Input::Stream(Box::new(reader)) }
    }
}

impl std::fmt::Debug for TarArchive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let path = match &self.input {
            Input::File(path) => Some(path),
            Input::Stream(_) => None,
        };
        f.debug_struct("TarArchive").field("path", &path).finish_non_exhaustive()
    }
}

impl Source for TarArchive {
    fn each(&mut self, visit: &mut dyn FnMut(Entry, &mut dyn Content) -> Result<()>) -> Result<()> {
        match &mut self.input {
            Input::File(path) => {
                let mut file = File::open(&*path).map_err(Error::host("open", path))?;
                file.rewind().map_err(Error::host("read", path))?;
                read(file, visit)
            }
            Input::Stream(stream) => read(stream, visit),
        }
    }

    fn is_repeatable(&self) -> bool {
        matches!(self.input, Input::File(_))
    }
}

fn read(input: impl Read, visit: &mut dyn FnMut(Entry, &mut dyn Content) -> Result<()>) -> Result<()> {
    let unpacked = decompress::unpacked(BufReader::with_capacity(1 << 18, input))?;
    let mut reader = Reader { stream: BufReader::with_capacity(1 << 18, unpacked), at: 0 };
    let mut global = Records::new();
    let mut next = Next::default();
    loop {
        let at = reader.at;
        let Some(block) = reader.header()? else { return Ok(()) };
        let header =
            Header::parse(&block, at).map_err(|error| if at == 0 { not_an_archive() } else { error })?;
        match header.kind {
            b'g' => {
                pax::parse(&reader.short(header.size, at)?, at, &mut global)?;
                let kept: usize = global.iter().map(|(key, value)| key.len() + value.len()).sum();
                if kept as u64 > RECORDS_MAX {
                    return Err(Error::unsupported(at, "global headers of more than 4 MiB together"));
                }
            }
            b'x' | b'X' => {
                let mut records = global.clone();
                pax::parse(&reader.short(header.size, at)?, at, &mut records)?;
                next.records = Some(records);
            }
            b'L' => next.name = Some(header::text(&reader.short(header.size, at)?)),
            b'K' => next.link = Some(header::text(&reader.short(header.size, at)?)),
            // The label of a volume.
            b'V' => reader.skip(padded(header.size))?,
            _ => {
                let said = std::mem::take(&mut next);
                let records = said.records.clone().unwrap_or_else(|| global.clone());
                reader.entry(&block, header, at, &said, &records, visit)?;
            }
        }
    }
}

fn not_an_archive() -> Error {
    Error::damaged(0, "this is no tar archive, or one compressed in a way that is not known")
}

/// What was said ahead of the next entry.
#[derive(Default)]
struct Next {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    records: Option<Records>,
}

struct Reader<R> {
    stream: R,
    at: u64,
}

/// A length filled up to whole blocks; what no archive can hold is cut short anyway.
fn padded(size: u64) -> u64 {
    size.checked_next_multiple_of(BLOCK as u64).unwrap_or(u64::MAX)
}

impl<R: Read> Reader<R> {
    fn exact(&mut self, buffer: &mut [u8]) -> Result<()> {
        self.stream.read_exact(buffer).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => Error::damaged(self.at, "it is cut short"),
            _ => Error::read(error),
        })?;
        self.at += buffer.len() as u64;
        Ok(())
    }

    /// The next block that is not zeros, or nothing at the end.
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        self.exact(&mut block)?;
        if block != [0; BLOCK] {
            return Ok(Some(block));
        }
        // What follows is zeros up to the end of a record. A pipe is read to its end, so that its writer is content.
        std::io::copy(&mut self.stream, &mut std::io::sink()).map_err(Error::read)?;
        Ok(None)
    }

    /// Content that is kept in memory.
    fn short(&mut self, size: u64, at: u64) -> Result<Vec<u8>> {
        if size > RECORDS_MAX {
            return Err(Error::unsupported(at, "an extended header of more than 4 MiB"));
        }
        let mut bytes = vec![0; padded(size) as usize];
        self.exact(&mut bytes)?;
        bytes.truncate(size as usize);
        Ok(bytes)
    }

    fn skip(&mut self, len: u64) -> Result<()> {
        let skipped = std::io::copy(&mut (&mut self.stream).take(len), &mut std::io::sink());
        self.at = self.at.saturating_add(len);
        match skipped.map_err(Error::read)? {
            skipped if skipped == len => Ok(()),
            _ => Err(Error::damaged(self.at, "it is cut short")),
        }
    }

    /// Visits one entry and goes on to the header behind it.
    fn entry(
        &mut self,
        block: &[u8; BLOCK],
        mut header: Header,
        at: u64,
        said: &Next,
        records: &Records,
        visit: &mut dyn FnMut(Entry, &mut dyn Content) -> Result<()>,
    ) -> Result<()> {
        let record = |key: &[u8]| records.get(key);
        let number = |key: &[u8], otherwise| match record(key) {
            Some(value) => {
                pax::number(value).ok_or_else(|| Error::damaged(at, "an extended header is damaged"))
            }
            None => Ok(otherwise),
        };
        header.size = number(b"size", header.size)?;
        header.uid = number(b"uid", header.uid)?;
        header.gid = number(b"gid", header.gid)?;
        let (map, stored) = self.map(block, &header, at, records)?;
        let name = [&b"GNU.sparse.name"[..], b"path"].into_iter().find_map(record);
        let name = name.or(said.name.as_ref()).unwrap_or(&header.name).clone();
        let path = clean(&name).ok_or_else(|| {
            Error::entry(ErrorKind::InvalidInput, &name, "the archive names a path that leads out of it")
        })?;
        let link = record(b"linkpath").or(said.link.as_ref()).unwrap_or(&header.link);
        let size = map.as_ref().map_or(stored, |map| map.size);
        let kind = kind(&header, link, size, name.ends_with(b"/"), at)?;
        // Links, directories and devices have no content, whatever length is said: it may be that of the file linked to.
        let stored = if matches!(header.kind, b'1'..=b'6') { 0 } else { stored };
        let modified = match record(b"mtime") {
            Some(value) => pax::time(value).ok_or_else(|| Error::damaged(at, "a time is damaged"))?,
            None => Timestamp { seconds: header.modified, nanoseconds: 0 },
        };
        let id =
            |id: u64| u32::try_from(id).map_err(|_| Error::unsupported(at, "an owner of more than 32 bits"));
        let entry = Entry {
            path,
            mode: header.mode,
            uid: id(header.uid)?,
            gid: id(header.gid)?,
            modified,
            xattrs: pax::xattrs(records, at)?,
            kind,
        };
        let end = self.at.saturating_add(padded(stored));
        if let EntryKind::Regular { .. } = entry.kind {
            let map = map.unwrap_or(Map { size: stored, pieces: vec![(0, stored)] }).checked(stored, at)?;
            visit(entry, &mut Stored { reader: self, map: &map })?;
        } else {
            visit(entry, &mut Nothing)?;
        }
        self.skip(end - self.at)
    }

    /// The map of a sparse file, and how many bytes of content are stored behind it.
    fn map(
        &mut self,
        block: &[u8; BLOCK],
        header: &Header,
        at: u64,
        records: &Records,
    ) -> Result<(Option<Map>, u64)> {
        let stored = header.size;
        if header.kind == b'S' && header.is_gnu {
            let wrong = || Error::damaged(at, "the size of a sparse file is no number");
            let size = header::number(&block[483..495]).and_then(|size| u64::try_from(size).ok());
            let mut map = Map { size: size.ok_or_else(wrong)?, pieces: Vec::new() };
            let mut more = map.add_old(&block[386..483], at)?;
            while more {
                let mut block = [0; BLOCK];
                self.exact(&mut block)?;
                more = map.add_old(&block[..505], at)?;
            }
            return Ok((Some(map), stored));
        }
        if records.get(&b"GNU.sparse.major"[..]).is_some_and(|major| major == b"1") {
            let size = records.get(&b"GNU.sparse.realsize"[..]).and_then(|size| pax::number(size));
            let size = size.ok_or_else(|| Error::damaged(at, "the size of a sparse file is missing"))?;
            let (map, taken) = Map::before_content(size, at, &mut || {
                let mut block = [0; BLOCK];
                self.exact(&mut block)?;
                Ok(block)
            })?;
            let rest = stored.checked_sub(taken);
            let rest = rest.ok_or_else(|| Error::damaged(at, "the map of a sparse file is too long"))?;
            return Ok((Some(map), rest));
        }
        Ok((Map::of_records(records, at)?, stored))
    }
}

fn kind(header: &Header, link: &[u8], size: u64, is_slashed: bool, at: u64) -> Result<EntryKind> {
    let device = || {
        let part = |part: u64| {
            u32::try_from(part).map_err(|_| Error::damaged(at, "the number of a device is too large"))
        };
        Ok(DeviceNumber { major: part(header.major)?, minor: part(header.minor)? })
    };
    Ok(match header.kind {
        // Before there was a type for them, the names of directories ended so.
        0 | b'0' if is_slashed => EntryKind::Directory,
        0 | b'0' | b'7' | b'S' => EntryKind::Regular { size },
        b'1' => {
            let target = clean(link).ok_or_else(|| {
                Error::entry(ErrorKind::InvalidInput, link, "a hard link leads out of the archive")
            })?;
            EntryKind::HardLink { target }
        }
        b'2' => EntryKind::Symlink { target: link.to_vec() },
        b'3' => EntryKind::CharDevice(device()?),
        b'4' => EntryKind::BlockDevice(device()?),
        b'5' | b'D' => EntryKind::Directory,
        b'6' => EntryKind::Fifo,
        b'M' => return Err(Error::unsupported(at, "a file that goes on from another volume")),
        other => {
            let what = format!("an entry of the type {:?}", char::from(other));
            return Err(Error::unsupported(at, what));
        }
    })
}

/// The content of a file, which is the next in the stream.
struct Stored<'a, R> {
    reader: &'a mut Reader<R>,
    map: &'a Map,
}

impl<R: Read> Content for Stored<'_, R> {
    fn each(&mut self, piece: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        let longest = self.map.pieces.iter().map(|(_, len)| *len).max().unwrap_or(0);
        let mut buffer = vec![0; longest.min(CHUNK as u64) as usize];
        for (offset, len) in &self.map.pieces {
            let mut done = 0;
            while done < *len {
                let step = (len - done).min(CHUNK as u64) as usize;
                self.reader.exact(&mut buffer[..step])?;
                piece(offset + done, &buffer[..step])?;
                done += step as u64;
            }
        }
        Ok(())
    }
}
