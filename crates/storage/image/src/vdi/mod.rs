//! The VDI format.

use std::sync::Arc;

use vmwright_disk::Disk;

use crate::create::{CreateOptions, no_option};
use crate::driver::Driver;
use crate::{Error, Format, ImageInfo, OpenOptions, Result};

/// How a new VDI image is laid out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VdiOptions {}

impl VdiOptions {
    pub(crate) const KEYS: &'static [(&'static str, &'static str)] = &[];

    pub(crate) fn set(&mut self, key: &str, _value: &str) -> Result<()> {
        Err(no_option(Format::Vdi, key))
    }
}

/// Whether these first bytes of a file are those of an image.
pub(crate) fn is_vdi(head: &[u8]) -> bool {
    head.get(64..68) == Some(&0xbeda_107f_u32.to_le_bytes())
}

/// Opens an image.
pub(crate) fn open(_file: Arc<dyn Disk>, _options: OpenOptions) -> Result<Box<dyn Driver>> {
    Err(Error::unsupported("the VDI format"))
}

/// Describes an image without opening its content.
pub(crate) fn describe(_file: &dyn Disk) -> Result<ImageInfo> {
    Err(Error::unsupported("the VDI format"))
}

/// Makes an empty image.
pub(crate) fn create(_file: &Arc<dyn Disk>, _options: &CreateOptions, _layout: &VdiOptions) -> Result<()> {
    Err(Error::unsupported("the VDI format"))
}
