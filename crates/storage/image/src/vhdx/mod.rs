//! The VHDX format.

use std::sync::Arc;

use vmwright_disk::Disk;

use crate::create::{CreateOptions, no_option};
use crate::driver::{Driver, Links};
use crate::{Error, Format, ImageInfo, OpenOptions, Result};

/// How a new VHDX image is laid out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VhdxOptions {}

impl VhdxOptions {
    pub(crate) const KEYS: &'static [(&'static str, &'static str)] = &[];

    pub(crate) fn set(&mut self, key: &str, _value: &str) -> Result<()> {
        Err(no_option(Format::Vhdx, key))
    }
}

/// Whether these first bytes of a file are those of an image.
pub(crate) fn is_vhdx(head: &[u8]) -> bool {
    head.starts_with(b"vhdxfile")
}

/// Opens an image.
pub(crate) fn open(_file: Arc<dyn Disk>, _options: OpenOptions) -> Result<Box<dyn Driver>> {
    Err(Error::unsupported("the VHDX format"))
}

/// Describes an image without opening its content.
pub(crate) fn describe(_file: &dyn Disk) -> Result<ImageInfo> {
    Err(Error::unsupported("the VHDX format"))
}

/// The other files that an image names.
pub(crate) fn links(_file: &dyn Disk) -> Result<Links> {
    Err(Error::unsupported("the VHDX format"))
}

/// Makes an empty image.
pub(crate) fn create(_file: &Arc<dyn Disk>, _options: &CreateOptions, _layout: &VhdxOptions) -> Result<()> {
    Err(Error::unsupported("the VHDX format"))
}
