use std::sync::RwLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Disk, Extent, ExtentKind, FileId, Result, check_range};

/// A disk in memory.
#[derive(Debug)]
pub struct MemDisk {
    bytes: RwLock<Vec<u8>>,
    id: FileId,
}

impl MemDisk {
    /// Makes a disk of `len` zero bytes.
    pub fn new(len: usize) -> Self {
        Self::from_bytes(vec![0; len])
    }

    /// Makes a disk that holds `bytes`.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = FileId { device: 0, inode: NEXT.fetch_add(1, Ordering::Relaxed) };
        Self { bytes: RwLock::new(bytes), id }
    }

    /// A copy of the whole content.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.read().clone()
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Vec<u8>> {
        self.bytes.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Vec<u8>> {
        self.bytes.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Turns a checked range into indices; a range within a `Vec` always fits.
fn indices(offset: u64, len: u64, total: usize) -> Result<std::ops::Range<usize>> {
    check_range(offset, len, total as u64)?;
    Ok(offset as usize..(offset + len) as usize)
}

impl Disk for MemDisk {
    fn len(&self) -> u64 {
        self.read().len() as u64
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let bytes = self.read();
        let range = indices(offset, buf.len() as u64, bytes.len())?;
        buf.copy_from_slice(&bytes[range]);
        Ok(())
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        let mut bytes = self.write();
        let range = indices(offset, data.len() as u64, bytes.len())?;
        bytes[range].copy_from_slice(data);
        Ok(())
    }

    fn zero_at(&self, offset: u64, len: u64) -> Result<()> {
        let mut bytes = self.write();
        let range = indices(offset, len, bytes.len())?;
        bytes[range].fill(0);
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.zero_at(offset, len)
    }

    fn set_len(&self, len: u64) -> Result<()> {
        let len = usize::try_from(len).map_err(|_| crate::Error::fixed_size("memory of this size"))?;
        self.write().resize(len, 0);
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        let total = self.len();
        check_range(offset, 1, total)?;
        let kind = ExtentKind::Data { file: self.id, offset };
        Ok(Extent { start: offset, len: total - offset, kind, depth: 0 })
    }
}
