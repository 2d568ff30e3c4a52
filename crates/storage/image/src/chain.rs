//! Chains of backing files: which files an image may open, and opening them.
//!
//! Whoever made an image chose the names in it. So a name in an image is only a wish, and the [`Gate`] that
//! the caller passes decides what comes of it.
//!
//! ```text
//! overlay.qcow2 ─ names "base.qcow2" ─ Gate ─ /images/base.qcow2 ─ names "../../etc/shadow" ─ Gate ─ refused
//! ```

mod commit;
mod flatten;
mod rebase;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use vmwright_crypt::Passphrase;
use vmwright_disk::{Access, Disk, FileId, HostFile, Sharing, Transaction, TransactionOptions, WriteMode};

use crate::driver::{self, ContentId, Links, ParentLink};
use crate::error::Reason;
use crate::{
    BackingFile, CreateOptions, Error, Format, FormatChoice, Image, Layout, OpenOptions, ParentId, Result,
    create,
};

pub use commit::{CommitOptions, Committed, commit};
pub use flatten::{FlattenOptions, flatten};
pub use rebase::{NewBase, RebaseOptions, Rebased, rebase};

/// The most backing files beneath an image.
pub const MAX_DEPTH: usize = 64;

/// Decides which host files may be opened because an image names them.
pub trait Gate {
    /// Answers the file that `name`, found inside the image at `image`, stands for, or refuses it.
    ///
    /// [`resolve`] does the usual part: a relative name is relative to the folder of the image.
    fn admit(&self, image: &Path, name: &str) -> Result<PathBuf>;

    /// Whether the first bytes of a backing file may decide its format where the image does not name it.
    ///
    /// Saying yes lets a guest that wrote a raw backing file choose what is opened next.
    fn may_probe(&self) -> bool {
        false
    }
}

/// The format that the name of a file stands for, such as qcow2 for `disk.qcow2`.
///
/// A guest that runs on a raw image chooses the first bytes of that file, but never its name. So a format that
/// was only probed is believed with the files it names where the name agrees.
pub fn format_by_name(path: &Path) -> Option<Format> {
    const ENDINGS: [(&str, Format); 12] = [
        ("qcow2", Format::Qcow2),
        ("qcow", Format::Qcow2),
        ("vmdk", Format::Vmdk),
        ("vhd", Format::Vhd),
        ("avhd", Format::Vhd),
        ("vpc", Format::Vhd),
        ("vhdx", Format::Vhdx),
        ("avhdx", Format::Vhdx),
        ("vdi", Format::Vdi),
        ("luks", Format::Luks),
        ("raw", Format::Raw),
        ("img", Format::Raw),
    ];
    let extension = path.extension()?.to_str()?;
    ENDINGS.iter().find(|(ending, _)| extension.eq_ignore_ascii_case(ending)).map(|(_, format)| *format)
}

/// Whether the name of a file says that it is a qcow2 image: it ends in `.qcow2` or `.qcow`.
pub fn is_named_qcow2(path: &Path) -> bool {
    format_by_name(path) == Some(Format::Qcow2)
}

/// Allows nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct DenyAll;

impl Gate for DenyAll {
    fn admit(&self, _image: &Path, name: &str) -> Result<PathBuf> {
        Err(Reason::Denied { name: name.to_owned() }.into())
    }
}

/// Allows every file of the host, for chains that the caller made.
#[derive(Debug, Clone, Copy, Default)]
pub struct AllowAll {
    /// Whether unnamed formats are probed.
    pub probe: bool,
}

impl Gate for AllowAll {
    fn admit(&self, image: &Path, name: &str) -> Result<PathBuf> {
        resolve(image, name)
    }

    fn may_probe(&self) -> bool {
        self.probe
    }
}

/// Allows the files beneath some folders, symbolic links resolved.
#[derive(Debug, Clone, Default)]
pub struct Beneath {
    folders: Vec<PathBuf>,
    beside_image: bool,
    probe: bool,
}

impl Beneath {
    /// Allows what lies beneath these folders, which must exist.
    pub fn folders<P: AsRef<Path>>(folders: impl IntoIterator<Item = P>) -> Result<Self> {
        let folders = folders.into_iter().map(|folder| canonical(folder.as_ref()));
        Ok(Self { folders: folders.collect::<Result<_>>()?, ..Self::default() })
    }

    /// Allows what lies beneath the folder of the image that names it.
    pub fn image_folder() -> Self {
        Self { beside_image: true, ..Self::default() }
    }

    /// Lets formats be probed where an image does not name them.
    pub fn probing(self) -> Self {
        Self { probe: true, ..self }
    }
}

impl Gate for Beneath {
    fn admit(&self, image: &Path, name: &str) -> Result<PathBuf> {
        let path = canonical(&resolve(image, name)?)?;
        let beside = match self.beside_image {
            true => canonical(image)?.parent().map(Path::to_owned),
            false => None,
        };
        let mut folders = self.folders.iter().chain(&beside);
        match folders.any(|folder| path.starts_with(folder)) {
            true => Ok(path),
            false => Err(Reason::Denied { name: name.to_owned() }.into()),
        }
    }

    fn may_probe(&self) -> bool {
        self.probe
    }
}

fn canonical(path: &Path) -> Result<PathBuf> {
    path.canonicalize().map_err(|source| vmwright_disk::Error::host("resolve", path, source).into())
}

/// The host file that `name`, found inside the image at `image`, stands for as QEMU understands it.
///
/// Relative names are relative to the folder of the image. Names with a protocol other than `file:` are
/// refused as unsupported.
pub fn resolve(image: &Path, name: &str) -> Result<PathBuf> {
    let plain = name.strip_prefix("file:").unwrap_or(name);
    let before_slash = plain.split('/').next().unwrap_or_default();
    if before_slash.contains(':') {
        return Err(Error::unsupported("a backing file that is not a plain file name"));
    }
    Ok(image.parent().unwrap_or(Path::new("")).join(plain))
}

/// The name that stands for the file at `path` inside an image, so that [`resolve`] leads back to it.
pub fn backing_name(path: &Path) -> Result<String> {
    let name = path.to_str().ok_or_else(|| {
        Error::invalid("the name of the backing file", "it must be UTF-8 to stand in an image")
    })?;
    Ok(match name.split('/').next().unwrap_or_default().contains(':') {
        // Otherwise the part before the colon would be taken for a protocol.
        true => format!("./{name}"),
        false => name.to_owned(),
    })
}

/// How a chain is opened.
#[derive(Debug, Clone)]
pub struct ChainOptions {
    /// Whether the image itself is opened for reading only; its backing files always are.
    pub read_only: bool,
    /// Whether files are read without locks although another program may be writing them; implies reading
    /// only. For [`open`] alone: a transaction has its own.
    pub force_share: bool,
    /// How many bytes of metadata are kept in memory for each image; 8 MiB by default.
    pub cache_bytes: usize,
    /// What opens encrypted images of the chain.
    pub secret: Option<Passphrase>,
    /// Whether damages that other programs overlook are overlooked.
    pub lenient: bool,
    /// Whether the image is opened alone, without what lies beneath it; its parts are opened.
    pub without_backing: bool,
    /// The id or the name of an internal snapshot: the image is then the disk of that snapshot, for reading only.
    pub snapshot: Option<String>,
}

impl Default for ChainOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            force_share: false,
            cache_bytes: OpenOptions::default().cache_bytes,
            secret: None,
            lenient: false,
            without_backing: false,
            snapshot: None,
        }
    }
}

impl ChainOptions {
    /// The default, but for reading only.
    pub fn read_only() -> Self {
        Self { read_only: true, ..Self::default() }
    }
}

/// Opens a host file as an image together with the parts and backing files that `gate` allows.
///
/// Changes are made in place, each in the order that its format needs to survive a crash; a change that an earlier
/// crash interrupted is completed, or shows through for reading.
pub fn open(path: &Path, choice: FormatChoice, gate: &dyn Gate, options: ChainOptions) -> Result<Image> {
    let sharing = if options.force_share { Sharing::Forced } else { Sharing::Locked };
    let read_only = options.read_only || options.force_share;
    let how = TransactionOptions::default().mode(WriteMode::Ordered).sharing(sharing);
    open_in(&Transaction::begin(how), path, choice, gate, ChainOptions { read_only, ..options })
}

/// Opens a host file as an image beneath a transaction, together with the parts and backing files that `gate`
/// allows: what is written to the image and its parts is part of the transaction.
pub fn open_in(
    transaction: &Transaction,
    path: &Path,
    choice: FormatChoice,
    gate: &dyn Gate,
    options: ChainOptions,
) -> Result<Image> {
    let access = if options.read_only { Access::Read } else { Access::Write };
    let links = walk(transaction, path, choice, gate, access, |_| options.without_backing)?;
    stack(links, None, &options)
}

/// One image of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainLink {
    /// Where it is.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// Which host file it is.
    pub id: FileId,
    /// Where its further files are, for an image that is spread over several.
    pub parts: Vec<PathBuf>,
}

/// The images of a chain from the top down, as far as `gate` lets them be opened.
pub fn list(
    transaction: &Transaction,
    path: &Path,
    choice: FormatChoice,
    gate: &dyn Gate,
) -> Result<Vec<ChainLink>> {
    let links = walk(transaction, path, choice, gate, Access::Read, |_| false)?;
    let link =
        |link: Link| ChainLink { path: link.path, format: link.format, id: link.id, parts: link.part_paths };
    Ok(links.into_iter().map(link).collect())
}

/// Opens the files of a chain from the top down; none beneath one that `is_last` says is the last.
fn walk(
    transaction: &Transaction,
    path: &Path,
    choice: FormatChoice,
    gate: &dyn Gate,
    access: Access,
    is_last: impl Fn(&Link) -> bool,
) -> Result<Vec<Link>> {
    let mut walk = Walk { transaction, gate, seen: Vec::new() };
    let mut next = Some(Below { path: path.to_owned(), choice, expects: None });
    let mut links: Vec<Link> = Vec::new();
    while let Some(below) = next.take() {
        if links.len() > MAX_DEPTH {
            return Err(Reason::ChainTooDeep { limit: MAX_DEPTH }.into());
        }
        let access = if links.is_empty() { access } else { Access::Read };
        let (link, parent) = walk.link(&below, access)?;
        if let Some(parent) = parent.filter(|_| !is_last(&link)) {
            next = Some(walk.below(&link.path, parent)?);
        }
        links.push(link);
    }
    Ok(links)
}

/// The way down a chain.
struct Walk<'a> {
    transaction: &'a Transaction,
    gate: &'a dyn Gate,
    seen: Vec<FileId>,
}

/// One image of a chain, its files open.
struct Link {
    path: PathBuf,
    id: FileId,
    file: Arc<dyn Disk>,
    parts: Vec<Arc<dyn Disk>>,
    part_paths: Vec<PathBuf>,
    format: Format,
    expects: Option<ContentId>,
    read_only: bool,
}

/// What is next on the way down.
struct Below {
    path: PathBuf,
    choice: FormatChoice,
    /// What its content must be.
    expects: Option<ContentId>,
}

impl Walk<'_> {
    fn link(&mut self, below: &Below, access: Access) -> Result<(Link, Option<ParentLink>)> {
        let path = &below.path;
        let file = self.transaction.open(path, access)?;
        let id = HostFile::open_forced(path)?.id();
        if self.seen.contains(&id) {
            return Err(Reason::ChainLoop { name: path.display().to_string() }.into());
        }
        self.seen.push(id);
        let format = below.choice.resolve(&*file)?;
        let Links { parts, parent } = driver::links(&*file, format)?;
        let open = |name: &String| {
            let part = self.gate.admit(path, name)?;
            if HostFile::open_forced(&part)?.id() == id {
                return Err(Reason::ChainLoop { name: name.clone() }.into());
            }
            let disk = self.transaction.open(&part, access)?;
            Ok((disk, part))
        };
        let parts = parts.iter().map(open).collect::<Result<Vec<_>>>()?;
        let (parts, part_paths) = parts.into_iter().unzip();
        let (path, expects, read_only) = (path.clone(), below.expects, access == Access::Read);
        Ok((Link { path, id, file, parts, part_paths, format, expects, read_only }, parent))
    }

    /// The first place of those that an image names where its parent is.
    fn below(&self, image: &Path, parent: ParentLink) -> Result<Below> {
        let choice = match &parent.format {
            Some(name) => FormatChoice::Exact(name.parse()?),
            None if self.gate.may_probe() => FormatChoice::Probe,
            None => {
                let name = parent.names.first().cloned().unwrap_or_default();
                return Err(Reason::BackingFormatUnknown { name }.into());
            }
        };
        let mut first_error = None;
        for name in &parent.names {
            match self.gate.admit(image, name) {
                Ok(path) if path.exists() || parent.names.len() == 1 => {
                    return Ok(Below { path, choice, expects: parent.expects });
                }
                Ok(_) => {}
                Err(error) => {
                    first_error.get_or_insert(error);
                }
            }
        }
        let name = parent.names.first().cloned().unwrap_or_default();
        Err(first_error.unwrap_or_else(|| Reason::BackingNotOpened { name }.into()))
    }
}

/// Opens the images of a chain from the lowest up, which lies over `bottom`.
fn stack(links: Vec<Link>, bottom: Option<Arc<dyn Disk>>, options: &ChainOptions) -> Result<Image> {
    let mut bottom = bottom;
    let mut lower: Option<Image> = None;
    for (depth, link) in links.into_iter().enumerate().rev() {
        let snapshot = options.snapshot.clone().filter(|_| depth == 0);
        let backing = lower.take().map(|image| Arc::new(image) as Arc<dyn Disk>).or_else(|| bottom.take());
        let how = OpenOptions {
            read_only: link.read_only,
            cache_bytes: options.cache_bytes,
            backing,
            parts: link.parts,
            secret: options.secret.clone(),
            lenient: options.lenient,
            snapshot,
        };
        let image = Image::open(link.file, FormatChoice::Exact(link.format), how)?;
        let found = image.driver().content_id()?;
        if !options.lenient
            && link.expects.is_some_and(|expects| !found.is_some_and(|found| expects.accepts(&found)))
        {
            return Err(Reason::WrongParent { name: link.path.display().to_string() }.into());
        }
        lower = Some(image);
    }
    lower.ok_or_else(|| Error::invalid("a chain of images", "it must have at least one"))
}

/// Makes a qcow2 image at `path` that shows `base`, whose format is `base_format`, until it is written.
///
/// `base` is written into the image as given; where it is relative, it is relative to the folder of `path`.
/// The size is that of the base unless another is given. An existing file is replaced only with `force`.
pub fn create_overlay(
    path: &Path,
    base: &Path,
    base_format: Format,
    size: Option<u64>,
    force: bool,
) -> Result<()> {
    create_overlay_as(path, base, base_format, Layout::new(Format::Qcow2), size, force)
}

/// Makes an image of any format that has backing files, as [`create_overlay`] makes a qcow2 image; a format whose
/// images know their parents again notes which one this is.
pub fn create_overlay_as(
    path: &Path,
    base: &Path,
    base_format: Format,
    layout: Layout,
    size: Option<u64>,
    force: bool,
) -> Result<()> {
    let name = backing_name(base)?;
    let how = ChainOptions { without_backing: true, ..ChainOptions::read_only() };
    let exact = FormatChoice::Exact(base_format);
    let base = open(&resolve(path, &name)?, exact, &AllowAll::default(), how)?;
    let mut options = CreateOptions::laid_out(layout, size.unwrap_or(base.len()));
    options.backing = Some(BackingFile { name, format: Some(base_format.qemu_name().to_owned()) });
    options.parent = ParentId::of(&base)?;
    create(path, &options, force)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmwright_disk::ErrorKind;

    fn folder() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        (dir, path)
    }

    fn base(dir: &Path) -> PathBuf {
        let base = dir.join("base.raw");
        create(&base, &CreateOptions::new(Format::Raw, 1 << 20), false).unwrap();
        HostFile::open(&base, false).unwrap().write_at(&[7; 4096], 65536).unwrap();
        base
    }

    const QCOW2: FormatChoice = FormatChoice::Exact(Format::Qcow2);

    #[test]
    fn an_overlay_shows_its_base_through_the_gate_only() {
        let (_dir, dir) = folder();
        base(&dir);
        let top = dir.join("top.qcow2");
        create_overlay(&top, Path::new("base.raw"), Format::Raw, None, false).unwrap();

        let error = open(&top, QCOW2, &DenyAll, ChainOptions::read_only()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        let elsewhere = Beneath::folders(["/proc"]).unwrap();
        assert!(open(&top, QCOW2, &elsewhere, ChainOptions::read_only()).is_err());

        let image = open(&top, QCOW2, &Beneath::image_folder(), ChainOptions::read_only()).unwrap();
        let mut bytes = [0; 4096];
        image.read_at(&mut bytes, 65536).unwrap();
        assert_eq!(bytes, [7; 4096]);
        assert_eq!(image.extent_at(65536).unwrap().depth, 1);
    }

    #[test]
    fn a_link_out_of_the_folder_is_not_beneath_it() {
        let (_dir, dir) = folder();
        let (_other, other) = folder();
        base(&other);
        std::os::unix::fs::symlink(other.join("base.raw"), dir.join("inside.raw")).unwrap();
        let top = dir.join("top.qcow2");
        create_overlay(&top, Path::new("inside.raw"), Format::Raw, None, false).unwrap();
        let error = open(&top, QCOW2, &Beneath::image_folder(), ChainOptions::read_only()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        open(&top, QCOW2, &AllowAll::default(), ChainOptions::read_only()).unwrap();
    }

    #[test]
    fn a_chain_that_bites_its_tail_is_corrupt() {
        let (_dir, dir) = folder();
        let (a, b) = (dir.join("a"), dir.join("b"));
        create(&a, &CreateOptions::new(Format::Qcow2, 1 << 20), false).unwrap();
        create_overlay(&b, &a, Format::Qcow2, None, false).unwrap();
        create_overlay(&a, &b, Format::Qcow2, None, true).unwrap();
        let error = open(&a, QCOW2, &AllowAll::default(), ChainOptions::read_only()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn a_base_without_a_named_format_is_probed_only_where_allowed() {
        let (_dir, dir) = folder();
        let name = base(&dir).to_str().unwrap().to_owned();
        let top = dir.join("top");
        let mut options = CreateOptions::new(Format::Qcow2, 1 << 20);
        options.backing = Some(BackingFile { name, format: None });
        create(&top, &options, false).unwrap();
        let error = open(&top, QCOW2, &AllowAll::default(), ChainOptions::read_only()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        open(&top, QCOW2, &AllowAll { probe: true }, ChainOptions::read_only()).unwrap();
    }

    #[test]
    fn names_with_a_protocol_are_not_files() {
        let image = Path::new("/images/top");
        assert_eq!(resolve(image, "nbd://host/x").unwrap_err().kind(), ErrorKind::Unsupported);
        assert_eq!(resolve(image, "json:{}").unwrap_err().kind(), ErrorKind::Unsupported);
        assert_eq!(resolve(image, "file:base").unwrap(), Path::new("/images/base"));
        assert_eq!(resolve(image, "./a:b").unwrap(), Path::new("/images/./a:b"));
    }
}
