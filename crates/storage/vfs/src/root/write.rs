use std::collections::HashSet;

use super::read::{met_twice, require_regular};
use super::resolve::{Place, not_found};
use super::{Location, Root};
use crate::{DirEntry, Error, ErrorKind, FileType, NewNode, NodeKind, RenameMode, Result, SetAttributes};

impl Root {
    /// Makes the regular file at a path hold exactly `data`.
    ///
    /// A file that exists, also one behind symbolic links, keeps its inode, and with it owner, mode, hard
    /// links, extended attributes (ACL, capabilities, label) and birth time; its modification time changes.
    /// Otherwise one is made, of mode 0644, owned by root, in a directory that must exist.
    pub fn write_file(&mut self, path: impl AsRef<[u8]>, data: &[u8]) -> Result<Location> {
        let path = path.as_ref();
        let node = NewNode { kind: NodeKind::Regular, mode: 0o644, uid: 0, gid: 0 };
        let location = self.open_empty(path, &node)?;
        self.write_at(location, data, 0).map_err(|error| error.at(path))?;
        Ok(location)
    }

    /// Empties the regular file at a path as [`Root::write_file`] does, or makes it as `node` says.
    pub fn open_empty(&mut self, path: impl AsRef<[u8]>, node: &NewNode) -> Result<Location> {
        let path = path.as_ref();
        self.open_empty_at(path, node).map_err(|error| error.at(path))
    }

    fn open_empty_at(&mut self, path: &[u8], node: &NewNode) -> Result<Location> {
        let place = self.place(path, true)?;
        let Some(location) = place.found else {
            return self.make(&place, node);
        };
        require_regular(&self.metadata_at(location)?)?;
        self.filesystem_mut(location.mount).truncate(location.inode, 0)?;
        Ok(location)
    }

    /// Writes to a regular file, making it longer where needed.
    pub fn write_at(&mut self, location: Location, data: &[u8], offset: u64) -> Result<()> {
        self.filesystem_mut(location.mount).write_at(location.inode, data, offset)
    }

    /// Makes a new inode at a path that must not exist, in a directory that must.
    pub fn create(&mut self, path: impl AsRef<[u8]>, node: &NewNode) -> Result<Location> {
        let path = path.as_ref();
        self.create_at(path, node).map_err(|error| error.at(path))
    }

    fn create_at(&mut self, path: &[u8], node: &NewNode) -> Result<Location> {
        let place = self.place(path, false)?;
        match place.found {
            Some(_) => Err(exists()),
            None => self.make(&place, node),
        }
    }

    fn make(&mut self, place: &Place, node: &NewNode) -> Result<Location> {
        if place.directory && node.kind != NodeKind::Directory {
            return Err(Error::new(ErrorKind::InvalidInput, "the path ends in a slash"));
        }
        let filesystem = self.filesystem_mut(place.dir.mount);
        let inode = filesystem.create(place.dir.inode, &place.name, node)?;
        Ok(Location { mount: place.dir.mount, inode })
    }

    /// Makes a directory and those above it that do not exist, all owned by root with this mode.
    pub fn create_dir_all(&mut self, path: impl AsRef<[u8]>, mode: u16) -> Result<()> {
        let path = path.as_ref();
        let node = NewNode { kind: NodeKind::Directory, mode, uid: 0, gid: 0 };
        for end in ends_of_names(path) {
            let part = &path[..end];
            match self.resolve(part, true) {
                Ok(found) => self.require_directory(found.location).map_err(|error| error.at(part))?,
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    let place = self.place(part, true).map_err(|error| error.at(part))?;
                    self.make(&place, &node).map_err(|error| error.at(part))?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Removes a file that is no directory, or an empty directory.
    pub fn remove(&mut self, path: impl AsRef<[u8]>) -> Result<()> {
        let path = path.as_ref();
        self.remove_at(path).map_err(|error| error.at(path))
    }

    fn remove_at(&mut self, path: &[u8]) -> Result<()> {
        let (dir, name, location) = self.removable(path)?;
        let is_dir = self.metadata_at(location)?.file_type == FileType::Directory;
        let filesystem = self.filesystem_mut(dir.mount);
        if is_dir { filesystem.rmdir(dir.inode, &name) } else { filesystem.unlink(dir.inode, &name) }
    }

    fn removable(&self, path: &[u8]) -> Result<(Location, Vec<u8>, Location)> {
        let place = self.place(path, false)?;
        let location = place.found.ok_or_else(not_found)?;
        self.refuse_mount(location)?;
        Ok((place.dir, place.name, location))
    }

    fn refuse_mount(&self, location: Location) -> Result<()> {
        match self.is_mount_root(location) {
            true => Err(Error::new(ErrorKind::InUse, "a filesystem is mounted there")),
            false => Ok(()),
        }
    }

    /// Removes a file, and if it is a directory everything in it. Mounted filesystems are never entered.
    pub fn remove_all(&mut self, path: impl AsRef<[u8]>) -> Result<()> {
        let path = path.as_ref();
        self.remove_all_at(path).map_err(|error| error.at(path))
    }

    fn remove_all_at(&mut self, path: &[u8]) -> Result<()> {
        let (dir, name, location) = self.removable(path)?;
        self.refuse_mounts_beneath(path)?;
        let mount = dir.mount;
        if self.metadata_at(location)?.file_type != FileType::Directory {
            return self.filesystem_mut(mount).unlink(dir.inode, &name);
        }
        let mut met = HashSet::from([location.inode]);
        let mut levels = vec![(dir.inode, name, location.inode, self.read_dir_at(location)?)];
        while let Some((parent, name, inode, entries)) = levels.last_mut() {
            let Some(DirEntry { name: child, inode: child_inode, file_type }) = entries.pop() else {
                self.filesystem_mut(mount).rmdir(*parent, name)?;
                levels.pop();
                continue;
            };
            if file_type != FileType::Directory {
                self.filesystem_mut(mount).unlink(*inode, &child)?;
                continue;
            }
            if !met.insert(child_inode) {
                return Err(met_twice());
            }
            let entries = self.read_dir_at(Location { mount, inode: child_inode })?;
            let parent = *inode;
            levels.push((parent, child, child_inode, entries));
        }
        Ok(())
    }

    /// Nothing is removed at all where a part of it could not be.
    fn refuse_mounts_beneath(&self, path: &[u8]) -> Result<()> {
        let mut prefix = self.resolve(path, false)?.path;
        prefix.push(b'/');
        match self.mounts.iter().any(|mounted| mounted.path.starts_with(&prefix)) {
            true => Err(Error::new(ErrorKind::InUse, "a filesystem is mounted beneath it")),
            false => Ok(()),
        }
    }

    /// Moves a name within one filesystem; between two it is an error of kind `Unsupported`.
    pub fn rename(&mut self, from: impl AsRef<[u8]>, to: impl AsRef<[u8]>, mode: RenameMode) -> Result<()> {
        let (from, to) = (from.as_ref(), to.as_ref());
        let (from_dir, from_name, moved) = self.removable(from).map_err(|error| error.at(from))?;
        let target = self.place(to, false).map_err(|error| error.at(to))?;
        let result = (|| {
            if let Some(location) = target.found {
                self.refuse_mount(location)?;
            }
            if target.directory {
                self.require_directory(moved)?;
            }
            if target.above.contains(&moved) {
                return Err(Error::new(ErrorKind::InvalidInput, "a directory cannot move into itself"));
            }
            if from_dir.mount != target.dir.mount {
                return Err(Error::new(ErrorKind::Unsupported, "it is on another filesystem"));
            }
            let ends = ((from_dir.inode, from_name.as_slice()), (target.dir.inode, target.name.as_slice()));
            self.filesystem_mut(from_dir.mount).rename(ends.0, ends.1, mode)
        })();
        result.map_err(|error| error.at(to))
    }

    /// Gives the file at `from`, which is not followed if it is a symbolic link, a second name.
    pub fn link(&mut self, from: impl AsRef<[u8]>, to: impl AsRef<[u8]>) -> Result<()> {
        let (from, to) = (from.as_ref(), to.as_ref());
        let source = self.resolve(from, false)?.location;
        let target = self.place(to, false).map_err(|error| error.at(to))?;
        let result = match target.found {
            Some(_) => Err(exists()),
            None if self.metadata_at(source)?.file_type == FileType::Directory => {
                Err(Error::new(ErrorKind::InvalidInput, "a directory cannot have a second name"))
            }
            None if target.directory => Err(Error::new(ErrorKind::InvalidInput, "the path ends in a slash")),
            None if source.mount != target.dir.mount => {
                Err(Error::new(ErrorKind::Unsupported, "it is on another filesystem"))
            }
            None => self.filesystem_mut(source.mount).link(source.inode, target.dir.inode, &target.name),
        };
        result.map_err(|error| error.at(to))
    }

    /// Changes the attributes of the file at a path.
    pub fn set_attributes(
        &mut self,
        path: impl AsRef<[u8]>,
        attributes: &SetAttributes,
        follow_last: bool,
    ) -> Result<()> {
        let path = path.as_ref();
        let location = self.resolve(path, follow_last)?.location;
        let filesystem = self.filesystem_mut(location.mount);
        filesystem.set_attributes(location.inode, attributes).map_err(|error| error.at(path))
    }
}

fn exists() -> Error {
    Error::new(ErrorKind::Exists, "the name exists already")
}

/// The ends of all prefixes of a path that end in a name.
fn ends_of_names(path: &[u8]) -> impl Iterator<Item = usize> + '_ {
    let is_slash = |index: usize| path.get(index).is_none_or(|&byte| byte == b'/');
    (1..=path.len()).filter(move |&end| is_slash(end) && !is_slash(end - 1))
}
