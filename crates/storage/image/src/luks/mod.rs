//! The LUKS format.

use std::sync::Arc;

use vmwright_disk::Disk;

use crate::create::{CreateOptions, no_option};
use crate::driver::Driver;
use crate::{Error, Format, ImageInfo, OpenOptions, Result};

/// How a new LUKS image is laid out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LuksOptions {}

impl LuksOptions {
    pub(crate) const KEYS: &'static [(&'static str, &'static str)] = &[];

    pub(crate) fn set(&mut self, key: &str, _value: &str) -> Result<()> {
        Err(no_option(Format::Luks, key))
    }
}

/// Whether these first bytes of a file are those of an image.
pub(crate) fn is_luks(head: &[u8]) -> bool {
    head.starts_with(b"LUKS\xba\xbe")
}

/// Opens an image.
pub(crate) fn open(_file: Arc<dyn Disk>, _options: OpenOptions) -> Result<Box<dyn Driver>> {
    Err(Error::unsupported("the LUKS format"))
}

/// Describes an image without opening its content.
pub(crate) fn describe(_file: &dyn Disk) -> Result<ImageInfo> {
    Err(Error::unsupported("the LUKS format"))
}

/// Makes an empty image.
pub(crate) fn create(_file: &Arc<dyn Disk>, _options: &CreateOptions, _layout: &LuksOptions) -> Result<()> {
    Err(Error::unsupported("the LUKS format"))
}
