use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::host::{FileKind, Handle, Host, LockMode, OpenMode, RealHost, Stat};
use crate::{Disk, Error, Extent, ExtentKind, FileId, Result, check_range, opened};

/// Whether a host file is locked against other programs while it is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sharing {
    /// Locked as QEMU locks it: any number of readers, or one writer alone.
    #[default]
    Locked,
    /// Not locked and no lock respected, for reading what another program may be writing (`--force-share`).
    Forced,
}

/// A file or block device of the host.
///
/// It is locked from being opened to being closed with the locks that QEMU takes: a second writer, or a
/// reader beside a writer, is refused with [`ErrorKind::InUse`](crate::ErrorKind::InUse), in whichever
/// program. A length that changes behind its back is an error of its own.
#[derive(Debug)]
pub struct HostFile {
    handle: Arc<dyn Handle>,
    path: PathBuf,
    id: FileId,
    kind: FileKind,
    len: AtomicU64,
    len_changed: AtomicBool,
    read_only: bool,
}

impl HostFile {
    /// Opens a file for reading, and for writing too unless `read_only`, and locks it.
    pub fn open(path: &Path, read_only: bool) -> Result<Self> {
        let mode = if read_only { OpenMode::Read } else { OpenMode::Write };
        Self::open_on(&RealHost, path, mode, Sharing::Locked)
    }

    /// Opens a file for reading although another program may be changing it: takes no lock.
    pub fn open_forced(path: &Path) -> Result<Self> {
        Self::open_on(&RealHost, path, OpenMode::Read, Sharing::Forced)
    }

    /// Makes a file of `len` zero bytes that must not exist yet, and locks it.
    pub fn create(path: &Path, len: u64) -> Result<Self> {
        let file = Self::open_on(&RealHost, path, OpenMode::Create, Sharing::Locked)?;
        file.set_len(len)?;
        Ok(file)
    }

    pub(crate) fn open_on(host: &dyn Host, path: &Path, mode: OpenMode, sharing: Sharing) -> Result<Self> {
        let fail = |action| move |source| Error::host(action, path, source);
        loop {
            let handle = host.open(path, mode).map_err(fail("open"))?;
            let first = handle.stat().map_err(fail("stat"))?;
            if first.kind == FileKind::Other {
                return Err(Error::not_a_disk(path));
            }
            if sharing == Sharing::Forced {
                return Ok(Self::from_handle(handle, path, mode, first));
            }
            let lock = if mode == OpenMode::Read { LockMode::Read } else { LockMode::Write };
            if let Err(conflict) = handle.lock(lock).map_err(fail("lock"))? {
                return Err(Error::in_use(path, conflict.holder));
            }
            // Whoever held the lock before may have given the name to another file, or changed the length.
            let stat = handle.stat().map_err(fail("stat"))?;
            if host.identity(path).map_err(fail("stat"))? == (stat.device, stat.inode) {
                return Ok(Self::from_handle(handle, path, mode, stat));
            }
        }
    }

    fn from_handle(handle: Arc<dyn Handle>, path: &Path, mode: OpenMode, stat: Stat) -> Self {
        let id = FileId { device: stat.device, inode: stat.inode };
        opened::note(id, &handle);
        Self {
            handle,
            path: path.to_owned(),
            id,
            kind: stat.kind,
            len: AtomicU64::new(stat.len),
            len_changed: AtomicBool::new(false),
            read_only: mode == OpenMode::Read,
        }
    }

    /// The name it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which file it is.
    pub fn id(&self) -> FileId {
        self.id
    }

    /// Whether it is a block device, whose length is fixed.
    pub fn is_block_device(&self) -> bool {
        self.kind == FileKind::Block
    }

    pub(crate) fn handle(&self) -> &dyn Handle {
        &*self.handle
    }

    pub(crate) fn stat(&self) -> Result<Stat> {
        self.handle.stat().map_err(self.fail("stat"))
    }

    pub(crate) fn copies_on_write(&self) -> bool {
        self.handle.copies_on_write()
    }

    pub(crate) fn free_space(&self) -> Result<u64> {
        self.handle.free_space().map_err(self.fail("find the free space beside"))
    }

    /// Allocates space without changing a byte or the length; answers whether that is possible here.
    pub(crate) fn reserve(&self, offset: u64, len: u64) -> Result<bool> {
        match self.handle.reserve(offset, len) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(false),
            Err(source) => Err(Error::host("reserve space for", &self.path, source)),
        }
    }

    /// Gives back what [`HostFile::reserve`] allocated past the end.
    pub(crate) fn trim_reserved(&self) -> Result<()> {
        self.handle.set_len(self.len()).map_err(self.fail("give back space of"))
    }

    /// Makes content and everything else about the file durable: owner and mode too, which a flush may leave out.
    pub(crate) fn sync_all(&self) -> Result<()> {
        self.handle.sync(true).map_err(self.fail("sync"))
    }

    fn fail(&self, action: &'static str) -> impl FnOnce(io::Error) -> Error + '_ {
        move |source| Error::host(action, &self.path, source)
    }

    fn check_write(&self, offset: u64, len: u64) -> Result<()> {
        if self.read_only {
            return Err(Error::read_only("a host file opened for reading"));
        }
        check_range(offset, len, self.len())
    }
}

impl Disk for HostFile {
    fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(offset, buf.len() as u64, self.len())?;
        self.handle.read_at(buf, offset).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => Error::shortened(&self.path, offset, buf.len() as u64),
            _ => Error::host("read", &self.path, source),
        })
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        self.check_write(offset, data.len() as u64)?;
        self.handle.write_at(data, offset).map_err(self.fail("write"))
    }

    fn zero_at(&self, offset: u64, len: u64) -> Result<()> {
        self.check_write(offset, len)?;
        match len {
            0 => Ok(()),
            _ => self.handle.zero(offset, len).map_err(self.fail("write zeros to")),
        }
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.check_write(offset, len)?;
        match len {
            0 => Ok(()),
            _ => self.handle.punch(offset, len).map_err(self.fail("discard a range of")),
        }
    }

    fn reserve(&self, offset: u64, len: u64) -> Result<bool> {
        self.check_write(offset, len)?;
        if len == 0 { Ok(true) } else { Self::reserve(self, offset, len) }
    }

    fn set_len(&self, len: u64) -> Result<()> {
        if self.read_only {
            return Err(Error::read_only("a host file opened for reading"));
        }
        if self.is_block_device() {
            return Err(Error::fixed_size("a block device"));
        }
        self.handle.set_len(len).map_err(self.fail("resize"))?;
        self.len_changed.store(true, Ordering::Release);
        self.len.store(len, Ordering::Release);
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        let metadata = self.len_changed.swap(false, Ordering::AcqRel);
        let result = self.handle.sync(metadata);
        if result.is_err() && metadata {
            self.len_changed.store(true, Ordering::Release);
        }
        result.map_err(self.fail("sync"))
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        check_range(offset, 1, self.len())?;
        let region = self.handle.region_at(offset).map_err(self.fail("find the holes of"))?;
        let kind = match region.hole {
            true => ExtentKind::Unallocated,
            false => ExtentKind::Data { file: self.id, offset },
        };
        Ok(Extent { start: offset, len: region.end.min(self.len()) - offset, kind, depth: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn sample(len: u64) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        HostFile::create(&path, len).unwrap();
        (dir, path)
    }

    #[test]
    fn a_hole_is_unallocated_and_data_names_its_file() {
        let (_dir, path) = sample(1 << 20);
        let file = HostFile::open(&path, false).unwrap();
        file.write_at(&[7; 4096], 65536).unwrap();
        let hole = file.extent_at(0).unwrap();
        assert_eq!((hole.kind, hole.len), (ExtentKind::Unallocated, 65536));
        let data = file.extent_at(65536).unwrap();
        assert_eq!(data.kind, ExtentKind::Data { file: file.id(), offset: 65536 });
        assert_eq!(file.extent_at(69632).unwrap().end(), 1 << 20);
    }

    #[test]
    fn a_zeroed_range_gives_its_space_back() {
        let (_dir, path) = sample(1 << 20);
        let file = HostFile::open(&path, false).unwrap();
        file.write_at(&[7; 1 << 16], 0).unwrap();
        file.zero_at(0, 1 << 16).unwrap();
        let mut bytes = [1; 1 << 16];
        file.read_at(&mut bytes, 0).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0));
        assert!(file.extent_at(0).unwrap().is_zero());
    }

    #[test]
    fn a_file_made_shorter_by_someone_else_is_an_error_that_says_so() {
        let (_dir, path) = sample(1 << 20);
        let file = HostFile::open(&path, true).unwrap();
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1000).unwrap();
        let error = file.read_at(&mut [0; 512], 4096).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(error.to_string().contains("shorter since it was opened"), "{error}");
    }

    #[test]
    fn a_file_opened_for_reading_refuses_every_change() {
        let (_dir, path) = sample(4096);
        let file = HostFile::open(&path, true).unwrap();
        for result in [file.write_at(&[1], 0), file.zero_at(0, 1), file.discard(0, 1), file.set_len(1)] {
            assert_eq!(result.unwrap_err().kind(), ErrorKind::ReadOnly);
        }
    }

    #[test]
    fn a_writer_excludes_everyone_and_readers_share() {
        let (_dir, path) = sample(4096);
        let writer = HostFile::open(&path, false).unwrap();
        for read_only in [true, false] {
            let error = HostFile::open(&path, read_only).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InUse);
            assert!(error.to_string().contains("this process"), "{error}");
        }
        HostFile::open_forced(&path).unwrap();
        drop(writer);
        let first = HostFile::open(&path, true).unwrap();
        let _second = HostFile::open(&path, true).unwrap();
        assert_eq!(HostFile::open(&path, false).unwrap_err().kind(), ErrorKind::InUse);
        drop(first);
    }

    #[test]
    fn what_is_not_a_disk_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(HostFile::open(dir.path(), true).unwrap_err().kind(), ErrorKind::Unsupported);
        let missing = HostFile::open(&dir.path().join("none"), true).unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
    }
}
