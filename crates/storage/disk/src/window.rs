use std::sync::Arc;

use crate::{Disk, Error, Extent, Result, check_range};

/// A part of another disk, such as a partition.
#[derive(Clone)]
pub struct Window {
    disk: Arc<dyn Disk>,
    start: u64,
    len: u64,
}

impl Window {
    /// Makes a window of `len` bytes that begins at `start` of `disk`, which must contain it.
    pub fn new(disk: Arc<dyn Disk>, start: u64, len: u64) -> Result<Self> {
        check_range(start, len, disk.len())?;
        Ok(Self { disk, start, len })
    }

    /// Where the window begins in the disk beneath, in bytes.
    pub fn start(&self) -> u64 {
        self.start
    }

    fn translate(&self, offset: u64, len: u64) -> Result<u64> {
        check_range(offset, len, self.len)?;
        Ok(self.start + offset)
    }
}

impl Disk for Window {
    fn len(&self) -> u64 {
        self.len
    }

    fn is_read_only(&self) -> bool {
        self.disk.is_read_only()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.disk.read_at(buf, self.translate(offset, buf.len() as u64)?)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        self.disk.write_at(data, self.translate(offset, data.len() as u64)?)
    }

    fn zero_at(&self, offset: u64, len: u64) -> Result<()> {
        self.disk.zero_at(self.translate(offset, len)?, len)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.disk.discard(self.translate(offset, len)?, len)
    }

    fn set_len(&self, _len: u64) -> Result<()> {
        Err(Error::fixed_size("a window into a disk"))
    }

    fn flush(&self) -> Result<()> {
        self.disk.flush()
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        let mut extent = self.disk.extent_at(self.translate(offset, 1)?)?;
        extent.start = offset;
        extent.len = extent.len.min(self.len - offset);
        Ok(extent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ErrorKind, MemDisk};

    #[test]
    fn a_window_never_reaches_past_its_end() {
        let disk = Arc::new(MemDisk::new(100));
        let window = Window::new(disk, 10, 20).unwrap();
        assert_eq!(window.write_at(&[1; 21], 0).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(window.read_at(&mut [0; 1], 20).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(window.extent_at(5).unwrap().len, 15);
    }

    #[test]
    fn a_window_must_lie_within_its_disk() {
        let disk = Arc::new(MemDisk::new(100));
        assert!(Window::new(disk, 90, 11).is_err());
    }
}
