//! Raw images: the bytes of the disk and nothing else, so the host's holes are its only metadata.

use std::sync::Arc;

use vmwright_disk::{Disk, Extent, ExtentKind, Result};

use crate::create::{CreateOptions, no_option};
use crate::driver::{Driver, Place, Placing};
use crate::error::Reason;
use crate::info::{CheckReport, ImageInfo, Repair};
use crate::{Error, Format, Layout, OpenOptions, allocated};

/// An open image.
pub(crate) struct Raw {
    file: Arc<dyn Disk>,
    read_only: bool,
}

impl Raw {
    pub(crate) fn open(file: Arc<dyn Disk>, options: &OpenOptions) -> Self {
        Self { read_only: options.read_only || file.is_read_only(), file }
    }

    fn writable(&self) -> Result<&dyn Disk> {
        match self.read_only {
            true => Err(Error::from(Reason::ReadOnly { what: "the image" }).into()),
            false => Ok(&*self.file),
        }
    }
}

/// How a new raw image is laid out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RawOptions {}

impl RawOptions {
    pub(crate) const KEYS: &'static [(&'static str, &'static str)] = &[];

    pub(crate) fn set(&mut self, key: &str, _value: &str) -> crate::Result<()> {
        Err(no_option(Format::Raw, key))
    }
}

/// Makes an empty image on `file`, whose former content is lost.
pub(crate) fn create(file: &dyn Disk, options: &CreateOptions, _layout: &RawOptions) -> crate::Result<()> {
    if options.backing.is_some() {
        return Err(Error::invalid("a new raw image", "the raw format has no backing files"));
    }
    file.set_len(0)?;
    Ok(file.set_len(options.size)?)
}

/// Describes an image.
pub(crate) fn info(file: &dyn Disk) -> crate::Result<ImageInfo> {
    Ok(ImageInfo::new(Format::Raw, file.len(), allocated(file)?))
}

impl Driver for Raw {
    fn info(&self) -> crate::Result<ImageInfo> {
        info(&*self.file)
    }

    fn layout(&self) -> Layout {
        Layout::Raw(RawOptions::default())
    }

    fn check(&self, _repair: Repair) -> crate::Result<CheckReport> {
        Err(Error::unsupported("checking a raw image, which has no tables,"))
    }

    fn place(&self, offset: u64, len: u64, places: &mut Vec<Place>) -> crate::Result<Placing> {
        // Every byte has its place from the beginning.
        places.push(Place { offset, host: offset, len });
        Ok(Placing::Parts)
    }
}

impl Disk for Raw {
    fn len(&self) -> u64 {
        self.file.len()
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.file.read_at(buf, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        self.writable()?.write_at(data, offset)
    }

    fn zero_at(&self, offset: u64, len: u64) -> Result<()> {
        self.writable()?.zero_at(offset, len)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.writable()?.discard(offset, len)
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.writable()?.set_len(len)
    }

    fn flush(&self) -> Result<()> {
        self.file.flush()
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        let mut extent = self.file.extent_at(offset)?;
        if extent.kind == ExtentKind::Unallocated {
            // A hole of a raw image holds zeros; nothing lies beneath that could show through.
            extent.kind = ExtentKind::Zero;
        }
        Ok(extent)
    }
}
