use crate::{Error, ErrorKind, FileSystem, InodeNumber, Result, Timestamp};

mod read;
mod resolve;
#[cfg(test)]
mod tests;
mod write;

pub use read::WalkEntry;
pub use resolve::{LINKS_MAX, Resolved};

/// Names one of the filesystems of a [`Root`]; the first, at `/`, is the default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct MountId(usize);

/// An inode of one of the filesystems of a [`Root`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Location {
    /// The filesystem.
    pub mount: MountId,
    /// The inode in it.
    pub inode: InodeNumber,
}

/// The tree of files that a guest sees: filesystems mounted at paths of one another.
///
/// Every path is resolved inside the tree, by names that are bytes. Absolute symbolic links start again at
/// this root, `..` never leaves it, and more than [`LINKS_MAX`] links in one path are refused. A path that
/// does not begin with `/` is taken from the root too.
pub struct Root {
    mounts: Vec<Mounted>,
}

struct Mounted {
    /// Where it is, in canonical form.
    path: Vec<u8>,
    /// The directory that it hides; none for the first.
    covers: Option<Location>,
    filesystem: Box<dyn FileSystem>,
}

impl Root {
    /// Makes a tree of a single filesystem.
    pub fn new(filesystem: Box<dyn FileSystem>) -> Self {
        Self { mounts: vec![Mounted { path: b"/".to_vec(), covers: None, filesystem }] }
    }

    /// Mounts a further filesystem over a directory that exists, hiding it.
    pub fn mount(&mut self, path: impl AsRef<[u8]>, filesystem: Box<dyn FileSystem>) -> Result<MountId> {
        let path = path.as_ref();
        let resolved = self.resolve(path, true)?;
        self.require_directory(resolved.location).map_err(|error| error.at(path))?;
        self.mounts.push(Mounted { path: resolved.path, covers: Some(resolved.location), filesystem });
        Ok(MountId(self.mounts.len() - 1))
    }

    /// Every mounted filesystem with its canonical path, in the order of mounting.
    pub fn mounts(&self) -> impl Iterator<Item = (MountId, &[u8], &dyn FileSystem)> {
        let mounts = self.mounts.iter().enumerate();
        mounts.map(|(index, mounted)| (MountId(index), mounted.path.as_slice(), &*mounted.filesystem))
    }

    /// One of the mounted filesystems.
    ///
    /// # Panics
    /// If the id comes from another root that has more mounts.
    pub fn filesystem(&self, mount: MountId) -> &dyn FileSystem {
        &*self.mounts[mount.0].filesystem
    }

    /// One of the mounted filesystems, to be changed.
    ///
    /// # Panics
    /// If the id comes from another root that has more mounts.
    pub fn filesystem_mut(&mut self, mount: MountId) -> &mut dyn FileSystem {
        &mut *self.mounts[mount.0].filesystem
    }

    /// Sets the time that changes from now on are stamped with, in every filesystem.
    pub fn set_now(&mut self, now: Timestamp) {
        for mounted in &mut self.mounts {
            mounted.filesystem.set_now(now);
        }
    }

    /// Writes everything pending to the disks beneath, skipping filesystems that are read-only.
    pub fn sync(&mut self) -> Result<()> {
        let mut changeable = self.mounts.iter_mut().filter(|mounted| !mounted.filesystem.is_read_only());
        changeable.try_for_each(|mounted| mounted.filesystem.sync())
    }

    /// The root directory of the tree.
    pub fn root(&self) -> Location {
        self.cross(self.root_of(MountId(0)))
    }

    fn root_of(&self, mount: MountId) -> Location {
        Location { mount, inode: self.filesystem(mount).root() }
    }

    /// Follows a location to whatever is mounted on top of it.
    fn cross(&self, mut location: Location) -> Location {
        // Each step leads to a mount made later, so this ends.
        while let Some(index) = self.mounts.iter().rposition(|mounted| mounted.covers == Some(location)) {
            location = self.root_of(MountId(index));
        }
        location
    }

    fn is_mount_root(&self, location: Location) -> bool {
        self.filesystem(location.mount).root() == location.inode
    }

    fn require_directory(&self, location: Location) -> Result<()> {
        match self.metadata_at(location)?.file_type {
            crate::FileType::Directory => Ok(()),
            _ => Err(Error::new(ErrorKind::InvalidInput, "not a directory")),
        }
    }
}
