//! The VHD format.

use std::sync::Arc;

use vmwright_disk::Disk;

use crate::create::{CreateOptions, no_option};
use crate::driver::{Driver, Links};
use crate::{Error, Format, ImageInfo, OpenOptions, Result};

/// How a new VHD image is laid out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VhdOptions {}

impl VhdOptions {
    pub(crate) const KEYS: &'static [(&'static str, &'static str)] = &[];

    pub(crate) fn set(&mut self, key: &str, _value: &str) -> Result<()> {
        Err(no_option(Format::Vhd, key))
    }
}

/// Whether these first bytes of a file are those of an image.
pub(crate) fn is_vhd(head: &[u8]) -> bool {
    head.starts_with(b"conectix")
}

/// Whether a file ends as an image of fixed size does.
pub(crate) fn is_fixed_vhd(_file: &dyn Disk) -> Result<bool> {
    Ok(false)
}

/// Opens an image.
pub(crate) fn open(_file: Arc<dyn Disk>, _options: OpenOptions) -> Result<Box<dyn Driver>> {
    Err(Error::unsupported("the VHD format"))
}

/// Describes an image without opening its content.
pub(crate) fn describe(_file: &dyn Disk) -> Result<ImageInfo> {
    Err(Error::unsupported("the VHD format"))
}

/// The other files that an image names.
pub(crate) fn links(_file: &dyn Disk) -> Result<Links> {
    Err(Error::unsupported("the VHD format"))
}

/// Makes an empty image.
pub(crate) fn create(_file: &Arc<dyn Disk>, _options: &CreateOptions, _layout: &VhdOptions) -> Result<()> {
    Err(Error::unsupported("the VHD format"))
}
