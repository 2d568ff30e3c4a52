//! The VHDX format of Hyper-V.
//!
//! ```text
//! offset in the disk ─ block allocation table (cached in sectors) ─ payload block in the file
//!                                                                 └ or zeros, or what the parent has;
//!                                                                   per sector by a sector bitmap
//! ```

mod alloc;
mod check;
mod create;
mod header;
mod layout;
mod locator;
mod log;
mod map;
mod metadata;
mod pages;
mod read;
mod region;
mod resize;
mod state;
mod sync;
mod view;
mod write;
mod zero;

#[cfg(test)]
mod crash_tests;

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use vmwright_disk::{Disk, Extent, check_range};

use crate::driver::{ContentId, Driver, Links, ParentLink, Place, Placing};
use crate::error::Reason;
use crate::info::{CheckReport, Repair};
use crate::{BackingFile, Format, ImageInfo, Layout, OpenOptions, Result, allocated};
use header::Header;
use log::Log;
use metadata::Params;
use pages::Pages;
use region::Regions;
use state::{State, Writer};
use view::{Held, View};

pub(crate) use create::create;
pub use create::{VhdxOptions, VhdxSubformat};

/// Whether these first bytes of a file are those of an image.
pub(crate) fn is_vhdx(head: &[u8]) -> bool {
    head.starts_with(layout::FILE_SIGNATURE)
}

/// Opens an image.
pub(crate) fn open(file: Arc<dyn Disk>, options: OpenOptions) -> Result<Box<dyn Driver>> {
    Ok(Box::new(Vhdx::open(file, options)?))
}

/// Describes an image without opening its content.
pub(crate) fn describe(file: &dyn Disk) -> Result<ImageInfo> {
    let (view, state) = read_all(Held::Lent(file), true)?;
    let mut info = ImageInfo::new(Format::Vhdx, state.params.size, allocated(file)?);
    info.cluster_size = Some(state.params.block_size);
    info.dirty_flag = view.pending().is_some();
    if let Some(backing) = backing_of(&state.params) {
        info.backing_filename = Some(backing.name);
        info.backing_filename_format = backing.format;
    }
    Ok(info)
}

/// The other files that an image names.
pub(crate) fn links(file: &dyn Disk) -> Result<Links> {
    let (_, state) = read_all(Held::Lent(file), true)?;
    let parent = state.params.parent.map(|locator| ParentLink {
        names: locator.names(),
        format: Some("vhdx".to_owned()),
        expects: Some(match locator.linkage2 {
            None => ContentId::Vhdx(locator.linkage),
            Some(other) => ContentId::VhdxEither(locator.linkage, other),
        }),
    });
    Ok(Links { parts: Vec::new(), parent })
}

/// The parent as the image names it.
fn backing_of(params: &Params) -> Option<BackingFile> {
    let locator = params.parent.as_ref()?;
    let name = locator.names().into_iter().next().unwrap_or_default();
    Some(BackingFile { name, format: Some("vhdx".to_owned()) })
}

/// Reads everything but the block allocation table.
fn read_all(file: Held<'_>, lenient: bool) -> Result<(View<'_>, State)> {
    let header = Header::read(file.get())?;
    let log = log::read(file.get(), &header, lenient)?;
    let pending = if let Log::Pending(pending) = log { Some(pending) } else { None };
    let view = View::new(file, pending);
    let regions = Regions::read(&view, &header)?;
    let params = Params::read(&view, regions.metadata)?;
    let needed = params.entries_for(params.size) * 8;
    if needed > regions.bat.len {
        let what = "the length of the block allocation table";
        let at = regions.bat.offset;
        return Err(crate::Error::corrupt(what, at, "an entry for each block", regions.bat.len));
    }
    Ok((view, State { header, regions, params, writer: Writer::default() }))
}

/// An open image.
pub(crate) struct Vhdx {
    file: Arc<dyn Disk>,
    view: View<'static>,
    backing: Backing,
    named: Option<BackingFile>,
    block_size: u64,
    read_only: bool,
    lenient: bool,
    pages: Pages,
    /// Read-locked while bytes are read or written where they are, write-locked while the mapping changes.
    state: RwLock<State>,
}

/// What shows where the image holds nothing.
enum Backing {
    None,
    Open(Arc<dyn Disk>),
    NotOpened { name: String },
}

impl Vhdx {
    fn open(file: Arc<dyn Disk>, options: OpenOptions) -> Result<Self> {
        let (view, state) = read_all(Held::Shared(file.clone()), options.lenient)?;
        let named = backing_of(&state.params);
        let backing = match (&named, options.backing) {
            (None, _) => Backing::None,
            (Some(_), Some(disk)) => Backing::Open(disk),
            (Some(backing), None) => Backing::NotOpened { name: backing.name.clone() },
        };
        Ok(Self {
            backing,
            named,
            block_size: state.params.block_size,
            read_only: options.read_only || view.is_read_only(),
            lenient: options.lenient,
            file,
            pages: Pages::new(options.cache_bytes),
            state: RwLock::new(state),
            view,
        })
    }

    fn read_state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_state(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_writable(&self) -> Result<()> {
        match self.read_only {
            true => Err(Reason::ReadOnly { what: "the image" }.into()),
            false => Ok(()),
        }
    }
}

impl Driver for Vhdx {
    fn info(&self) -> Result<ImageInfo> {
        // As it stands in the file: writing changes it.
        describe(self.view.file())
    }

    fn check(&self, repair: Repair) -> Result<CheckReport> {
        self.check_tables(repair)
    }

    fn cluster_size(&self) -> Option<u64> {
        Some(self.block_size)
    }

    fn backing_file(&self) -> Option<BackingFile> {
        self.named.clone()
    }

    fn layout(&self) -> Layout {
        Layout::Vhdx(create::options_of(&self.read_state()))
    }

    fn announce_change(&self) -> Result<Option<ContentId>> {
        self.prepare()?;
        self.content_id()
    }

    fn set_parent_id(&self, id: ContentId) -> Result<()> {
        match id {
            ContentId::Vhdx(guid) => {
                self.relink(guid)?;
                self.sync()
            }
            _ => Ok(()),
        }
    }

    fn make_empty(&self) -> Result<()> {
        self.drop_all()
    }

    fn place(&self, offset: u64, len: u64, places: &mut Vec<Place>) -> Result<Placing> {
        self.place_blocks(offset, len, places)
    }

    fn content_id(&self) -> Result<Option<ContentId>> {
        Ok(Some(ContentId::Vhdx(self.read_state().header.data_write_guid())))
    }
}

impl Disk for Vhdx {
    fn len(&self) -> u64 {
        self.read_state().params.size
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> vmwright_disk::Result<()> {
        let state = self.read_state();
        check_range(offset, buf.len() as u64, state.params.size)?;
        Ok(self.read(&state, buf, offset)?)
    }

    fn extent_at(&self, offset: u64) -> vmwright_disk::Result<Extent> {
        let state = self.read_state();
        check_range(offset, 1, state.params.size)?;
        Ok(self.extent(&state, offset)?)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> vmwright_disk::Result<()> {
        check_range(offset, data.len() as u64, self.len())?;
        if data.is_empty() {
            // The first change marks the image as changed, and this is none.
            return Ok(self.check_writable()?);
        }
        Ok(self.write(data, offset)?)
    }

    fn zero_at(&self, offset: u64, len: u64) -> vmwright_disk::Result<()> {
        check_range(offset, len, self.len())?;
        Ok(self.clear(offset, len, zero::Clear::Zero)?)
    }

    fn discard(&self, offset: u64, len: u64) -> vmwright_disk::Result<()> {
        check_range(offset, len, self.len())?;
        Ok(self.clear(offset, len, zero::Clear::Discard)?)
    }

    fn set_len(&self, len: u64) -> vmwright_disk::Result<()> {
        Ok(self.resize(len)?)
    }

    fn flush(&self) -> vmwright_disk::Result<()> {
        Ok(self.sync()?)
    }
}
