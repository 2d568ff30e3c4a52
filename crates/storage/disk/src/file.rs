use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Disk, Error, Extent, ExtentKind, FileId, Result, check_range};

/// A file or block device of the host.
#[derive(Debug)]
pub struct HostFile {
    file: File,
    path: PathBuf,
    id: FileId,
    len: AtomicU64,
    read_only: bool,
}

impl HostFile {
    /// Opens a file for reading, and for writing too unless `read_only`.
    pub fn open(path: &Path, read_only: bool) -> Result<Self> {
        let file = OpenOptions::new().read(true).write(!read_only).open(path);
        let file = file.map_err(|source| Error::host("open", path, source))?;
        let metadata = file.metadata().map_err(|source| Error::host("stat", path, source))?;
        Ok(Self {
            id: FileId { device: metadata.dev(), inode: metadata.ino() },
            len: AtomicU64::new(metadata.len()),
            path: path.to_owned(),
            file,
            read_only,
        })
    }

    fn fail(&self, action: &'static str) -> impl FnOnce(std::io::Error) -> Error + '_ {
        move |source| Error::host(action, &self.path, source)
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
        self.file.read_exact_at(buf, offset).map_err(self.fail("read"))
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        check_range(offset, data.len() as u64, self.len())?;
        self.file.write_all_at(data, offset).map_err(self.fail("write"))
    }

    fn zero_at(&self, offset: u64, len: u64) -> Result<()> {
        check_range(offset, len, self.len())?;
        let zeros = [0; 65536];
        let mut done = 0;
        while done < len {
            let step = (len - done).min(zeros.len() as u64);
            self.write_at(&zeros[..step as usize], offset + done)?;
            done += step;
        }
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        check_range(offset, len, self.len())
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.file.set_len(len).map_err(self.fail("resize"))?;
        self.len.store(len, Ordering::Release);
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.file.sync_data().map_err(self.fail("sync"))
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        check_range(offset, 1, self.len())?;
        let kind = ExtentKind::Data { file: self.id, offset };
        Ok(Extent { start: offset, len: self.len() - offset, kind, depth: 0 })
    }
}
