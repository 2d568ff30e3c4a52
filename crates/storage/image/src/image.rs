use std::sync::Arc;

use vmwright_disk::{Disk, Extent};

use crate::info::{CheckReport, ImageInfo};
use crate::qcow2::layout::BackingName;
use crate::qcow2::{self, Qcow2};
use crate::raw::Raw;
use crate::{Error, Format, FormatChoice, Result};

/// How an image is opened.
#[derive(Clone)]
pub struct OpenOptions {
    /// Whether every attempt to change the image is refused.
    pub read_only: bool,
    /// How many bytes of metadata are kept in memory; 8 MiB by default.
    pub cache_bytes: usize,
    /// What shows where the image holds nothing, for an image that names a backing file.
    ///
    /// Without it, reading such places is refused; everything else works.
    pub backing: Option<Arc<dyn Disk>>,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { read_only: false, cache_bytes: 8 << 20, backing: None }
    }
}

impl OpenOptions {
    /// The default, but for reading only.
    pub fn read_only() -> Self {
        Self { read_only: true, ..Self::default() }
    }
}

impl std::fmt::Debug for OpenOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenOptions")
            .field("read_only", &self.read_only)
            .field("cache_bytes", &self.cache_bytes)
            .field("backing", &self.backing.is_some())
            .finish()
    }
}

/// A file that an image names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackingFile {
    /// The name as it stands in the image.
    pub name: String,
    /// The name of its format as it stands in the image.
    pub format: Option<String>,
}

impl From<BackingName> for BackingFile {
    fn from(BackingName { name, format }: BackingName) -> Self {
        Self { name, format }
    }
}

/// An open image: the disk that a guest sees.
///
/// Changes are durable after [`Disk::flush`], and some are kept in memory until then: dropping an image
/// writes nothing.
pub struct Image {
    driver: Driver,
    file: Arc<dyn Disk>,
}

enum Driver {
    Raw(Raw),
    Qcow2(Box<Qcow2>),
}

impl Image {
    /// Opens an image that is kept in `file`, which may be a host file or any other disk.
    pub fn open(file: Arc<dyn Disk>, choice: FormatChoice, options: OpenOptions) -> Result<Self> {
        let driver = match choice.resolve(&*file)? {
            Format::Raw => Driver::Raw(Raw::open(file.clone(), &options)),
            Format::Qcow2 => Driver::Qcow2(Box::new(Qcow2::open(file.clone(), options)?)),
        };
        Ok(Self { driver, file })
    }

    /// The format.
    pub fn format(&self) -> Format {
        match &self.driver {
            Driver::Raw(_) => Format::Raw,
            Driver::Qcow2(_) => Format::Qcow2,
        }
    }

    /// The backing file as the image names it.
    pub fn backing_file(&self) -> Option<BackingFile> {
        match &self.driver {
            Driver::Raw(_) => None,
            Driver::Qcow2(image) => image.header.backing.clone().map(BackingFile::from),
        }
    }

    /// Describes the image.
    pub fn info(&self) -> Result<ImageInfo> {
        match &self.driver {
            Driver::Raw(_) => raw_info(&*self.file),
            // As it stands in the file: writing changes it.
            Driver::Qcow2(_) => qcow2::info::info(&*self.file, &qcow2::open::read_header(&*self.file)?),
        }
    }

    /// Checks the image's own tables; an error of kind corrupt where they cannot even be followed.
    ///
    /// Looks at what is in the file: changes that were not flushed are not seen.
    pub fn check(&self) -> Result<CheckReport> {
        match &self.driver {
            Driver::Raw(_) => Ok(CheckReport::default()),
            Driver::Qcow2(image) => image.check(),
        }
    }

    /// The unit of allocation in bytes, where the format has one.
    pub fn cluster_size(&self) -> Option<u64> {
        match &self.driver {
            Driver::Raw(_) => None,
            Driver::Qcow2(image) => Some(image.header.cluster_size()),
        }
    }

    /// Writes whole clusters in compressed form where that saves space; the last may end with the disk.
    pub(crate) fn write_compressed(&self, data: &[u8], offset: u64) -> Result<()> {
        match &self.driver {
            Driver::Raw(_) => Err(Error::unsupported("compression in a raw image")),
            Driver::Qcow2(image) => {
                let cluster_size = image.header.cluster_size();
                for (index, cluster) in data.chunks(cluster_size as usize).enumerate() {
                    image.write_compressed(cluster, offset + index as u64 * cluster_size)?;
                }
                Ok(())
            }
        }
    }

    fn disk(&self) -> &dyn Disk {
        match &self.driver {
            Driver::Raw(raw) => raw,
            Driver::Qcow2(image) => &**image,
        }
    }
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Image").field("format", &self.format()).field("len", &self.len()).finish()
    }
}

/// Describes an image without opening its content, so that encrypted images and those with features that
/// cannot be read are described too.
pub fn describe(file: &dyn Disk, choice: FormatChoice) -> Result<ImageInfo> {
    match choice.resolve(file)? {
        Format::Raw => raw_info(file),
        Format::Qcow2 => qcow2::info::info(file, &qcow2::open::read_header(file)?),
    }
}

fn raw_info(file: &dyn Disk) -> Result<ImageInfo> {
    Ok(ImageInfo::new(Format::Raw, file.len(), allocated(file)?))
}

/// How many bytes of a file are not holes.
pub(crate) fn allocated(file: &dyn Disk) -> Result<u64> {
    let (mut at, mut sum) = (0, 0);
    while at < file.len() {
        let extent = file.extent_at(at)?;
        sum += if extent.is_zero() { 0 } else { extent.len };
        at = extent.end();
    }
    Ok(sum)
}

impl Disk for Image {
    fn len(&self) -> u64 {
        self.disk().len()
    }

    fn is_read_only(&self) -> bool {
        self.disk().is_read_only()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> vmwright_disk::Result<()> {
        self.disk().read_at(buf, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> vmwright_disk::Result<()> {
        self.disk().write_at(data, offset)
    }

    fn zero_at(&self, offset: u64, len: u64) -> vmwright_disk::Result<()> {
        self.disk().zero_at(offset, len)
    }

    fn discard(&self, offset: u64, len: u64) -> vmwright_disk::Result<()> {
        self.disk().discard(offset, len)
    }

    fn set_len(&self, len: u64) -> vmwright_disk::Result<()> {
        self.disk().set_len(len)
    }

    fn flush(&self) -> vmwright_disk::Result<()> {
        self.disk().flush()
    }

    fn extent_at(&self, offset: u64) -> vmwright_disk::Result<Extent> {
        self.disk().extent_at(offset)
    }
}
