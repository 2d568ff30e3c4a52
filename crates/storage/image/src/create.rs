use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use vmwright_crypt::Passphrase;
use vmwright_disk::{Disk, FreshFile, HostFile, Transaction};

use crate::copy::early::{Unnamed, written_early};
use crate::driver::ContentId;
use crate::luks::LuksOptions;
use crate::qcow2::options::Qcow2Options;
use crate::raw::RawOptions;
use crate::vdi::VdiOptions;
use crate::vhd::VhdOptions;
use crate::vhdx::VhdxOptions;
use crate::vmdk::VmdkOptions;
use crate::{BackingFile, Error, Format, FormatChoice, Image, OpenOptions, Result, driver};

/// What a new image is.
#[derive(Debug, Clone)]
pub struct CreateOptions {
    /// The size of the disk in bytes, rounded up to whole sectors in formats that have sectors.
    pub size: u64,
    /// The file that shows where the image holds nothing, in formats that have such files.
    pub backing: Option<BackingFile>,
    /// What identifies the content of the backing file, in formats whose images know their parents again.
    pub parent: Option<ParentId>,
    /// The format, and how the image is laid out.
    pub layout: Layout,
    /// What opens the image, if it is to be encrypted.
    pub secret: Option<Passphrase>,
}

impl CreateOptions {
    /// An image of `size` bytes with the format's defaults.
    pub fn new(format: Format, size: u64) -> Self {
        Self::laid_out(Layout::new(format), size)
    }

    /// An image of `size` bytes with this layout.
    pub fn laid_out(layout: Layout, size: u64) -> Self {
        Self { size, backing: None, parent: None, layout, secret: None }
    }
}

/// What identifies the content of an image among those of its format; [`ParentId::of`] asks an open image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParentId(pub(crate) ContentId);

impl ParentId {
    /// What identifies the content of this image; `None` in formats whose images cannot be told apart.
    pub fn of(image: &Image) -> Result<Option<Self>> {
        Ok(image.driver().content_id()?.map(Self))
    }
}

/// The format of a new image, with the options of that format.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs, reason = "each is its format")]
pub enum Layout {
    Raw(RawOptions),
    Qcow2(Qcow2Options),
    Vmdk(VmdkOptions),
    Vhd(VhdOptions),
    Vhdx(VhdxOptions),
    Vdi(VdiOptions),
    Luks(LuksOptions),
}

impl Layout {
    /// The defaults of a format.
    pub fn new(format: Format) -> Self {
        match format {
            Format::Raw => Self::Raw(RawOptions::default()),
            Format::Qcow2 => Self::Qcow2(Qcow2Options::default()),
            Format::Vmdk => Self::Vmdk(VmdkOptions::default()),
            Format::Vhd => Self::Vhd(VhdOptions::default()),
            Format::Vhdx => Self::Vhdx(VhdxOptions::default()),
            Format::Vdi => Self::Vdi(VdiOptions::default()),
            Format::Luks => Self::Luks(LuksOptions::default()),
        }
    }

    /// The format.
    pub fn format(&self) -> Format {
        match self {
            Self::Raw(_) => Format::Raw,
            Self::Qcow2(_) => Format::Qcow2,
            Self::Vmdk(_) => Format::Vmdk,
            Self::Vhd(_) => Format::Vhd,
            Self::Vhdx(_) => Format::Vhdx,
            Self::Vdi(_) => Format::Vdi,
            Self::Luks(_) => Format::Luks,
        }
    }

    /// Sets one option by the name and the spelling of its value that `qemu-img -o` has for it.
    ///
    /// An unknown name or a value that does not fit is an error of kind invalid input that says what is allowed.
    pub fn set(&mut self, key: &str, value: &str) -> Result<()> {
        match self {
            Self::Raw(options) => options.set(key, value),
            Self::Qcow2(options) => options.set(key, value),
            Self::Vmdk(options) => options.set(key, value),
            Self::Vhd(options) => options.set(key, value),
            Self::Vhdx(options) => options.set(key, value),
            Self::Vdi(options) => options.set(key, value),
            Self::Luks(options) => options.set(key, value),
        }
    }

    /// Whether an image of this layout is encrypted, and needs a passphrase to be made.
    pub fn is_encrypted(&self) -> bool {
        match self {
            Self::Luks(_) => true,
            Self::Qcow2(options) => options.encrypt.is_some(),
            _ => false,
        }
    }

    /// The names of the options that [`Layout::set`] takes, each with what it may be.
    pub fn options(&self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Raw(_) => RawOptions::KEYS,
            Self::Qcow2(_) => Qcow2Options::KEYS,
            Self::Vmdk(_) => VmdkOptions::KEYS,
            Self::Vhd(_) => VhdOptions::KEYS,
            Self::Vhdx(_) => VhdxOptions::KEYS,
            Self::Vdi(_) => VdiOptions::KEYS,
            Self::Luks(_) => LuksOptions::KEYS,
        }
    }
}

/// Makes the further files of an image that is spread over several.
pub trait PartMaker {
    /// The name of the image file itself, without its folder; parts are named after it.
    fn image_name(&self) -> &str;

    /// Makes an empty file beside the image.
    fn make(&self, name: &str) -> Result<Arc<dyn Disk>>;
}

/// Makes no files: for images that must be one file.
struct NoParts;

impl PartMaker for NoParts {
    fn image_name(&self) -> &str {
        "image"
    }

    fn make(&self, _name: &str) -> Result<Arc<dyn Disk>> {
        Err(Error::invalid("a new image", "this layout has several files, and here is only one"))
    }
}

/// Makes an empty image on `file`, whose former content is lost. The caller flushes.
pub fn create_on(file: &Arc<dyn Disk>, options: &CreateOptions) -> Result<()> {
    driver::create(file, options, &NoParts)
}

/// Makes an image file that appears under its name only when it is complete and durable; its parts, in formats that
/// are spread over several files, before it.
///
/// Existing files are replaced only where `force` is given.
pub fn create(path: &Path, options: &CreateOptions, force: bool) -> Result<()> {
    let fresh = FreshImage::begin(path, options, force)?;
    fresh.commit()
}

/// Makes an image as [`create()`] does, whose content `fill` writes before it appears under its name.
///
/// # Errors
///
/// What `fill` answers, after which nothing is left; kind `Unsupported` for images that are written in one go.
pub fn create_filled<E: From<Error>>(
    path: &Path,
    options: &CreateOptions,
    force: bool,
    fill: impl FnOnce(Arc<Image>) -> Result<(), E>,
) -> Result<(), E> {
    let fresh = FreshImage::begin(path, options, force)?;
    let files = std::iter::once(fresh.file()).chain(fresh.parts());
    let files: Vec<_> = files.map(|file| Arc::new(Unnamed::new(file))).collect();
    let mut disks = files.iter().map(|file| file.clone() as Arc<dyn Disk>);
    let file = disks.next().ok_or_else(|| Error::invalid("a new image", "it has no file"))?;
    let how =
        OpenOptions { parts: disks.collect(), secret: options.secret.clone(), ..OpenOptions::default() };
    let exact = FormatChoice::Exact(options.layout.format());
    let image = Arc::new(Image::open(file, exact, how)?);
    if image.driver().packs_only() {
        return Err(Error::unsupported("filling an image that is written in one go").into());
    }
    written_early(&files, || {
        fill(image.clone())?;
        Ok::<_, E>(image.flush().map_err(Error::from)?)
    })?;
    drop(image);
    Ok(fresh.commit()?)
}

/// An image in the making, with all its files.
pub(crate) struct FreshImage {
    main: FreshFile,
    parts: Vec<FreshFile>,
}

impl FreshImage {
    /// Makes an empty image under provisional names.
    pub(crate) fn begin(path: &Path, options: &CreateOptions, force: bool) -> Result<Self> {
        Self::make(path, options, &|path| Ok(FreshFile::create(path, force)?))
    }

    /// Makes an empty image that is to take the place of one that is open for writing in `transaction`.
    pub(crate) fn replacing(transaction: &Transaction, path: &Path, options: &CreateOptions) -> Result<Self> {
        Self::make(path, options, &|path| match path.exists() {
            true => Ok(transaction.replace(path)?),
            false => Ok(FreshFile::create(path, false)?),
        })
    }

    fn make(path: &Path, options: &CreateOptions, open: &dyn Fn(&Path) -> Result<FreshFile>) -> Result<Self> {
        let main = open(path)?;
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("image").to_owned();
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        let parts = Parts { name, folder, open, made: Mutex::default() };
        let file: Arc<dyn Disk> = main.disk();
        driver::create(&file, options, &parts)?;
        Ok(Self { main, parts: parts.made.into_inner().unwrap_or_else(PoisonError::into_inner) })
    }

    /// Takes up an image of one file that an earlier attempt left unfinished, if there is one.
    pub(crate) fn take_up(path: &Path, force: bool) -> Result<Option<Self>> {
        let Some(main) = FreshFile::take_up(path, force)? else { return Ok(None) };
        Ok(Some(Self { main, parts: Vec::new() }))
    }

    /// Whether the unfinished file and its note stay if it is not committed.
    pub(crate) fn keep(&self, keep: bool) {
        self.main.keep(keep);
    }

    /// Where the unfinished file is.
    pub(crate) fn unfinished(&self) -> &Path {
        self.main.unfinished()
    }

    /// What is noted beside the unfinished file.
    pub(crate) fn note(&self) -> Result<Option<Vec<u8>>> {
        Ok(self.main.note()?)
    }

    /// Notes something durably beside the unfinished file.
    pub(crate) fn save_note(&self, note: &[u8]) -> Result<()> {
        Ok(self.main.save_note(note)?)
    }

    /// The image file.
    pub(crate) fn file(&self) -> Arc<dyn Disk> {
        self.main.disk()
    }

    /// The image file as the host has it.
    pub(crate) fn host_file(&self) -> Arc<HostFile> {
        self.main.disk()
    }

    /// Its further files, in the order of their making.
    pub(crate) fn parts(&self) -> Vec<Arc<dyn Disk>> {
        self.parts.iter().map(|part| part.disk() as Arc<dyn Disk>).collect()
    }

    /// Makes all files durable and gives them their names.
    pub(crate) fn commit(self) -> Result<()> {
        for part in self.parts {
            part.commit()?;
        }
        Ok(self.main.commit()?)
    }
}

struct Parts<'a> {
    name: String,
    folder: PathBuf,
    open: &'a dyn Fn(&Path) -> Result<FreshFile>,
    made: Mutex<Vec<FreshFile>>,
}

impl PartMaker for Parts<'_> {
    fn image_name(&self) -> &str {
        &self.name
    }

    fn make(&self, name: &str) -> Result<Arc<dyn Disk>> {
        let part = (self.open)(&self.folder.join(name))?;
        let disk = part.disk();
        self.made.lock().unwrap_or_else(PoisonError::into_inner).push(part);
        Ok(disk)
    }
}

/// What an option of a format that does not exist or does not fit is answered with.
pub(crate) fn no_option(format: Format, key: &str) -> Error {
    crate::error::Reason::NoOption { format, key: key.to_owned() }.into()
}

/// What a value that an option cannot have is answered with.
pub(crate) fn bad_value(key: &'static str, value: &str, allowed: &'static str) -> Error {
    crate::error::Reason::BadOption { key, value: value.to_owned(), allowed }.into()
}

/// Reads `on`, `off`, `yes`, `no`, `true` or `false`.
pub(crate) fn parse_switch(key: &'static str, value: &str) -> Result<bool> {
    match value {
        "on" | "yes" | "true" => Ok(true),
        "off" | "no" | "false" => Ok(false),
        _ => Err(bad_value(key, value, "on or off")),
    }
}

/// Reads a number of bytes with an optional suffix K, M, G or T.
pub(crate) fn parse_bytes(key: &'static str, value: &str) -> Result<u64> {
    let wrong = || bad_value(key, value, "a number of bytes such as 4096, 64K or 2M");
    let digits = value.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match value[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}
