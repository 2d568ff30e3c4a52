use std::path::{Path, PathBuf};
use std::sync::Arc;

use vmwright_crypt::Passphrase;
use vmwright_disk::{
    Access, Disk, Error as DiskError, ErrorKind, Extent, ExtentKind, HostFile, Transaction,
    TransactionOptions, WriteMode, check_range,
};

use super::{ChainOptions, Gate, Link, open_in, stack, walk};
use crate::copy::Progress;
use crate::error::Reason;
use crate::{Error, Format, FormatChoice, Image, Result, driver};

/// Bytes are moved in pieces of so many.
const PIECE: u64 = 2 << 20;

/// How an overlay is committed.
#[derive(Debug, Clone, Default)]
pub struct CommitOptions {
    /// The image of the chain that takes the content; the backing file of the overlay where none is given.
    pub base: Option<PathBuf>,
    /// Whether the overlay keeps what it holds; it does anyway where another image than its backing file takes
    /// the content.
    pub keep: bool,
    /// What opens encrypted images of the chain.
    pub secret: Option<Passphrase>,
    /// Whether damages that other programs overlook are overlooked.
    pub lenient: bool,
}

/// What a commit did.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Committed {
    /// The image that took the content.
    pub base: PathBuf,
    /// How many bytes of data it took.
    pub bytes: u64,
    /// Whether the overlay is empty now.
    pub emptied: bool,
}

/// Writes what an overlay holds into an image beneath it, which grows where the overlay is larger.
///
/// Done in place, in an order that survives a crash: until the base holds everything durably the overlay keeps it, and
/// shows the same the whole time. Other overlays over the base show something else afterwards, and so do images between
/// the overlay and a base further down.
pub fn commit(
    path: &Path,
    choice: FormatChoice,
    gate: &dyn Gate,
    options: &CommitOptions,
    progress: Progress<'_>,
) -> Result<Committed> {
    let chain = super::list(&Transaction::begin(TransactionOptions::default()), path, choice, gate)?;
    let index = match &options.base {
        None => 1,
        Some(base) => {
            let id = HostFile::open_forced(base)?.id();
            let found = chain.iter().skip(1).position(|link| link.id == id).map(|index| index + 1);
            found.ok_or_else(|| Error::invalid("the base of a commit", "it must lie beneath the overlay"))?
        }
    };
    let Some(base) = chain.get(index) else {
        return Err(Error::invalid("a commit", "the image has no backing file"));
    };
    let keep = options.keep || index > 1;
    // A change gives such a base another identity, which the image over it must note.
    let above = chain.get(index - 1).map(|link| link.format);
    let by_identity = matches!(base.format, Format::Vmdk | Format::Vhdx) && above == Some(base.format);
    if by_identity && index > 1 {
        return Err(Error::unsupported(
            "committing past a VMDK or VHDX image, which would not know its changed parent again,",
        ));
    }

    let transaction = Transaction::begin(TransactionOptions::default().mode(WriteMode::Ordered));
    let how =
        ChainOptions { secret: options.secret.clone(), lenient: options.lenient, ..ChainOptions::default() };
    let exact = FormatChoice::Exact(base.format);
    // The overlay first: it is what a second commit of the same overlay must find in use.
    let access = if keep && !by_identity { Access::Read } else { Access::Write };
    transaction.open(path, access)?;
    let target = open_in(&transaction, &base.path, exact, gate, how.clone())?;
    let links = walk(&transaction, path, choice, gate, access, |link| {
        chain.get(index - 1).is_some_and(|last| last.id == link.id)
    })?;
    if !options.lenient
        && let Some(above) = links.last()
    {
        refuse_another_parent(above, &target, &base.path)?;
    }
    let overlay = stack(links, Some(Arc::new(Nothing(target.len()))), &how)?;

    // The change gives some parents a new identity, which the overlay must know at once.
    if by_identity {
        if let Some(id) = target.driver().content_id()? {
            // Whether that can be noted is known before anything has changed.
            overlay.driver().set_parent_id(id)?;
        }
        if let Some(id) = target.driver().announce_change()? {
            overlay.driver().set_parent_id(id)?;
        }
    }
    let bytes = copy_allocated(&overlay, &target, progress)?;
    target.flush()?;
    let mut emptied = false;
    if !keep {
        match overlay.driver().make_empty() {
            Ok(()) => {
                overlay.flush()?;
                emptied = true;
            }
            // It shows the same with what it holds.
            Err(error) if error.kind() == ErrorKind::Unsupported => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Committed { base: base.path.clone(), bytes, emptied })
}

/// Refuses a base that the image over it would not know again as its parent: the content does not belong there.
fn refuse_another_parent(above: &Link, base: &Image, path: &Path) -> Result<()> {
    let expects = driver::links(&*above.file, above.format)?.parent.and_then(|parent| parent.expects);
    let found = base.driver().content_id()?;
    match expects {
        Some(expects) if !found.is_some_and(|found| expects.accepts(&found)) => {
            Err(Reason::WrongParent { name: path.display().to_string() }.into())
        }
        _ => Ok(()),
    }
}

/// Writes what `overlay` holds itself to `target`; answers how many bytes were not zeros.
fn copy_allocated(overlay: &Image, target: &Image, progress: Progress<'_>) -> Result<u64> {
    let len = overlay.len();
    if len > target.len() {
        target.set_len(len)?;
    }
    let mut buffer = vec![0; PIECE.min(len) as usize];
    let (mut at, mut bytes) = (0, 0);
    while at < len {
        let extent = overlay.extent_at(at)?;
        let mut part = extent.len;
        match extent.kind {
            ExtentKind::Unallocated => {}
            ExtentKind::Zero => target.zero_at(at, part)?,
            _ => {
                part = part.min(PIECE);
                let piece = &mut buffer[..part as usize];
                overlay.read_at(piece, at)?;
                target.write_at(piece, at)?;
                bytes += part;
            }
        }
        at += part;
        progress(at, len);
    }
    Ok(bytes)
}

/// What lies beneath the part of a chain that is committed: nothing that would be copied.
struct Nothing(u64);

impl Nothing {
    fn refuse<T>() -> vmwright_disk::Result<T> {
        Err(Error::from(Reason::ReadOnly { what: "the backing file" }).into())
    }
}

impl Disk for Nothing {
    fn len(&self) -> u64 {
        self.0
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), DiskError> {
        check_range(offset, buf.len() as u64, self.0)?;
        buf.fill(0);
        Ok(())
    }

    fn write_at(&self, _data: &[u8], _offset: u64) -> Result<(), DiskError> {
        Self::refuse()
    }

    fn zero_at(&self, _offset: u64, _len: u64) -> Result<(), DiskError> {
        Self::refuse()
    }

    fn discard(&self, _offset: u64, _len: u64) -> Result<(), DiskError> {
        Self::refuse()
    }

    fn set_len(&self, _len: u64) -> Result<(), DiskError> {
        Self::refuse()
    }

    fn flush(&self) -> Result<(), DiskError> {
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
        check_range(offset, 1, self.0)?;
        Ok(Extent { start: offset, len: self.0 - offset, kind: ExtentKind::Unallocated, depth: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BackingFile, CreateOptions, Format, OpenOptions, create_on};
    use vmwright_disk::MemDisk;
    use vmwright_disk::fault::{Fault, FaultDisk, Loss, VolatileDisk};

    const LEN: usize = 400_384;

    fn overlay(file: &Arc<dyn Disk>, base: Arc<dyn Disk>) -> Image {
        let options = OpenOptions { backing: Some(base), ..OpenOptions::default() };
        Image::open(file.clone(), FormatChoice::Exact(Format::Qcow2), options).unwrap()
    }

    fn content(disk: &dyn Disk) -> Vec<u8> {
        let mut bytes = vec![0; disk.len() as usize];
        disk.read_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn the_overlay_shows_the_same_wherever_a_commit_is_broken_off() {
        let old: Vec<u8> = (0..LEN - 100_352).map(|index| (index / 300) as u8).collect();
        let file: Arc<dyn Disk> = Arc::new(MemDisk::new(0));
        let backing = Some(BackingFile { name: "base".into(), format: Some("raw".into()) });
        let create = CreateOptions { backing, ..CreateOptions::new(Format::Qcow2, LEN as u64) };
        create_on(&file, &create).unwrap();
        let top = overlay(&file, Arc::new(MemDisk::from_bytes(old.clone())));
        top.write_at(&[200; 70_000], 1000).unwrap();
        top.zero_at(131_072, 65_536).unwrap();
        top.write_at(&[201; 3000], LEN as u64 - 5000).unwrap();
        top.flush().unwrap();
        let shown = content(&top);

        for nth in 0.. {
            let base = Arc::new(VolatileDisk::new(old.clone()));
            let faulty = Arc::new(FaultDisk::with_fault(base.clone(), nth, Fault::Tear(300)));
            let target =
                Image::open(faulty, FormatChoice::Exact(Format::Raw), OpenOptions::default()).unwrap();
            let view = overlay(&file, Arc::new(Nothing(target.len())));
            let done = copy_allocated(&view, &target, &|_, _| {}).and_then(|_| Ok(target.flush()?));
            for loss in Loss::choices(base.pending(), 3) {
                let after: Arc<dyn Disk> = Arc::new(MemDisk::from_bytes(base.after_crash(loss)));
                assert!(content(&overlay(&file, after)) == shown, "change {nth}, {loss:?}");
            }
            if done.is_ok() {
                assert!(nth > 3 && content(&MemDisk::from_bytes(base.after_crash(Loss::Nothing))) == shown);
                break;
            }
        }
    }
}
