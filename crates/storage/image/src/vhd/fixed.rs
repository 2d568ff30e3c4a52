//! Images of fixed size: the bytes of the disk, and the footer behind them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmwright_disk::{Disk, Extent, ExtentKind, check_range};

use super::layout::{FOOTER, Footer, MAX_SIZE};
use super::open::Ends;
use super::{VhdOptions, VhdSubformat, check, exact, geometry};
use crate::driver::{ContentId, Driver};
use crate::error::Reason;
use crate::info::{CheckReport, ImageInfo, Repair};
use crate::{Error, Layout, OpenOptions, Result};

/// An open image of fixed size.
pub(super) struct Fixed {
    file: Arc<dyn Disk>,
    footer: Mutex<Footer>,
    size: AtomicU64,
    read_only: bool,
}

impl Fixed {
    pub(super) fn open(file: Arc<dyn Disk>, ends: Ends, options: &OpenOptions) -> Self {
        let read_only = options.read_only || file.is_read_only();
        Self { file, footer: Mutex::new(ends.footer), size: AtomicU64::new(ends.size), read_only }
    }

    fn footer(&self) -> MutexGuard<'_, Footer> {
        self.footer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writable(&self, offset: u64, len: u64) -> vmwright_disk::Result<&dyn Disk> {
        check_range(offset, len, self.len())?;
        match self.read_only {
            true => Err(Error::from(Reason::ReadOnly { what: "the image" }).into()),
            false => Ok(&*self.file),
        }
    }

    /// The new footer is durable before the old one is overwritten or cut off; there always is one at the end.
    fn resize(&self, len: u64) -> Result<()> {
        self.writable(0, 0)?;
        if !len.is_multiple_of(512) {
            return Err(Error::invalid("the size of a VHD", "it must be a multiple of 512 bytes"));
        }
        if len > MAX_SIZE {
            return Err(Error::invalid("the size of a VHD", "it must be at most 2040 GiB"));
        }
        let mut footer = self.footer();
        let (old, file_len) = (self.len(), self.file.len());
        if len == old {
            return Ok(());
        }
        let resized = exact(&footer, len);
        let end = len + FOOTER;
        if end > file_len {
            self.file.set_len(end)?;
        }
        let written = self.file.write_at(&resized.encode(), len).and_then(|()| self.file.flush());
        if let Err(error) = written {
            // The old footer is at the end again, without which nobody knows the image for what it is.
            if end > file_len {
                self.file.set_len(file_len)?;
            }
            return Err(error.into());
        }
        if end < self.file.len() {
            self.file.set_len(end)?;
        }
        // What was behind the disk before: the old footer, and perhaps some bytes before it.
        let stale = file_len.min(len).saturating_sub(old);
        if stale > 0 {
            self.file.zero_at(old, stale)?;
        }
        self.file.flush()?;
        *footer = resized;
        self.size.store(len, Ordering::Release);
        Ok(())
    }
}

impl Driver for Fixed {
    fn info(&self) -> Result<ImageInfo> {
        super::describe_with(&*self.file, true)
    }

    fn check(&self, repair: Repair) -> Result<CheckReport> {
        check::fixed(&*self.file, repair == Repair::All && !self.read_only)
    }

    fn layout(&self) -> Layout {
        let force_size = !geometry::is_by_geometry(self.footer().creator());
        Layout::Vhd(VhdOptions { subformat: VhdSubformat::Fixed, force_size, ..VhdOptions::default() })
    }

    fn content_id(&self) -> Result<Option<ContentId>> {
        Ok(Some(ContentId::Vhd(self.footer().id())))
    }
}

impl Disk for Fixed {
    fn len(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> vmwright_disk::Result<()> {
        check_range(offset, buf.len() as u64, self.len())?;
        self.file.read_at(buf, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> vmwright_disk::Result<()> {
        self.writable(offset, data.len() as u64)?.write_at(data, offset)
    }

    fn zero_at(&self, offset: u64, len: u64) -> vmwright_disk::Result<()> {
        self.writable(offset, len)?.zero_at(offset, len)
    }

    fn discard(&self, offset: u64, len: u64) -> vmwright_disk::Result<()> {
        self.writable(offset, len)?.discard(offset, len)
    }

    fn set_len(&self, len: u64) -> vmwright_disk::Result<()> {
        Ok(self.resize(len)?)
    }

    fn flush(&self) -> vmwright_disk::Result<()> {
        self.file.flush()
    }

    fn extent_at(&self, offset: u64) -> vmwright_disk::Result<Extent> {
        check_range(offset, 1, self.len())?;
        let mut extent = self.file.extent_at(offset)?;
        extent.len = extent.len.min(self.len() - offset);
        if extent.kind == ExtentKind::Unallocated {
            // A hole holds zeros; nothing lies beneath that could show through.
            extent.kind = ExtentKind::Zero;
        }
        Ok(extent)
    }
}
