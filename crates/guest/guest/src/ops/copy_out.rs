use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType as HostType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, chownat,
    mkdirat, mknodat, openat2, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use vmwright_vfs::{FileType, Location, Metadata, Root};

use super::files::CHUNK;
use super::{CopyOptions, CopySummary};
use crate::{Error, ErrorKind, Result};

/// Copies a file, or a directory with everything in it, out of a guest.
///
/// A `destination` that is a directory receives it under its own name. Every name is made beneath the
/// directory named by the caller and through no symbolic link (`openat2` with `RESOLVE_BENEATH` and
/// `RESOLVE_NO_SYMLINKS`), so nothing that a guest's tree contains can reach outside. Symbolic links are copied
/// as they are and not followed. Files that are there already are replaced, not written into. Modes and
/// modification times are kept; hard links become separate files; extended attributes are left out.
pub fn copy_out(root: &Root, path: &[u8], destination: &Path, options: &CopyOptions) -> Result<CopySummary> {
    let source = root.resolve(path, true)?;
    let metadata = root.metadata_at(source.location)?;
    let (parent, name) = destination_of(&source.path, path, destination);
    let mut copy = Copy::open(root, options, &parent)?;
    if metadata.file_type != FileType::Directory {
        copy.item(&source.path, Path::new(OsStr::from_bytes(&name)), source.location)?;
        return Ok(copy.summary);
    }
    let top = PathBuf::from(OsString::from_vec(name));
    if !top.as_os_str().is_empty() {
        copy.item(&source.path, &top, source.location)?;
    }
    let skip = source.path.len() + usize::from(source.path != b"/");
    let mut failed = None;
    root.walk(&source.path, &mut |entry| {
        let below = Path::new(OsStr::from_bytes(&entry.path[skip..]));
        match copy.item(&entry.path, &top.join(below), entry.location) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        }
    })?;
    failed.map_or(Ok(()), Err)?;
    copy.finish_directories()?;
    Ok(copy.summary)
}

/// The folder to copy into, and the name to give; no name if the guest's root goes into a folder.
fn destination_of(resolved: &[u8], asked: &[u8], destination: &Path) -> (PathBuf, Vec<u8>) {
    if destination.is_dir() {
        let last =
            |path: &[u8]| path.split(|&b| b == b'/').rfind(|name| !name.is_empty()).map(<[u8]>::to_vec);
        let name = last(asked).filter(|name| name != b"." && name != b"..").or_else(|| last(resolved));
        return (destination.to_owned(), name.unwrap_or_default());
    }
    let parent = destination.parent().filter(|parent| !parent.as_os_str().is_empty());
    let name = destination.file_name().map(|name| name.to_owned().into_vec()).unwrap_or_default();
    (parent.unwrap_or(Path::new(".")).to_owned(), name)
}

struct Copy<'a> {
    root: &'a Root,
    options: &'a CopyOptions,
    summary: CopySummary,
    /// The folder that nothing leaves.
    top: OwnedFd,
    top_path: PathBuf,
    /// The folder last made something in, and its path beneath the top.
    current: Option<(PathBuf, OwnedFd)>,
    /// New directories get their modes at the end: some would not let files be made in them.
    directories: Vec<(PathBuf, Metadata)>,
}

const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);

impl<'a> Copy<'a> {
    fn open(root: &'a Root, options: &'a CopyOptions, parent: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let top = rustix::fs::open(parent, flags, Mode::empty());
        let top = top.map_err(|error| Error::host("open the folder", parent)(error.into()))?;
        Ok(Self {
            root,
            options,
            summary: CopySummary::default(),
            top,
            top_path: parent.to_owned(),
            current: None,
            directories: Vec::new(),
        })
    }

    fn fail(&self, action: &'static str, below: &Path) -> impl FnOnce(Errno) -> Error + use<> {
        let path = self.top_path.join(below);
        move |error| Error::host(action, &path)(error.into())
    }

    /// Copies one file, link or directory; what is in a directory comes after it.
    fn item(&mut self, guest_path: &[u8], below: &Path, location: Location) -> Result<()> {
        let name = below.file_name().map(OsStrExt::as_bytes).unwrap_or_default();
        // The path was made of a guest's names: it must be exactly as deep as it looks.
        let plain = below.components().all(|part| matches!(part, std::path::Component::Normal(_)));
        if name.is_empty() || !plain || name.contains(&0) {
            return Err(Error::guest_path(ErrorKind::Corrupt, guest_path, "not a name that a file can have"));
        }
        self.summary.count_entry(guest_path, self.options)?;
        let metadata = self.root.metadata_at(location).map_err(|error| error.at(guest_path))?;
        self.enter(below.parent().unwrap_or(Path::new("")))?;
        match metadata.file_type {
            FileType::Directory => self.directory(below, metadata),
            FileType::Regular => self.file(guest_path, below, location, &metadata),
            FileType::Symlink => {
                let target = self.root.filesystem(location.mount).read_link(location.inode)?;
                self.replace(below, "make the link", |dir, name| symlinkat(target.as_slice(), dir, name))?;
                self.set_attributes(below, &metadata)
            }
            _ if !self.options.special => {
                self.summary.entries -= 1;
                self.summary.skip(guest_path);
                Ok(())
            }
            _ => self.special(guest_path, below, &metadata),
        }
    }

    /// Opens the folder to make something in, unless it is the one opened last.
    fn enter(&mut self, folder: &Path) -> Result<()> {
        if self.current.as_ref().is_some_and(|(path, _)| path == folder) {
            return Ok(());
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let relative = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let opened = openat2(&self.top, relative, flags, Mode::empty(), BENEATH);
        let opened = opened.map_err(self.fail("open the folder", folder))?;
        self.current = Some((folder.to_owned(), opened));
        Ok(())
    }

    fn folder(&self) -> &OwnedFd {
        self.current.as_ref().map_or(&self.top, |(_, folder)| folder)
    }

    fn directory(&mut self, below: &Path, metadata: Metadata) -> Result<()> {
        let name = below.file_name().unwrap_or_default();
        match mkdirat(self.folder(), name, Mode::RWXU) {
            Ok(()) => self.directories.push((below.to_owned(), metadata)),
            Err(Errno::EXIST) => {
                let found = statat(self.folder(), name, AtFlags::SYMLINK_NOFOLLOW);
                let found = found.map_err(self.fail("stat", below))?;
                if HostType::from_raw_mode(found.st_mode) != HostType::Directory {
                    return Err(self.fail("make the directory", below)(Errno::EXIST));
                }
            }
            Err(error) => return Err(self.fail("make the directory", below)(error)),
        }
        Ok(())
    }

    /// Makes something under a new name, in place of a file or link that has that name.
    fn replace<T>(
        &self,
        below: &Path,
        action: &'static str,
        make: impl Fn(&OwnedFd, &OsStr) -> rustix::io::Result<T>,
    ) -> Result<T> {
        let name = below.file_name().unwrap_or_default();
        let made = match make(self.folder(), name) {
            Err(Errno::EXIST) => {
                unlinkat(self.folder(), name, AtFlags::empty()).and_then(|()| make(self.folder(), name))
            }
            made => made,
        };
        made.map_err(self.fail(action, below))
    }

    fn file(
        &mut self,
        guest_path: &[u8],
        below: &Path,
        location: Location,
        metadata: &Metadata,
    ) -> Result<()> {
        self.summary.count_bytes(guest_path, metadata.size, self.options)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let made = self.replace(below, "make", |dir, name| {
            openat2(dir, name, flags, Mode::RUSR | Mode::WUSR, BENEATH)
        })?;
        let file = File::from(made);
        let copied = self.content(guest_path, below, location, metadata.size, &file);
        let finished = copied.and_then(|()| {
            self.set_attributes(below, metadata)?;
            let mode = Mode::from_raw_mode(self.kept_mode(metadata).into());
            rustix::fs::fchmod(file.as_fd(), mode).map_err(self.fail("set the mode of", below))
        });
        if finished.is_err() {
            // Half a file must not pass for a whole one.
            let _ = unlinkat(self.folder(), below.file_name().unwrap_or_default(), AtFlags::empty());
        }
        finished
    }

    /// Copies bytes, and leaves out holes.
    fn content(
        &self,
        guest_path: &[u8],
        below: &Path,
        location: Location,
        size: u64,
        file: &File,
    ) -> Result<()> {
        let path = self.top_path.join(below);
        let filesystem = self.root.filesystem(location.mount);
        let mut buffer = Vec::new();
        let mut at = 0;
        while at < size {
            let extent = filesystem.extent_at(location.inode, at).map_err(|error| error.at(guest_path))?;
            let end = extent.end().min(size);
            if end <= at {
                return Err(Error::guest_path(
                    ErrorKind::Corrupt,
                    guest_path,
                    "the map of the file is empty",
                ));
            }
            if extent.is_zero() {
                at = end;
                continue;
            }
            buffer.resize(CHUNK.min(usize::try_from(end - at).unwrap_or(CHUNK)), 0);
            let count = self.root.read_at(location, &mut buffer, at).map_err(|error| error.at(guest_path))?;
            if count == 0 {
                break;
            }
            file.write_all_at(&buffer[..count], at).map_err(Error::host("write", &path))?;
            at += count as u64;
        }
        file.set_len(size).map_err(Error::host("set the length of", &path))
    }

    fn special(&mut self, guest_path: &[u8], below: &Path, metadata: &Metadata) -> Result<()> {
        let file_type = match metadata.file_type {
            FileType::CharDevice => HostType::CharacterDevice,
            FileType::BlockDevice => HostType::BlockDevice,
            FileType::Fifo => HostType::Fifo,
            _ => {
                // A socket without its server is of no use to anybody.
                self.summary.entries -= 1;
                self.summary.skip(guest_path);
                return Ok(());
            }
        };
        let mode = Mode::from_raw_mode(self.kept_mode(metadata).into());
        let device = rustix::fs::makedev(metadata.device.major, metadata.device.minor);
        self.replace(below, "make", |dir, name| mknodat(dir, name, file_type, mode, device))?;
        self.set_attributes(below, metadata)
    }

    fn kept_mode(&self, metadata: &Metadata) -> u16 {
        metadata.mode & if self.options.special { 0o7777 } else { 0o777 }
    }

    /// Sets the owner, where asked for, and the time of a file in the current folder.
    fn set_attributes(&self, below: &Path, metadata: &Metadata) -> Result<()> {
        let name = below.file_name().unwrap_or_default();
        if self.options.owners {
            // The numbers -1 mean "leave as it is" to the kernel and cannot be given to a file.
            let known = metadata.uid != u32::MAX && metadata.gid != u32::MAX;
            let ids = known.then(|| (Uid::from_raw(metadata.uid), Gid::from_raw(metadata.gid))).unzip();
            let changed = chownat(self.folder(), name, ids.0, ids.1, AtFlags::SYMLINK_NOFOLLOW);
            changed.map_err(self.fail("set the owner of", below))?;
        }
        let time = |time: vmwright_vfs::Timestamp| Timespec {
            tv_sec: time.seconds,
            tv_nsec: i64::from(time.nanoseconds.min(999_999_999)) as _,
        };
        let times =
            Timestamps { last_access: time(metadata.accessed), last_modification: time(metadata.modified) };
        match utimensat(self.folder(), name, &times, AtFlags::SYMLINK_NOFOLLOW) {
            // A time that the host's filesystem cannot hold is no reason to fail.
            Ok(()) | Err(Errno::INVAL | Errno::RANGE | Errno::OVERFLOW) => Ok(()),
            Err(error) => Err(self.fail("set the times of", below)(error)),
        }
    }

    fn finish_directories(&mut self) -> Result<()> {
        for (below, metadata) in std::mem::take(&mut self.directories).into_iter().rev() {
            self.enter(below.parent().unwrap_or(Path::new("")))?;
            self.set_attributes(&below, &metadata)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let name = below.file_name().unwrap_or_default();
            let opened = openat2(self.folder(), name, flags, Mode::empty(), BENEATH);
            let opened = opened.map_err(self.fail("open the folder", &below))?;
            let mode = Mode::from_raw_mode(self.kept_mode(&metadata).into());
            rustix::fs::fchmod(&opened, mode).map_err(self.fail("set the mode of", &below))?;
        }
        Ok(())
    }
}
