use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use vmwright_disk::{Disk, Extent, Result, check_range};

use crate::{Error, ErrorKind, FileType, Location, Root};

/// One regular file of a guest as a disk: a swap file, a disk image or a registry hive inside it.
///
/// Several may share one tree; each call takes the lock for itself, so their changes do not mix within a
/// call. The file must not be removed while a disk is open on it.
pub struct FileDisk {
    root: Arc<RwLock<Root>>,
    location: Location,
    read_only: bool,
}

impl FileDisk {
    /// Opens the regular file at a path; a filesystem that is read-only makes the disk read-only too.
    pub fn open(root: Arc<RwLock<Root>>, path: impl AsRef<[u8]>, read_only: bool) -> crate::Result<Self> {
        let path = path.as_ref();
        let guard = root.read().unwrap_or_else(PoisonError::into_inner);
        let location = guard.resolve(path, true)?.location;
        if guard.metadata_at(location)?.file_type != FileType::Regular {
            return Err(Error::new(ErrorKind::InvalidInput, "not a regular file").at(path));
        }
        let read_only = read_only || guard.filesystem(location.mount).is_read_only();
        drop(guard);
        Ok(Self { root, location, read_only })
    }

    fn read(&self) -> RwLockReadGuard<'_, Root> {
        self.root.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the tree for a change to a range, which must lie within the file.
    fn change(&self, offset: u64, len: u64) -> Result<RwLockWriteGuard<'_, Root>> {
        if self.read_only {
            return Err(vmwright_disk::Error::read_only("the file in the guest"));
        }
        let guard = self.root.write().unwrap_or_else(PoisonError::into_inner);
        check_range(offset, len, self.size(&guard)?)?;
        Ok(guard)
    }

    fn size(&self, root: &Root) -> Result<u64> {
        Ok(root.metadata_at(self.location).map_err(lower)?.size)
    }
}

fn lower(error: Error) -> vmwright_disk::Error {
    vmwright_disk::Error::layer(error.kind(), error)
}

impl Disk for FileDisk {
    /// The length in bytes; zero where the inode can no longer be read.
    fn len(&self) -> u64 {
        self.size(&self.read()).unwrap_or(0)
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let root = self.read();
        check_range(offset, buf.len() as u64, self.size(&root)?)?;
        let mut done = 0;
        while done < buf.len() {
            let count = root.read_at(self.location, &mut buf[done..], offset + done as u64).map_err(lower)?;
            if count == 0 {
                let ended = Error::new(ErrorKind::Corrupt, "the file ends before the size of its inode");
                return Err(lower(ended));
            }
            done += count;
        }
        Ok(())
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        self.change(offset, data.len() as u64)?.write_at(self.location, data, offset).map_err(lower)
    }

    fn zero_at(&self, offset: u64, len: u64) -> Result<()> {
        let mut root = self.change(offset, len)?;
        root.filesystem_mut(self.location.mount).punch(self.location.inode, offset, len).map_err(lower)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.zero_at(offset, len)
    }

    fn set_len(&self, len: u64) -> Result<()> {
        let mut root = self.change(0, 0)?;
        root.filesystem_mut(self.location.mount).truncate(self.location.inode, len).map_err(lower)
    }

    /// Brings the whole filesystem to the disk beneath it, as [`crate::FileSystem::sync`] does.
    fn flush(&self) -> Result<()> {
        match self.read_only {
            true => Ok(()),
            false => self.change(0, 0)?.filesystem_mut(self.location.mount).sync().map_err(lower),
        }
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        let root = self.read();
        let size = self.size(&root)?;
        check_range(offset, 1, size)?;
        let filesystem = root.filesystem(self.location.mount);
        let mut extent = filesystem.extent_at(self.location.inode, offset).map_err(lower)?;
        // The last block of a file reaches past its end.
        extent.len = extent.len.min(size - offset);
        Ok(extent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryFs;

    fn root() -> Arc<RwLock<Root>> {
        let mut root = Root::new(Box::new(MemoryFs::default()));
        root.write_file("/file", b"0123456789").unwrap();
        Arc::new(RwLock::new(root))
    }

    #[test]
    fn a_file_reads_and_writes_as_a_disk_of_its_size() {
        let root = root();
        let disk = FileDisk::open(root.clone(), "/file", false).unwrap();
        disk.write_at(b"abc", 2).unwrap();
        disk.zero_at(6, 2).unwrap();
        let mut bytes = [0; 10];
        disk.read_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"01abc5\0\x0089");
        assert_eq!(disk.write_at(b"x", 10).unwrap_err().kind(), ErrorKind::InvalidInput);
        disk.set_len(12).unwrap();
        disk.write_at(b"x", 11).unwrap();
        disk.flush().unwrap();
        assert_eq!(root.read().unwrap().read_file("/file", 12).unwrap(), b"01abc5\0\x0089\0x");
        assert_eq!(disk.extent_at(4).unwrap().len, 8);
    }

    #[test]
    fn a_read_only_disk_changes_nothing() {
        let disk = FileDisk::open(root(), "/file", true).unwrap();
        assert!(disk.is_read_only());
        assert_eq!(disk.write_at(b"x", 0).unwrap_err().kind(), ErrorKind::ReadOnly);
        assert_eq!(disk.set_len(0).unwrap_err().kind(), ErrorKind::ReadOnly);
        disk.flush().unwrap();
        assert_eq!(disk.len(), 10);
    }

    #[test]
    fn a_directory_is_no_disk() {
        let opened = FileDisk::open(root(), "/", false);
        assert_eq!(opened.err().unwrap().kind(), ErrorKind::InvalidInput);
    }
}
