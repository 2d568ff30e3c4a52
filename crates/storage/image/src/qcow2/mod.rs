//! QEMU's copy-on-write format.
//!
//! ```text
//! offset in the disk ─ L1 table (in memory) ─ L2 table (cached in slices) ─ cluster in the file
//!                                                                         └ or zeros, or compressed, or
//!                                                                           in the backing file
//! ```

mod alloc;
#[cfg(test)]
mod bitmap_crash_tests;
mod bitmap_data;
mod bitmap_header;
mod bitmap_resize;
pub(crate) mod bitmaps;
pub(crate) mod check;
pub(crate) mod compress;
mod corrupt;
mod counts;
pub(crate) mod create;
pub(crate) mod crypt;
mod data;
mod flush;
pub(crate) mod info;
mod inspect;
pub(crate) mod layout;
mod map;
pub(crate) mod open;
pub(crate) mod options;
mod preallocate;
mod prepare;
mod read;
mod refcount;
mod repair;
mod resize;
mod rewrite;
mod share;
pub(crate) mod snapshots;
mod state;
mod tables;
mod write;
mod zero;

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod race_tests;
#[cfg(test)]
mod resize_crash_tests;
#[cfg(test)]
mod snapshot_crash_tests;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use vmwright_disk::{Disk, Extent, check_range};

use crate::cache::Cache;
use crate::driver::{Compressor, Driver, Links, Packer, ParentLink, Place, Placing};
use crate::error::Reason;
use crate::info::{CheckReport, ImageInfo, Repair};
use crate::{BackingFile, Layout, Result};
use compress::Unpacked;
use crypt::Crypt;
use data::DataFile;
use layout::Header;
use state::State;

/// Whether these first bytes of a file are those of a qcow2 image.
pub(crate) fn is_qcow2(first: &[u8]) -> bool {
    first.starts_with(&layout::MAGIC.to_be_bytes()) && matches!(first.get(4..8), Some([0, 0, 0, 2 | 3]))
}

/// The other files that an image names.
pub(crate) fn links(file: &dyn Disk) -> Result<Links> {
    let header = open::read_header(file)?;
    let parent = header.backing.map(|backing| ParentLink {
        names: vec![backing.name],
        format: backing.format,
        expects: None,
    });
    let parts = header.data_file.filter(|_| header.incompatible & layout::INCOMPATIBLE_DATA_FILE != 0);
    Ok(Links { parts: parts.into_iter().collect(), parent })
}

/// An open image.
pub(crate) struct Qcow2 {
    file: Arc<dyn Disk>,
    /// The header as it was when the image was opened, for what never changes; the rest is in [`State`].
    pub(crate) header: Header,
    /// The length of the disk in bytes.
    size: AtomicU64,
    backing: Backing,
    data: DataFile,
    crypt: Crypt,
    /// Whether the external data file has changes that are not durable yet.
    data_changed: AtomicBool,
    /// Held while the size of the disk changes.
    resizing: Mutex<()>,
    /// Read-locked while clusters are allocated that no table names yet, which a repair would take for leaked. Taken
    /// before the state.
    unlinked: RwLock<()>,
    /// Whether damage was met while writing, so that nothing more is written.
    damaged: AtomicBool,
    read_only: Option<ReadOnly>,
    cache: Cache,
    unpacked: Unpacked,
    /// Whether any bitmap notes changes.
    tracks: AtomicBool,
    /// Read-locked from noting a change in bitmaps until it is made, write-locked while bitmaps are changed. Taken
    /// before the state.
    tracking: RwLock<()>,
    /// Read-locked while bytes are read or written where they are, write-locked while the mapping changes.
    state: RwLock<State>,
}

/// What shows where the image holds nothing.
enum Backing {
    None,
    Open(Arc<dyn Disk>),
    NotOpened { name: String },
}

/// Why an image cannot be written.
#[derive(Clone, Copy)]
enum ReadOnly {
    Opened,
    Corrupt,
}

impl Qcow2 {
    /// The length of the disk in bytes.
    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn read_state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_state(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the caller or the file allows no change.
    fn opened_read_only(&self) -> bool {
        matches!(self.read_only, Some(ReadOnly::Opened))
    }

    fn check_writable(&self) -> Result<()> {
        match self.read_only {
            None if self.damaged.load(Ordering::Acquire) => Err(Reason::MarkedCorrupt.into()),
            None => Ok(()),
            Some(ReadOnly::Opened) => Err(Reason::ReadOnly { what: "the image" }.into()),
            Some(ReadOnly::Corrupt) => Err(Reason::MarkedCorrupt.into()),
        }
    }
}

impl Driver for Qcow2 {
    fn info(&self) -> Result<ImageInfo> {
        // As it stands in the file: writing changes it.
        info::info(&*self.file, &open::read_header(&*self.file)?)
    }

    fn check(&self, repair: Repair) -> Result<CheckReport> {
        self.check_tables(repair)
    }

    fn cluster_size(&self) -> Option<u64> {
        Some(self.header.cluster_size())
    }

    fn layout(&self) -> Layout {
        Layout::Qcow2(options::Qcow2Options::of(&self.header))
    }

    fn backing_file(&self) -> Option<BackingFile> {
        self.read_state().header.backing.clone().map(BackingFile::from)
    }

    fn place(&self, offset: u64, len: u64, places: &mut Vec<Place>) -> Result<Placing> {
        // The bytes are written without this driver.
        let _tracked = self.track(offset, len)?;
        self.place_clusters(offset, len, &mut |place| places.push(place))?;
        Ok(if self.has_data_file() || self.is_encrypted() { Placing::Through } else { Placing::Plain })
    }

    fn set_backing_file(&self, backing: Option<&BackingFile>) -> Result<()> {
        self.guarded(self.rename_backing(backing))
    }

    fn make_empty(&self) -> Result<()> {
        let _tracked = self.track(0, self.size())?;
        self.guarded(self.drop_all())
    }

    fn packer(&self) -> Option<&dyn Packer> {
        // Compressed clusters are neither encrypted nor anywhere but in the image file.
        if self.is_encrypted() || self.has_data_file() { None } else { Some(self) }
    }

    fn qcow2(&self) -> Option<&Qcow2> {
        Some(self)
    }
}

impl Packer for Qcow2 {
    fn unit(&self) -> usize {
        self.header.cluster_size() as usize
    }

    fn compressor(&self, level: Option<i32>) -> Result<Box<dyn Compressor>> {
        compress::compressor(self.header.compression, self.unit(), level)
    }

    fn store(&self, offset: u64, data: &[u8], packed: Option<&[u8]>) -> Result<()> {
        let _tracked = self.track(offset, data.len() as u64)?;
        match packed {
            Some(packed) => self.guarded(self.store_packed(packed, offset)),
            None => self.guarded(self.write(data, offset)),
        }
    }
}

impl Disk for Qcow2 {
    fn len(&self) -> u64 {
        self.size()
    }

    fn is_read_only(&self) -> bool {
        self.check_writable().is_err()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> vmwright_disk::Result<()> {
        check_range(offset, buf.len() as u64, self.len())?;
        Ok(self.read(&self.read_state(), buf, offset)?)
    }

    fn extent_at(&self, offset: u64) -> vmwright_disk::Result<Extent> {
        check_range(offset, 1, self.len())?;
        Ok(self.extent(&self.read_state(), offset)?)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> vmwright_disk::Result<()> {
        check_range(offset, data.len() as u64, self.len())?;
        if data.is_empty() {
            // The first change marks the image as changed, and this is none.
            return Ok(self.check_writable()?);
        }
        let _tracked = self.track(offset, data.len() as u64)?;
        Ok(self.guarded(self.write(data, offset))?)
    }

    fn zero_at(&self, offset: u64, len: u64) -> vmwright_disk::Result<()> {
        check_range(offset, len, self.len())?;
        if len == 0 {
            return Ok(self.check_writable()?);
        }
        let _tracked = self.track(offset, len)?;
        Ok(self.guarded(self.zero(offset, len))?)
    }

    fn discard(&self, offset: u64, len: u64) -> vmwright_disk::Result<()> {
        check_range(offset, len, self.len())?;
        Ok(self.guarded(self.give_back(offset, len))?)
    }

    fn set_len(&self, len: u64) -> vmwright_disk::Result<()> {
        Ok(self.guarded(self.resize(len))?)
    }

    fn flush(&self) -> vmwright_disk::Result<()> {
        Ok(self.sync()?)
    }
}
