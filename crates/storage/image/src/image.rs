use std::sync::Arc;

use vmwright_crypt::Passphrase;
use vmwright_disk::{Disk, Extent};

use crate::driver::Driver;
use crate::info::{CheckReport, ImageInfo, Repair};
use crate::qcow2::layout::BackingName;
use crate::{Bitmaps, Error, Format, FormatChoice, Layout, Result, Snapshots, driver};

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
    /// The further files of an image that is spread over several, in the order in which it names them.
    ///
    /// Without them, reading what they hold is refused.
    pub parts: Vec<Arc<dyn Disk>>,
    /// What opens an encrypted image. Without it, its content is refused; everything else works.
    pub secret: Option<Passphrase>,
    /// Whether damages that other programs overlook are overlooked, such as a wrong checksum of a VHD header.
    pub lenient: bool,
    /// The id or the name of an internal snapshot: the image is then the disk of that snapshot, for reading only.
    pub snapshot: Option<String>,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            cache_bytes: 8 << 20,
            backing: None,
            parts: Vec::new(),
            secret: None,
            lenient: false,
            snapshot: None,
        }
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
            .field("parts", &self.parts.len())
            .field("secret", &self.secret)
            .field("lenient", &self.lenient)
            .field("snapshot", &self.snapshot)
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
    driver: Box<dyn Driver>,
    format: Format,
}

impl Image {
    /// Opens an image that is kept in `file`, which may be a host file or any other disk.
    pub fn open(file: Arc<dyn Disk>, choice: FormatChoice, options: OpenOptions) -> Result<Self> {
        let format = choice.resolve(&*file)?;
        Ok(Self { driver: driver::open(file, format, options)?, format })
    }

    /// The format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The backing file or parent as the image names it.
    pub fn backing_file(&self) -> Option<BackingFile> {
        self.driver.backing_file()
    }

    /// Describes the image.
    pub fn info(&self) -> Result<ImageInfo> {
        self.driver.info()
    }

    /// Checks the image's own tables; an error of kind corrupt where they cannot even be followed, and of kind
    /// unsupported in formats without any.
    ///
    /// Looks at what is in the file: changes that were not flushed are not seen.
    pub fn check(&self) -> Result<CheckReport> {
        self.driver.check(Repair::Nothing)
    }

    /// Checks the image's own tables and repairs what can be repaired; the report says what is left. The caller
    /// flushes, and opens the image anew before using it for anything else.
    pub fn repair(&self, repair: Repair) -> Result<CheckReport> {
        self.driver.check(repair)
    }

    /// The internal snapshots, to list and change them; unsupported in formats without.
    pub fn snapshots(&self) -> Result<Snapshots<'_>> {
        let qcow2 =
            self.driver.qcow2().ok_or_else(|| Error::unsupported("internal snapshots in this format"))?;
        Ok(Snapshots::new(qcow2))
    }

    /// The persistent dirty bitmaps, to list and change them; unsupported in formats without.
    pub fn bitmaps(&self) -> Result<Bitmaps<'_>> {
        let qcow2 = self.driver.qcow2().ok_or_else(|| Error::unsupported("dirty bitmaps in this format"))?;
        Ok(Bitmaps::new(qcow2))
    }

    /// The unit of allocation in bytes, where the format has one.
    pub fn cluster_size(&self) -> Option<u64> {
        self.driver.cluster_size()
    }

    /// The options that make another image like this one, but for its names, times and backing file.
    pub fn layout(&self) -> Layout {
        self.driver.layout()
    }

    pub(crate) fn driver(&self) -> &dyn Driver {
        &*self.driver
    }

    fn disk(&self) -> &dyn Disk {
        &*self.driver
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
    driver::describe(file, choice.resolve(file)?)
}

/// The part of an image's file that holds the header and the key slots of LUKS, as a disk; an error of kind unsupported
/// where the image is not encrypted by LUKS.
pub fn key_area(file: Arc<dyn Disk>, choice: FormatChoice) -> Result<Arc<dyn Disk>> {
    match choice.resolve(&*file)? {
        Format::Luks => Ok(file),
        Format::Qcow2 => crate::qcow2::crypt::key_area(file),
        _ => Err(Error::unsupported("changing keys of an image that LUKS does not encrypt")),
    }
}

/// Checks an image's own tables and repairs what `repair` allows, also where they are so damaged that the image does
/// not open. After a repair the caller flushes.
///
/// Looks at what is in the file; the file must not be open as an image for writing meanwhile.
pub fn check(file: Arc<dyn Disk>, choice: FormatChoice, repair: Repair) -> Result<CheckReport> {
    let read_only = repair == Repair::Nothing;
    match choice.resolve(&*file)? {
        Format::Qcow2 => crate::qcow2::check::check(&file, repair),
        format => {
            let options = OpenOptions { read_only, ..OpenOptions::default() };
            Image::open(file, FormatChoice::Exact(format), options)?.driver.check(repair)
        }
    }
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
