use std::fs::{self, File, Metadata};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use vmwright_vfs::{DeviceNumber, Location, NewNode, NodeKind, Root, SetAttributes, Timestamp};

use super::files::{CHUNK, fill};
use super::{CopyOptions, CopySummary};
use crate::{Error, ErrorKind, Result};

/// Copies a file, or a directory with everything in it, from the host into a guest.
///
/// A `destination` that is a directory in the guest receives it under its own name. Symbolic links are copied
/// as they are, except that `source` itself may be one. A file that exists in the guest keeps everything but
/// its content, as [`Root::write_file`] says; a new one gets the mode and modification time that it has on the
/// host. Extended attributes are left out, hard links become separate files, and zeros become holes.
pub fn copy_in(
    root: &mut Root,
    source: &Path,
    destination: &[u8],
    options: &CopyOptions,
) -> Result<CopySummary> {
    let metadata = fs::metadata(source).map_err(Error::host("stat", source))?;
    let absolute = source.canonicalize().map_err(Error::host("resolve", source))?;
    let name = source.file_name().or(absolute.file_name()).unwrap_or_default();
    let target = match name.is_empty() || !root.is_dir(destination) {
        true => destination.to_vec(),
        false => [destination, b"/", name.as_bytes()].concat(),
    };
    let mut copy = Copy { root, options, summary: CopySummary::default() };
    copy.item(source, &metadata, &target, true)?;
    if metadata.is_dir() {
        copy.tree(source, target)?;
    }
    Ok(copy.summary)
}

struct Copy<'a> {
    root: &'a mut Root,
    options: &'a CopyOptions,
    summary: CopySummary,
}

impl Copy<'_> {
    /// Copies what is in a directory, each directory before its content.
    fn tree(&mut self, source: &Path, target: Vec<u8>) -> Result<()> {
        let mut levels = vec![(target, sorted(source)?.into_iter())];
        while let Some((target, paths)) = levels.last_mut() {
            let Some(path) = paths.next() else {
                levels.pop();
                continue;
            };
            let name = path.file_name().unwrap_or_default().as_bytes();
            let target = [target.as_slice(), b"/", name].concat();
            let metadata = fs::symlink_metadata(&path).map_err(Error::host("stat", &path))?;
            self.item(&path, &metadata, &target, false)?;
            if metadata.is_dir() {
                levels.push((target, sorted(&path)?.into_iter()));
            }
        }
        Ok(())
    }

    fn item(&mut self, source: &Path, metadata: &Metadata, target: &[u8], follow: bool) -> Result<()> {
        let file_type = metadata.file_type();
        let shown = source.as_os_str().as_bytes();
        self.summary.count_entry(shown, self.options)?;
        if file_type.is_dir() {
            return self.directory(metadata, target);
        }
        if file_type.is_file() {
            return self.file(source, metadata, target, follow);
        }
        let device = DeviceNumber {
            major: rustix::fs::major(metadata.rdev()),
            minor: rustix::fs::minor(metadata.rdev()),
        };
        let kind = if file_type.is_symlink() {
            let link = fs::read_link(source).map_err(Error::host("read the link", source))?;
            NodeKind::Symlink(link.as_os_str().as_bytes().to_vec())
        } else if file_type.is_char_device() && self.options.special {
            NodeKind::CharDevice(device)
        } else if file_type.is_block_device() && self.options.special {
            NodeKind::BlockDevice(device)
        } else if file_type.is_fifo() && self.options.special {
            NodeKind::Fifo
        } else {
            self.summary.entries -= 1;
            self.summary.skip(shown);
            return Ok(());
        };
        self.replace(target, &self.node(kind, metadata), metadata)
    }

    fn node(&self, kind: NodeKind, metadata: &Metadata) -> NewNode {
        let bits = if self.options.special { 0o7777 } else { 0o777 };
        let (uid, gid) = if self.options.owners { (metadata.uid(), metadata.gid()) } else { (0, 0) };
        NewNode { kind, mode: (metadata.mode() & bits) as u16, uid, gid }
    }

    fn directory(&mut self, metadata: &Metadata, target: &[u8]) -> Result<()> {
        if self.root.is_dir(target) {
            return Ok(());
        }
        let location = self.root.create(target, &self.node(NodeKind::Directory, metadata))?;
        self.set_time(location, metadata)
    }

    /// Makes a link or device in place of whatever has its name and is no directory.
    fn replace(&mut self, target: &[u8], node: &NewNode, metadata: &Metadata) -> Result<()> {
        match self.root.symlink_metadata(target) {
            Ok(found) if found.file_type == vmwright_vfs::FileType::Directory => {
                return Err(Error::guest_path(ErrorKind::Exists, target, "a directory has the name already"));
            }
            Ok(_) => self.root.remove(target)?,
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        let location = self.root.create(target, node)?;
        self.set_time(location, metadata)
    }

    fn file(&mut self, source: &Path, metadata: &Metadata, target: &[u8], follow: bool) -> Result<()> {
        self.summary.count_bytes(source.as_os_str().as_bytes(), metadata.len(), self.options)?;
        let mut flags = rustix::fs::OFlags::CLOEXEC;
        if !follow {
            flags |= rustix::fs::OFlags::NOFOLLOW;
        }
        let opened = fs::OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(source);
        let file = opened.map_err(Error::host("open", source))?;
        let is_new = !self.root.exists(target);
        let location = self.root.open_empty(target, &self.node(NodeKind::Regular, metadata))?;
        self.content(source, file, metadata.len(), location)?;
        if is_new { self.set_time(location, metadata) } else { Ok(()) }
    }

    /// Copies at most `size` bytes; runs of zeros are left out and become holes.
    fn content(&mut self, source: &Path, file: File, size: u64, location: Location) -> Result<()> {
        let mut input = file.take(size);
        let mut buffer = vec![0; CHUNK.min(usize::try_from(size).unwrap_or(CHUNK)).max(1)];
        let mut at = 0;
        loop {
            let count = fill(&mut input, &mut buffer).map_err(Error::host("read", source))?;
            if count == 0 {
                break;
            }
            for (start, run) in data_runs(&buffer[..count]) {
                self.root.write_at(location, run, at + start as u64)?;
            }
            at += count as u64;
        }
        let filesystem = self.root.filesystem_mut(location.mount);
        Ok(filesystem.truncate(location.inode, at)?)
    }

    fn set_time(&mut self, location: Location, metadata: &Metadata) -> Result<()> {
        let nanoseconds = u32::try_from(metadata.mtime_nsec()).unwrap_or(0);
        let modified = Some(Timestamp { seconds: metadata.mtime(), nanoseconds });
        let attributes = SetAttributes { modified, ..SetAttributes::default() };
        let filesystem = self.root.filesystem_mut(location.mount);
        Ok(filesystem.set_attributes(location.inode, &attributes)?)
    }
}

/// The smallest run of zeros that becomes a hole, in bytes.
const HOLE: usize = 65536;

/// The runs of a buffer that are not zeros, with where each starts.
fn data_runs(buffer: &[u8]) -> Vec<(usize, &[u8])> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (index, piece) in buffer.chunks(HOLE).enumerate() {
        if piece.iter().all(|&byte| byte == 0) {
            continue;
        }
        let start = index * HOLE;
        match runs.last_mut().filter(|(_, end)| *end == start) {
            Some((_, end)) => *end += piece.len(),
            None => runs.push((start, start + piece.len())),
        }
    }
    runs.into_iter().map(|(start, end)| (start, &buffer[start..end])).collect()
}

fn sorted(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).map_err(Error::host("list", dir))?;
    let mut paths: Vec<_> = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()
        .map_err(Error::host("list", dir))?;
    paths.sort();
    Ok(paths)
}
