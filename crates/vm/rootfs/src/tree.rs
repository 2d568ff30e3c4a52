//! Paths of entries in the filesystem that is being filled.

use std::collections::HashMap;

use vmwright_vfs::{FileSystem, FileType, InodeNumber, NewNode, NodeKind};

use crate::{Error, ErrorKind, Result};

/// How many symbolic links a path may lead through, as on Linux.
const LINKS_MAX: u32 = 40;

/// How many directories are remembered.
const REMEMBERED: usize = 1 << 14;

/// The longest path of those, as archives may have paths of mebibytes.
const PATH_MAX: usize = 4096;

/// A directory that is being emptied: what is still in it, and its own name in the one above.
struct Level {
    inode: InodeNumber,
    names: Vec<(Vec<u8>, FileType)>,
    above: InodeNumber,
    own: Vec<u8>,
    stays: bool,
}

/// A filesystem with the directories that were met last.
pub(crate) struct Tree<'a> {
    pub(crate) fs: &'a mut dyn FileSystem,
    directories: HashMap<Vec<u8>, InodeNumber>,
}

impl<'a> Tree<'a> {
    pub(crate) fn new(fs: &'a mut dyn FileSystem) -> Self {
        Self { fs, directories: HashMap::new() }
    }

    /// Forgets directories after names were removed or replaced.
    pub(crate) fn forget(&mut self) {
        self.directories.clear();
    }

    /// What has a name in a directory.
    pub(crate) fn find(&self, dir: InodeNumber, name: &[u8], path: &[u8]) -> Result<Option<InodeNumber>> {
        match self.fs.lookup(dir, name) {
            Ok(inode) => Ok(Some(inode)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::filesystem(path)(error)),
        }
    }

    /// The directory that a path lies in, made with mode 0755 where it is missing, and the last name. Symbolic links to
    /// directories are followed, within the filesystem.
    pub(crate) fn parent<'p>(&mut self, path: &'p [u8]) -> Result<(InodeNumber, &'p [u8])> {
        match path.iter().rposition(|byte| *byte == b'/') {
            Some(at) => Ok((self.directory(&path[..at])?, &path[at + 1..])),
            None => Ok((self.fs.root(), path)),
        }
    }

    fn directory(&mut self, path: &[u8]) -> Result<InodeNumber> {
        if let Some(inode) = self.directories.get(path) {
            return Ok(*inode);
        }
        let inode = self.walk(path)?;
        if self.directories.len() >= REMEMBERED {
            self.directories.clear();
        }
        if path.len() <= PATH_MAX {
            self.directories.insert(path.to_vec(), inode);
        }
        Ok(inode)
    }

    fn walk(&mut self, path: &[u8]) -> Result<InodeNumber> {
        let root = self.fs.root();
        // From the root down to where the walk is, so that `..` in a link is the way back.
        let mut above = vec![root];
        let mut links = 0;
        let mut waiting: Vec<Vec<u8>> = path.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec).collect();
        while let Some(name) = waiting.pop() {
            let dir = above.last().copied().unwrap_or(root);
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    above.pop();
                    continue;
                }
                _ => {}
            }
            let Some(inode) = self.find(dir, &name, path)? else {
                above.push(self.make(dir, &name, path)?);
                continue;
            };
            match self.fs.metadata(inode).map_err(Error::filesystem(path))?.file_type {
                FileType::Directory => above.push(inode),
                FileType::Symlink if links < LINKS_MAX => {
                    links += 1;
                    let target = self.fs.read_link(inode).map_err(Error::filesystem(path))?;
                    if target.first() == Some(&b'/') {
                        above.clear();
                    }
                    waiting.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
                }
                FileType::Symlink => {
                    let problem = "it leads through more than 40 symbolic links";
                    return Err(Error::entry(ErrorKind::InvalidInput, path, problem));
                }
                _ => return Err(Error::entry(ErrorKind::Exists, path, "what holds it is no directory")),
            }
        }
        Ok(above.last().copied().unwrap_or(root))
    }

    fn make(&mut self, dir: InodeNumber, name: &[u8], path: &[u8]) -> Result<InodeNumber> {
        let node = NewNode { kind: NodeKind::Directory, mode: 0o755, uid: 0, gid: 0 };
        self.fs.create(dir, name, &node).map_err(Error::filesystem(path))
    }

    /// What a path names, without following a link at its end.
    pub(crate) fn named(&mut self, path: &[u8]) -> Result<Option<InodeNumber>> {
        if path.is_empty() {
            return Ok(Some(self.fs.root()));
        }
        let (dir, name) = self.parent(path)?;
        self.find(dir, name, path)
    }

    /// Removes a name with everything beneath it.
    pub(crate) fn remove(&mut self, dir: InodeNumber, name: &[u8], path: &[u8]) -> Result<()> {
        self.remove_but(dir, name, path, &|_| false)
    }

    /// Removes a name with everything beneath it, except for what `keep` holds for and the directories that lead there.
    pub(crate) fn remove_but(
        &mut self,
        dir: InodeNumber,
        name: &[u8],
        path: &[u8],
        keep: &dyn Fn(InodeNumber) -> bool,
    ) -> Result<()> {
        let failed = || Error::filesystem(path);
        self.forget();
        let Some(inode) = self.find(dir, name, path)? else { return Ok(()) };
        if self.fs.metadata(inode).map_err(failed())?.file_type != FileType::Directory {
            return if keep(inode) { Ok(()) } else { self.fs.unlink(dir, name).map_err(failed()) };
        }
        let level = |tree: &Self, inode, above, own| {
            Ok(Level { inode, names: tree.names(inode, path)?, above, own, stays: keep(inode) })
        };
        let mut levels = vec![level(self, inode, dir, name.to_vec())?];
        while let Some(top) = levels.last_mut() {
            let inode = top.inode;
            match top.names.pop() {
                None => {
                    let Some(Level { above, own, stays, .. }) = levels.pop() else { break };
                    match (stays, levels.last_mut()) {
                        (false, _) => self.fs.rmdir(above, &own).map_err(failed())?,
                        (true, Some(parent)) => parent.stays = true,
                        (true, None) => {}
                    }
                }
                Some((name, file_type)) => {
                    let Some(child) = self.find(inode, &name, path)? else { continue };
                    match file_type {
                        FileType::Directory => levels.push(level(self, child, inode, name)?),
                        _ if keep(child) => top.stays = true,
                        _ => self.fs.unlink(inode, &name).map_err(failed())?,
                    }
                }
            }
        }
        Ok(())
    }

    /// The names in a directory.
    pub(crate) fn names(&self, dir: InodeNumber, path: &[u8]) -> Result<Vec<(Vec<u8>, FileType)>> {
        let mut names = Vec::new();
        let visit = &mut |entry: vmwright_vfs::DirEntry| {
            names.push((entry.name, entry.file_type));
            std::ops::ControlFlow::Continue(())
        };
        self.fs.read_dir(dir, visit).map_err(Error::filesystem(path))?;
        Ok(names)
    }
}
