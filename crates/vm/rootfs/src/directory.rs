//! A directory of the host.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, SeekFrom};
use vmwright_vfs::{DeviceNumber, Timestamp};

use crate::entry::{Content, Entry, EntryKind, Nothing, Source};
use crate::{Error, ErrorKind, Result};

/// How many bytes of a file are read at once.
const CHUNK: usize = 1 << 20;

/// The most bytes that the names of a file's attributes, or the value of one, can have on Linux.
const XATTR_MAX: usize = 1 << 16;

/// A directory of the host with everything in it, in the order of the names' bytes.
///
/// Owners, modes, times, devices, hard links within, holes and extended attributes are taken as they are, those that the
/// caller cannot see excepted. Other filesystems that are mounted in it are entered.
#[derive(Debug, Clone)]
pub struct HostDirectory {
    top: PathBuf,
    left_out: Vec<PathBuf>,
}

impl HostDirectory {
    /// Reads what is in `path`, which may be a symbolic link to a directory.
    ///
    /// # Errors
    ///
    /// Kind `NotFound` or `Io` where it is no directory that can be read.
    pub fn new(path: &Path) -> Result<Self> {
        let top = path.canonicalize().map_err(Error::host("read", path))?;
        fs::read_dir(&top).map_err(Error::host("read", path))?;
        Ok(Self { top, left_out: Vec::new() })
    }

    /// Leaves out a file, such as the image that is made of the directory, and what it is called while it is made.
    #[must_use]
    pub fn without(mut self, file: &Path) -> Self {
        let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if let (Ok(parent), Some(name)) = (parent.canonicalize(), file.file_name()) {
            let part = [name, OsStr::new(".vmwright-part")].join(OsStr::new(""));
            self.left_out.extend([parent.join(name), parent.join(part)]);
        }
        self
    }
}

impl Source for HostDirectory {
    fn each(&mut self, visit: &mut dyn FnMut(Entry, &mut dyn Content) -> Result<()>) -> Result<()> {
        let mut walk = Walk { links: HashMap::new(), visit };
        walk.item(&self.top, Vec::new())?;
        let mut levels = vec![(Vec::new(), names(&self.top)?, self.top.clone())];
        while let Some((path, names_left, host)) = levels.last_mut() {
            let Some(name) = names_left.pop() else {
                levels.pop();
                continue;
            };
            let host = host.join(OsStr::from_bytes(&name));
            if self.left_out.contains(&host) {
                continue;
            }
            let path = if path.is_empty() { name } else { [path.as_slice(), b"/", &name].concat() };
            if walk.item(&host, path.clone())? {
                let inside = names(&host)?;
                levels.push((path, inside, host));
            }
        }
        Ok(())
    }

    fn is_repeatable(&self) -> bool {
        true
    }
}

/// The names in a directory, the last one first.
fn names(path: &Path) -> Result<Vec<Vec<u8>>> {
    let entries = fs::read_dir(path).map_err(Error::host("list", path))?;
    let name = |entry: io::Result<fs::DirEntry>| entry.map(|entry| entry.file_name().as_bytes().to_vec());
    let mut names: Vec<_> =
        entries.map(name).collect::<io::Result<_>>().map_err(Error::host("list", path))?;
    names.sort_unstable_by(|a, b| b.cmp(a));
    Ok(names)
}

struct Walk<'a> {
    /// Where files with several names were met first.
    links: HashMap<(u64, u64), Vec<u8>>,
    visit: &'a mut dyn FnMut(Entry, &mut dyn Content) -> Result<()>,
}

impl Walk<'_> {
    /// Visits one path; answers whether it is a directory.
    fn item(&mut self, host: &Path, path: Vec<u8>) -> Result<bool> {
        let metadata = fs::symlink_metadata(host).map_err(Error::host("look at", host))?;
        let kind = self.kind(host, &path, &metadata)?;
        let is_directory = kind == EntryKind::Directory;
        let linked = matches!(kind, EntryKind::HardLink { .. });
        let entry = Entry {
            path,
            mode: (metadata.mode() & 0o7777) as u16,
            uid: metadata.uid(),
            gid: metadata.gid(),
            modified: Timestamp { seconds: metadata.mtime(), nanoseconds: metadata.mtime_nsec() as u32 },
            xattrs: if linked { Vec::new() } else { xattrs(host)? },
            kind,
        };
        match entry.kind {
            EntryKind::Regular { size } if size > 0 => {
                let mut content = FileContent { path: host, size };
                (self.visit)(entry, &mut content)?;
            }
            _ => (self.visit)(entry, &mut Nothing)?,
        }
        Ok(is_directory)
    }

    fn kind(&mut self, host: &Path, path: &[u8], metadata: &Metadata) -> Result<EntryKind> {
        let file_type = metadata.file_type();
        if file_type.is_dir() {
            return Ok(EntryKind::Directory);
        }
        if metadata.nlink() > 1 {
            let id = (metadata.dev(), metadata.ino());
            if let Some(first) = self.links.get(&id) {
                return Ok(EntryKind::HardLink { target: first.clone() });
            }
            self.links.insert(id, path.to_vec());
        }
        let device = || DeviceNumber {
            major: rustix::fs::major(metadata.rdev()),
            minor: rustix::fs::minor(metadata.rdev()),
        };
        Ok(if file_type.is_file() {
            EntryKind::Regular { size: metadata.len() }
        } else if file_type.is_symlink() {
            let target = fs::read_link(host).map_err(Error::host("read the link", host))?;
            EntryKind::Symlink { target: target.into_os_string().as_bytes().to_vec() }
        } else if file_type.is_char_device() {
            EntryKind::CharDevice(device())
        } else if file_type.is_block_device() {
            EntryKind::BlockDevice(device())
        } else if file_type.is_fifo() {
            EntryKind::Fifo
        } else if file_type.is_socket() {
            EntryKind::Socket
        } else {
            return Err(Error::entry(ErrorKind::Unsupported, path, "it is of an unknown type"));
        })
    }
}

/// The extended attributes that a filesystem can keep, in the order of their names.
fn xattrs(path: &Path) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut list = Vec::with_capacity(256);
    match rustix::fs::llistxattr(path, rustix::buffer::spare_capacity(&mut list)) {
        Ok(0) | Err(rustix::io::Errno::NOTSUP) => return Ok(Vec::new()),
        Err(rustix::io::Errno::RANGE) => {
            list.reserve(XATTR_MAX);
            rustix::fs::llistxattr(path, rustix::buffer::spare_capacity(&mut list))
                .map_err(|error| Error::host("list the attributes of", path)(error.into()))?;
        }
        Err(error) => return Err(Error::host("list the attributes of", path)(error.into())),
        Ok(_) => {}
    }
    let mut found = Vec::new();
    for name in list.split(|byte| *byte == 0).filter(|name| is_kept(name)) {
        let mut value = Vec::with_capacity(XATTR_MAX);
        let buffer = rustix::buffer::spare_capacity(&mut value);
        match rustix::fs::lgetxattr(path, OsStr::from_bytes(name), buffer) {
            Ok(_) => found.push((name.to_vec(), value)),
            Err(rustix::io::Errno::NODATA) => {}
            Err(error) => return Err(Error::host("read the attributes of", path)(error.into())),
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Whether an attribute belongs to the file and not to the filesystem it is on.
pub(crate) fn is_kept(name: &[u8]) -> bool {
    let kept: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
    kept.iter().any(|prefix| name.starts_with(prefix) && name.len() > prefix.len())
        || name == b"system.posix_acl_access"
        || name == b"system.posix_acl_default"
}

struct FileContent<'a> {
    path: &'a Path,
    size: u64,
}

impl Content for FileContent<'_> {
    fn each(&mut self, piece: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
        let file = File::options().read(true).custom_flags(flags).open(self.path);
        let file = file.map_err(Error::host("open", self.path))?;
        let mut buffer = vec![0; self.size.min(CHUNK as u64) as usize];
        let mut at = 0;
        while let Some((start, end)) = self.stored(&file, at)? {
            at = start;
            while at < end {
                let len = (end - at).min(CHUNK as u64) as usize;
                let read = |error| Error::host("read", self.path)(error);
                file.read_exact_at(&mut buffer[..len], at).map_err(read)?;
                piece(at, &buffer[..len])?;
                at += len as u64;
            }
        }
        Ok(())
    }
}

impl FileContent<'_> {
    /// The next stored range at or behind `at`, within the size that was seen first.
    fn stored(&self, file: &File, at: u64) -> Result<Option<(u64, u64)>> {
        if at >= self.size {
            return Ok(None);
        }
        // Small files have no holes worth asking for.
        if self.size <= 4096 {
            return Ok(Some((at, self.size)));
        }
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => return Ok(None),
            Err(rustix::io::Errno::INVAL) => return Ok(Some((at, self.size))),
            Err(error) => return Err(Error::host("read", self.path)(error.into())),
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(start)).unwrap_or(self.size);
        let (start, end) = (start.min(self.size), end.min(self.size));
        Ok((start < end).then_some((start, end)))
    }
}
