use std::io::{Read, Write};
use std::path::Path;

use vmwright_vfs::{FileType, NewNode, NodeKind, RenameMode, Root};

use crate::{Error, ErrorKind, Result};

/// How much is read or written at once.
pub(super) const CHUNK: usize = 1 << 20;

/// Writes the content of a regular file to `out`; answers how many bytes.
pub fn cat(root: &Root, path: &[u8], out: &mut dyn Write) -> Result<u64> {
    let location = root.resolve(path, true)?.location;
    let metadata = root.metadata_at(location)?;
    if metadata.file_type != FileType::Regular {
        return Err(Error::guest_path(ErrorKind::InvalidInput, path, "not a regular file"));
    }
    let mut buffer = vec![0; CHUNK.min(usize::try_from(metadata.size).unwrap_or(CHUNK)).max(1)];
    let mut done = 0;
    while done < metadata.size {
        let count = root.read_at(location, &mut buffer, done)?;
        if count == 0 {
            break;
        }
        out.write_all(&buffer[..count]).map_err(Error::host("write", Path::new("the output")))?;
        done += count as u64;
    }
    Ok(done)
}

/// Makes a file hold what `input` gives; answers how many bytes.
///
/// A file that exists keeps its inode with owner, mode, links and extended attributes, as
/// [`Root::write_file`] says; a new one has mode 0644 and belongs to root.
pub fn write(root: &mut Root, path: &[u8], input: &mut dyn Read) -> Result<u64> {
    let node = NewNode { kind: NodeKind::Regular, mode: 0o644, uid: 0, gid: 0 };
    let location = root.open_empty(path, &node)?;
    let mut buffer = vec![0; CHUNK];
    let mut done = 0;
    loop {
        let count = fill(input, &mut buffer).map_err(Error::host("read", Path::new("the input")))?;
        if count == 0 {
            return Ok(done);
        }
        root.write_at(location, &buffer[..count], done).map_err(|error| error.at(path))?;
        done += count as u64;
    }
}

/// Reads until the buffer is full or the input ends.
pub(super) fn fill(input: &mut dyn Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match input.read(&mut buffer[done..]) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Makes a directory; with `parents` those above it too, and one that exists is no error.
pub fn mkdir(root: &mut Root, path: &[u8], mode: u16, parents: bool) -> Result<()> {
    if parents {
        return Ok(root.create_dir_all(path, mode)?);
    }
    root.create(path, &NewNode { kind: NodeKind::Directory, mode, uid: 0, gid: 0 })?;
    Ok(())
}

/// Removes a file or an empty directory; with `recursive` a directory with everything in it.
pub fn remove(root: &mut Root, path: &[u8], recursive: bool) -> Result<()> {
    if recursive {
        root.remove_all(path)?
    } else {
        root.remove(path)?
    }
    Ok(())
}

/// Moves a file or directory; into `to` under its own name where that is a directory.
pub fn rename(root: &mut Root, from: &[u8], to: &[u8], replace: bool) -> Result<()> {
    let target = inside(root, from, to);
    let mode = if replace { RenameMode::Replace } else { RenameMode::NoReplace };
    Ok(root.rename(from, target, mode)?)
}

/// Where something of the name of `from` goes when it is told to go to `to`.
pub(super) fn inside(root: &Root, from: &[u8], to: &[u8]) -> Vec<u8> {
    let name = from.split(|&byte| byte == b'/').rfind(|name| !name.is_empty());
    match name.filter(|_| root.is_dir(to)) {
        Some(name) => [to, b"/", name].concat(),
        None => to.to_vec(),
    }
}

/// Gives a file that is no directory a second name.
pub fn hard_link(root: &mut Root, from: &[u8], to: &[u8]) -> Result<()> {
    Ok(root.link(from, inside(root, from, to))?)
}

/// Makes a symbolic link at `path` that says `target`, whatever that is.
pub fn symlink(root: &mut Root, target: &[u8], path: &[u8]) -> Result<()> {
    let path = inside(root, target, path);
    root.create(path, &NewNode { kind: NodeKind::Symlink(target.to_vec()), mode: 0o777, uid: 0, gid: 0 })?;
    Ok(())
}
