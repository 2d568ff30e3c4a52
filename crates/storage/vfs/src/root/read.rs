use std::collections::HashSet;
use std::ops::ControlFlow;

use super::{Location, Root};
use crate::{DirEntry, Error, ErrorKind, FileType, Metadata, Result};

/// The most names that one directory may have to be listed in memory.
const ENTRIES_MAX: usize = 1 << 20;

/// How much of a file is read at once.
const CHUNK: usize = 1 << 20;

/// One file that [`Root::walk`] comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalkEntry {
    /// The absolute path, by way of the path that the walk began with.
    pub path: Vec<u8>,
    /// The inode; where something is mounted, the mounted root.
    pub location: Location,
    /// What it is.
    pub file_type: FileType,
}

impl Root {
    /// What is known of an inode.
    pub fn metadata_at(&self, location: Location) -> Result<Metadata> {
        self.filesystem(location.mount).metadata(location.inode)
    }

    /// What is known of the file at a path, through symbolic links.
    pub fn metadata(&self, path: impl AsRef<[u8]>) -> Result<Metadata> {
        self.metadata_of(path.as_ref(), true)
    }

    /// What is known of the file at a path, of a symbolic link itself.
    pub fn symlink_metadata(&self, path: impl AsRef<[u8]>) -> Result<Metadata> {
        self.metadata_of(path.as_ref(), false)
    }

    fn metadata_of(&self, path: &[u8], follow_last: bool) -> Result<Metadata> {
        let resolved = self.resolve(path, follow_last)?;
        self.metadata_at(resolved.location).map_err(|error| error.at(path))
    }

    /// Whether a path leads to a file of any type that can be read about.
    pub fn exists(&self, path: impl AsRef<[u8]>) -> bool {
        self.metadata(path).is_ok()
    }

    /// Whether a path leads to a directory.
    pub fn is_dir(&self, path: impl AsRef<[u8]>) -> bool {
        self.metadata(path).is_ok_and(|metadata| metadata.file_type == FileType::Directory)
    }

    /// The target of the symbolic link at a path.
    pub fn read_link(&self, path: impl AsRef<[u8]>) -> Result<Vec<u8>> {
        let path = path.as_ref();
        let location = self.resolve(path, false)?.location;
        let read = || match self.metadata_at(location)?.file_type {
            FileType::Symlink => self.filesystem(location.mount).read_link(location.inode),
            _ => Err(Error::new(ErrorKind::InvalidInput, "not a symbolic link")),
        };
        read().map_err(|error| error.at(path))
    }

    /// Reads from a regular file; answers how many bytes, fewer than asked only at the end.
    pub fn read_at(&self, location: Location, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.filesystem(location.mount).read_at(location.inode, buf, offset)
    }

    /// Reads a whole regular file, which is refused if it is longer than `limit` bytes.
    pub fn read_file(&self, path: impl AsRef<[u8]>, limit: u64) -> Result<Vec<u8>> {
        let path = path.as_ref();
        let location = self.resolve(path, true)?.location;
        self.read_whole(location, limit).map_err(|error| error.at(path))
    }

    /// Reads a whole regular file by its location, as [`Root::read_file`] does.
    pub fn read_whole(&self, location: Location, limit: u64) -> Result<Vec<u8>> {
        let metadata = self.metadata_at(location)?;
        require_regular(&metadata)?;
        if metadata.size > limit {
            return Err(Error::new(ErrorKind::Unsupported, "the file is longer than allowed here"));
        }
        let mut content = Vec::new();
        // The size is the guest's claim: memory grows only as bytes really come.
        while (content.len() as u64) < metadata.size {
            let have = content.len();
            let step = (metadata.size - have as u64).min(CHUNK as u64) as usize;
            content.resize(have + step, 0);
            let count = self.read_at(location, &mut content[have..], have as u64)?;
            content.truncate(have + count);
            if count == 0 {
                break;
            }
        }
        Ok(content)
    }

    /// The names in a directory, sorted by their bytes.
    pub fn read_dir(&self, path: impl AsRef<[u8]>) -> Result<Vec<DirEntry>> {
        let path = path.as_ref();
        let location = self.resolve(path, true)?.location;
        self.read_dir_at(location).map_err(|error| error.at(path))
    }

    /// The names in a directory by its location, sorted by their bytes.
    pub fn read_dir_at(&self, location: Location) -> Result<Vec<DirEntry>> {
        self.require_directory(location)?;
        let mut entries: Vec<DirEntry> = Vec::new();
        let mut all_plain = true;
        self.filesystem(location.mount).read_dir(location.inode, &mut |entry| {
            all_plain = is_plain(&entry.name);
            entries.push(entry);
            let go_on = all_plain && entries.len() <= ENTRIES_MAX;
            if go_on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        if !all_plain {
            return Err(Error::new(ErrorKind::Corrupt, "the directory has a name that no file can have"));
        }
        if entries.len() > ENTRIES_MAX {
            return Err(Error::new(ErrorKind::Unsupported, "the directory has more than 1048576 names"));
        }
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// Visits everything beneath a directory, each directory before what is in it, names in order.
    ///
    /// The start itself is not visited; symbolic links are visited, not followed, except that the start may
    /// be one. Mounted filesystems are entered. A directory that is met twice is an error of kind `Corrupt`.
    pub fn walk(
        &self,
        path: impl AsRef<[u8]>,
        visit: &mut dyn FnMut(&WalkEntry) -> ControlFlow<()>,
    ) -> Result<()> {
        let start = self.resolve(path.as_ref(), true)?;
        let mut met = HashSet::from([start.location]);
        let prefix = if start.path == b"/" { Vec::new() } else { start.path };
        let mut levels = vec![(prefix, start.location.mount, self.listing(start.location)?)];
        while let Some((dir, mount, entries)) = levels.last_mut() {
            let Some(entry) = entries.next() else {
                levels.pop();
                continue;
            };
            let path = [dir.as_slice(), b"/", &entry.name].concat();
            let location = self.cross(Location { mount: *mount, inode: entry.inode });
            let found = WalkEntry { path, location, file_type: entry.file_type };
            if visit(&found).is_break() {
                return Ok(());
            }
            if found.file_type == FileType::Directory {
                if !met.insert(location) {
                    return Err(met_twice().at(&found.path));
                }
                let entries = self.listing(location).map_err(|error| error.at(&found.path))?;
                levels.push((found.path, location.mount, entries));
            }
        }
        Ok(())
    }

    fn listing(&self, location: Location) -> Result<std::vec::IntoIter<DirEntry>> {
        Ok(self.read_dir_at(location)?.into_iter())
    }
}

/// Whether a name stays one name when it becomes part of a path.
fn is_plain(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && !name.contains(&b'/') && !name.contains(&0)
}

pub(super) fn require_regular(metadata: &Metadata) -> Result<()> {
    match metadata.file_type {
        FileType::Regular => Ok(()),
        FileType::Directory => Err(Error::new(ErrorKind::InvalidInput, "is a directory")),
        _ => Err(Error::new(ErrorKind::InvalidInput, "not a regular file")),
    }
}

/// A directory has one name; in a tree where one has two, a walk might never end.
pub(super) fn met_twice() -> Error {
    Error::new(ErrorKind::Corrupt, "the directory is reached by two names")
}
