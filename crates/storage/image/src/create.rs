use std::path::Path;
use std::sync::Arc;

use vmwright_disk::{Disk, FreshFile};

use crate::qcow2::Qcow2;
use crate::qcow2::layout::BackingName;
use crate::{BackingFile, Error, Format, OpenOptions, Preallocation, Qcow2Options, Result, qcow2, raw};

/// What a new image is.
#[derive(Debug, Clone)]
pub struct CreateOptions {
    /// The format.
    pub format: Format,
    /// The size of the disk in bytes, rounded up to whole sectors in qcow2.
    pub size: u64,
    /// The file that shows where the image holds nothing, with its format; qcow2 only.
    pub backing: Option<BackingFile>,
    /// How a qcow2 image is laid out.
    pub qcow2: Qcow2Options,
}

impl CreateOptions {
    /// An image of `size` bytes with the format's defaults.
    pub fn new(format: Format, size: u64) -> Self {
        Self { format, size, backing: None, qcow2: Qcow2Options::default() }
    }
}

/// Makes an empty image on `file`, whose former content is lost. The caller flushes.
pub fn create_on(file: &Arc<dyn Disk>, options: &CreateOptions) -> Result<()> {
    match options.format {
        Format::Raw if options.backing.is_some() => {
            Err(Error::invalid("a new raw image", "the raw format has no backing files"))
        }
        Format::Raw => raw::create(&**file, options.size),
        Format::Qcow2 => {
            let backing = options.backing.clone();
            let backing = backing.map(|BackingFile { name, format }| BackingName { name, format });
            qcow2::create::create(&**file, options.size, &options.qcow2, backing)?;
            match options.qcow2.preallocation {
                Preallocation::Off => Ok(()),
                Preallocation::Metadata => Qcow2::open(file.clone(), OpenOptions::default())?.preallocate(),
            }
        }
    }
}

/// Makes an image file that appears under its name only when it is complete and durable.
///
/// An existing file is replaced only where `force` is given.
pub fn create(path: &Path, options: &CreateOptions, force: bool) -> Result<()> {
    let fresh = FreshFile::create(path, force)?;
    let file: Arc<dyn Disk> = fresh.disk();
    create_on(&file, options)?;
    Ok(fresh.commit()?)
}
