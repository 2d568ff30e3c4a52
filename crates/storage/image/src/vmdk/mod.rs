//! The VMDK format.

use std::sync::Arc;

use vmwright_disk::Disk;

use crate::create::{CreateOptions, PartMaker, no_option};
use crate::driver::{Driver, Links};
use crate::{Error, Format, ImageInfo, OpenOptions, Result};

/// How a new VMDK image is laid out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VmdkOptions {}

impl VmdkOptions {
    pub(crate) const KEYS: &'static [(&'static str, &'static str)] = &[];

    pub(crate) fn set(&mut self, key: &str, _value: &str) -> Result<()> {
        Err(no_option(Format::Vmdk, key))
    }
}

/// Whether these first bytes of a file are those of an image.
pub(crate) fn is_vmdk(head: &[u8]) -> bool {
    head.starts_with(b"KDMV") || head.starts_with(b"COWD")
}

/// Opens an image.
pub(crate) fn open(_file: Arc<dyn Disk>, _options: OpenOptions) -> Result<Box<dyn Driver>> {
    Err(Error::unsupported("the VMDK format"))
}

/// Describes an image without opening its content.
pub(crate) fn describe(_file: &dyn Disk) -> Result<ImageInfo> {
    Err(Error::unsupported("the VMDK format"))
}

/// The other files that an image names.
pub(crate) fn links(_file: &dyn Disk) -> Result<Links> {
    Err(Error::unsupported("the VMDK format"))
}

/// Makes an empty image.
pub(crate) fn create(
    _file: &Arc<dyn Disk>,
    _options: &CreateOptions,
    _layout: &VmdkOptions,
    _parts: &dyn PartMaker,
) -> Result<()> {
    Err(Error::unsupported("the VMDK format"))
}
