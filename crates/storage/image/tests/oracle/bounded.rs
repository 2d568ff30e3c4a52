//! Memory that is full at some length.

use std::sync::Arc;

use vmwright_disk::{Disk, Error, Extent, MemDisk, Result};

/// Memory that does not grow without bound, as a full host would not.
struct Bounded {
    disk: MemDisk,
    bound: u64,
}

/// These bytes as a disk that can have `bound` bytes at most.
pub(super) fn bounded(bytes: Vec<u8>, bound: u64) -> Arc<dyn Disk> {
    Arc::new(Bounded { disk: MemDisk::from_bytes(bytes), bound })
}

impl Disk for Bounded {
    fn len(&self) -> u64 {
        self.disk.len()
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.disk.read_at(buf, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        self.disk.write_at(data, offset)
    }

    fn zero_at(&self, offset: u64, len: u64) -> Result<()> {
        self.disk.zero_at(offset, len)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.disk.discard(offset, len)
    }

    fn set_len(&self, len: u64) -> Result<()> {
        if len > self.bound {
            let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
            return Err(Error::host("resize", "memory".as_ref(), full));
        }
        self.disk.set_len(len)
    }

    fn flush(&self) -> Result<()> {
        self.disk.flush()
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        self.disk.extent_at(offset)
    }
}
