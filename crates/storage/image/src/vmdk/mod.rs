//! The VMDK format of VMware: a descriptor, and extents that are flat, sparse or compressed.
//!
//! ```text
//! descriptor ─ extent ─ offset in the file               (flat)
//!            │        ├ grain directory ─ grain table ─ grain  (sparse)
//!            │        └ zeros
//!            └ parent, by name and CID: shows where the extents hold nothing
//! ```

mod check;
mod create;
mod descriptor;
mod flush;
mod info;
mod layout;
mod open;
mod packed;
mod place;
mod read;
mod resize;
mod sparse;
mod stream;
mod write;
mod zero;

#[cfg(test)]
mod crash_tests;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use vmwright_disk::{Disk, check_range};

use crate::driver::{Compressor, ContentId, Driver, Links, Packer, ParentLink, Place, Placing};
use crate::error::Reason;
use crate::info::{CheckReport, Repair};
use crate::{BackingFile, Error, ImageInfo, OpenOptions, Result};
use descriptor::{Access, Descriptor};
use sparse::Sparse;

pub(crate) use create::create;
pub use create::{AdapterType, Subformat, VmdkOptions};

/// Whether these first bytes of a file are those of an image.
pub(crate) fn is_vmdk(head: &[u8]) -> bool {
    head.starts_with(layout::SPARSE_MAGIC)
        || head.starts_with(layout::COWD_MAGIC)
        || descriptor::is_descriptor(head)
}

/// Opens an image.
pub(crate) fn open(file: Arc<dyn Disk>, options: OpenOptions) -> Result<Box<dyn Driver>> {
    Ok(Box::new(open::open(file, options)?))
}

/// Describes an image without opening its content.
pub(crate) fn describe(file: &dyn Disk) -> Result<ImageInfo> {
    info::describe(file, &open::read_main(file)?)
}

/// The other files that an image names.
pub(crate) fn links(file: &dyn Disk) -> Result<Links> {
    let main = open::read_main(file)?;
    let Some(descriptor) = main.descriptor() else { return Ok(Links::default()) };
    let parts = match &main {
        open::Main::Text { .. } => {
            let lines = descriptor.extents.iter().filter(|line| line.has_file());
            lines.map(|line| line.host_name()).collect()
        }
        // A line about the file itself, which may have another name by now.
        _ => Vec::new(),
    };
    let parent = descriptor.has_parent().then(|| ParentLink {
        names: descriptor.parent_names(),
        format: Some("vmdk".to_owned()),
        expects: Some(ContentId::Vmdk(descriptor.parent_cid().unwrap_or(descriptor::NO_PARENT))),
    });
    Ok(Links { parts, parent })
}

/// An open image.
pub(crate) struct Vmdk {
    file: Arc<dyn Disk>,
    /// Where the descriptor is in the file, and how much room there is for it if that is limited.
    place: Option<(u64, Option<u64>)>,
    descriptor: RwLock<Descriptor>,
    /// In the order of the disk, without gaps.
    extents: Vec<Extent>,
    len: AtomicU64,
    backing: Backing,
    read_only: Option<ReadOnly>,
    /// Whether the CID in the file was changed since the image was opened.
    cid: Mutex<bool>,
    /// The same, to be asked without waiting.
    changed: AtomicBool,
    /// Set when a flush failed: what the host kept is unknown from then on.
    broken: AtomicBool,
}

/// A range of the disk that is kept in one way.
struct Extent {
    start: u64,
    /// As it was opened; the last one of an image may change its length.
    len: u64,
    access: Access,
    name: Option<String>,
    store: Store,
}

enum Store {
    Flat { file: Arc<dyn Disk>, offset: u64 },
    Sparse(Box<Sparse>),
    Zero,
    NoAccess,
    NotOpened,
}

impl Extent {
    fn sparse(&self) -> Option<&Sparse> {
        match &self.store {
            Store::Sparse(sparse) => Some(sparse),
            _ => None,
        }
    }

    fn file(&self) -> Option<&Arc<dyn Disk>> {
        match &self.store {
            Store::Flat { file, .. } => Some(file),
            Store::Sparse(sparse) => Some(&sparse.file),
            _ => None,
        }
    }

    fn is_file_read_only(&self) -> bool {
        self.access == Access::ReadWrite && self.file().is_some_and(|file| file.is_read_only())
    }
}

/// What shows where the image holds nothing.
enum Backing {
    None,
    Open(Arc<dyn Disk>),
    NotOpened(String),
}

/// Why an image cannot be written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ReadOnly {
    Opened,
    Stream,
    SeSparse,
    NoDescriptor,
    TracksChanges,
}

impl Vmdk {
    fn descriptor(&self) -> RwLockReadGuard<'_, Descriptor> {
        self.descriptor.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_writable(&self) -> Result<()> {
        match self.read_only {
            None => Ok(()),
            Some(ReadOnly::Opened) => Err(Reason::ReadOnly { what: "the image" }.into()),
            Some(ReadOnly::Stream) => Err(stream::not_in_place()),
            Some(ReadOnly::SeSparse) => Err(Error::unsupported("changing a space-efficient VMDK")),
            Some(ReadOnly::NoDescriptor) => {
                Err(Error::unsupported("changing a VMDK extent without the descriptor it belongs to"))
            }
            Some(ReadOnly::TracksChanges) => Err(Error::unsupported(
                "changing a VMDK with a file of changed blocks, which would be wrong then,",
            )),
        }
    }
}

impl Driver for Vmdk {
    fn info(&self) -> Result<ImageInfo> {
        self.describe()
    }

    fn check(&self, repair: Repair) -> Result<CheckReport> {
        self.check_tables(repair)
    }

    fn cluster_size(&self) -> Option<u64> {
        info::common_grain(self.extents.iter().map(|extent| extent.sparse().map(|sparse| sparse.grain)))
    }

    fn backing_file(&self) -> Option<BackingFile> {
        let descriptor = self.descriptor();
        let has_parent = descriptor.has_parent();
        has_parent.then(|| BackingFile {
            name: descriptor.hint.clone().unwrap_or_default(),
            format: Some("vmdk".to_owned()),
        })
    }

    fn layout(&self) -> crate::Layout {
        crate::Layout::Vmdk(create::like(self))
    }

    fn announce_change(&self) -> Result<Option<ContentId>> {
        self.check_writable()?;
        self.prepare()?;
        self.content_id()
    }

    fn set_parent_id(&self, id: ContentId) -> Result<()> {
        match id {
            ContentId::Vmdk(cid) => self.write_parent_cid(cid),
            _ => Ok(()),
        }
    }

    fn make_empty(&self) -> Result<()> {
        self.check_writable()?;
        self.prepare()?;
        self.drop_all()
    }

    fn place(&self, offset: u64, len: u64, places: &mut Vec<Place>) -> Result<Placing> {
        self.place_grains(offset, len, places)
    }

    fn content_id(&self) -> Result<Option<ContentId>> {
        Ok(self.descriptor().cid().map(ContentId::Vmdk))
    }

    fn packer(&self) -> Option<&dyn Packer> {
        self.stream().map(|_| self as &dyn Packer)
    }

    fn packs_only(&self) -> bool {
        self.stream().is_some()
    }
}

impl Vmdk {
    /// The extent that can be written as a stream.
    fn stream(&self) -> Option<&Sparse> {
        let sparse = self.extents.first()?.sparse()?;
        (self.read_only == Some(ReadOnly::Stream) && sparse.read_state().stream.is_some()).then_some(sparse)
    }
}

impl Packer for Vmdk {
    fn unit(&self) -> usize {
        self.extents.first().and_then(Extent::sparse).map_or(65536, |sparse| sparse.grain as usize)
    }

    fn compressor(&self, level: Option<i32>) -> Result<Box<dyn Compressor>> {
        packed::compressor(self.unit(), level)
    }

    fn store(&self, offset: u64, data: &[u8], packed: Option<&[u8]>) -> Result<()> {
        match self.stream() {
            Some(sparse) => sparse.store_packed(offset, data, packed),
            None => Err(stream::not_in_place()),
        }
    }
}

impl Disk for Vmdk {
    fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    fn is_read_only(&self) -> bool {
        self.read_only.is_some()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> vmwright_disk::Result<()> {
        check_range(offset, buf.len() as u64, self.len())?;
        Ok(self.read(buf, offset)?)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> vmwright_disk::Result<()> {
        check_range(offset, data.len() as u64, self.len())?;
        self.check_writable()?;
        // The first change gives the image a new CID, and a change of nothing is none.
        if data.is_empty() {
            return Ok(());
        }
        Ok(self.write(data, offset)?)
    }

    fn zero_at(&self, offset: u64, len: u64) -> vmwright_disk::Result<()> {
        check_range(offset, len, self.len())?;
        self.check_writable()?;
        if len == 0 {
            return Ok(());
        }
        Ok(self.zero(offset, len, zero::Mode::Zero)?)
    }

    fn discard(&self, offset: u64, len: u64) -> vmwright_disk::Result<()> {
        check_range(offset, len, self.len())?;
        self.check_writable()?;
        if len == 0 {
            return Ok(());
        }
        Ok(self.zero(offset, len, zero::Mode::Discard)?)
    }

    fn set_len(&self, len: u64) -> vmwright_disk::Result<()> {
        self.check_writable()?;
        Ok(self.resize(len)?)
    }

    fn flush(&self) -> vmwright_disk::Result<()> {
        Ok(self.sync()?)
    }

    fn extent_at(&self, offset: u64) -> vmwright_disk::Result<vmwright_disk::Extent> {
        check_range(offset, 1, self.len())?;
        Ok(self.extent(offset)?)
    }
}
