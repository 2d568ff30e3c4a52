use std::path::{Path, PathBuf};

use vmwright_crypt::Passphrase;
use vmwright_disk::{Disk, Extent, ExtentKind, HostFile, Transaction, TransactionOptions, WriteMode};

use super::{ChainOptions, Gate, open_in, resolve};
use crate::copy::Progress;
use crate::error::Reason;
use crate::{BackingFile, Format, FormatChoice, Image, Result};

/// Content is compared in pieces of so many bytes.
const PIECE: u64 = 2 << 20;

/// How an overlay is put onto another base.
#[derive(Debug, Clone, Default)]
pub struct RebaseOptions {
    /// The new base; none makes the image stand alone.
    pub base: Option<NewBase>,
    /// Whether only the name in the image changes: right where the base was moved or renamed, wrong where its content
    /// differs.
    pub name_only: bool,
    /// What opens encrypted images of the chain.
    pub secret: Option<Passphrase>,
    /// Whether damages that other programs overlook are overlooked.
    pub lenient: bool,
}

/// What an overlay shall lie over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewBase {
    /// The name that is written into the overlay; relative to its folder where it is relative.
    pub name: String,
    /// The format.
    pub format: Format,
}

/// What a rebase did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rebased {
    /// How many bytes of the old base were copied into the overlay, since the new one shows something else.
    pub bytes: u64,
}

/// Puts an overlay onto another base. It shows the same as before, unless only its name is to change.
///
/// Done in place, in an order that survives a crash: first everything that the new base does not show is copied into
/// the overlay and made durable, then the name of the base changes.
pub fn rebase(
    path: &Path,
    choice: FormatChoice,
    gate: &dyn Gate,
    options: &RebaseOptions,
    progress: Progress<'_>,
) -> Result<Rebased> {
    let transaction = Transaction::begin(TransactionOptions::default().mode(WriteMode::Ordered));
    let how = ChainOptions {
        secret: options.secret.clone(),
        lenient: options.lenient,
        without_backing: options.name_only,
        ..ChainOptions::default()
    };
    let overlay = open_in(&transaction, path, choice, gate, how.clone())?;
    let below = ChainOptions { read_only: true, without_backing: false, ..how };
    let base = match &options.base {
        Some(base) if !options.name_only => Some(open_base(&transaction, path, base, gate, below)?),
        _ => None,
    };
    let mut rebased = Rebased::default();
    if !options.name_only {
        rebased.bytes = copy_differences(&overlay, base.as_ref(), progress)?;
        overlay.flush()?;
    }
    let named = options.base.clone().map(BackingFile::from);
    overlay.driver().set_backing_file(named.as_ref())?;
    overlay.flush()?;
    Ok(rebased)
}

/// Opens the new base with what lies beneath it, among which the overlay must not be.
fn open_base(
    transaction: &Transaction,
    overlay: &Path,
    base: &NewBase,
    gate: &dyn Gate,
    options: ChainOptions,
) -> Result<Image> {
    let path: PathBuf = resolve(overlay, &base.name)?;
    let exact = FormatChoice::Exact(base.format);
    let own = HostFile::open_forced(overlay)?.id();
    let chain = super::list(&Transaction::begin(TransactionOptions::default()), &path, exact, gate);
    // The overlay itself is locked for writing, so a chain that leads to it may already fail to open.
    if HostFile::open_forced(&path)?.id() == own || chain?.iter().any(|link| link.id == own) {
        return Err(Reason::ChainLoop { name: base.name.clone() }.into());
    }
    open_in(transaction, &path, exact, gate, options)
}

/// Copies into the overlay what it shows of the old base and the new one does not; answers how many bytes.
fn copy_differences(overlay: &Image, base: Option<&Image>, progress: Progress<'_>) -> Result<u64> {
    let unit = overlay.cluster_size().unwrap_or(512).max(512);
    let len = overlay.len();
    let (mut at, mut copied) = (0, 0);
    let (mut old, mut new) = (Vec::new(), Vec::new());
    while at < len {
        let extent = overlay.extent_at(at)?;
        let mut end = extent.end().min(len);
        let own = extent.depth == 0 && extent.kind != ExtentKind::Unallocated;
        if !own {
            let beneath = base_extent(base, at, len)?;
            end = end.min(beneath.end());
            if !shows_same(&extent, &beneath) {
                end = end.min(at.saturating_add(PIECE.next_multiple_of(unit)));
                // Whole units, so that nothing is copied twice; a unit belongs to one image, so this stays in range.
                let start = at - at % unit;
                end = end.next_multiple_of(unit).min(len);
                read(Some(overlay), start, end - start, &mut old)?;
                read(base, start, end - start, &mut new)?;
                copied += write_different(overlay, start, &old, &new, unit as usize)?;
            }
        }
        at = end;
        progress(at, len);
    }
    Ok(copied)
}

/// Whether two extents surely hold the same bytes.
fn shows_same(old: &Extent, new: &Extent) -> bool {
    match (old.kind, new.kind) {
        (ExtentKind::Data { .. }, ExtentKind::Data { .. }) => old.kind == new.kind,
        _ => old.is_zero() && new.is_zero(),
    }
}

/// Where the new base keeps what is at `at`; past its end there are zeros.
fn base_extent(base: Option<&Image>, at: u64, len: u64) -> Result<Extent> {
    match base.filter(|base| at < base.len()) {
        Some(base) => Ok(base.extent_at(at)?),
        None => Ok(Extent { start: at, len: len - at, kind: ExtentKind::Unallocated, depth: 0 }),
    }
}

fn read(disk: Option<&Image>, at: u64, len: u64, buffer: &mut Vec<u8>) -> Result<()> {
    buffer.clear();
    buffer.resize(len as usize, 0);
    let there = disk.map_or(0, |disk| disk.len().saturating_sub(at).min(len)) as usize;
    if let Some(disk) = disk.filter(|_| there > 0) {
        disk.read_at(&mut buffer[..there], at)?;
    }
    Ok(())
}

fn write_different(overlay: &Image, at: u64, old: &[u8], new: &[u8], unit: usize) -> Result<u64> {
    let mut copied = 0;
    for (index, (old, new)) in old.chunks(unit).zip(new.chunks(unit)).enumerate() {
        let at = at + (index * unit) as u64;
        if old == new || is_own(overlay, at, old.len())? {
            continue;
        }
        if old.iter().all(|byte| *byte == 0) {
            overlay.zero_at(at, old.len() as u64)?;
        } else {
            overlay.write_at(old, at)?;
            copied += old.len() as u64;
        }
    }
    Ok(copied)
}

/// Whether the overlay itself holds all `len` bytes from `at` on.
fn is_own(overlay: &Image, at: u64, len: usize) -> Result<bool> {
    let extent = overlay.extent_at(at)?;
    Ok(extent.depth == 0 && extent.kind != ExtentKind::Unallocated && extent.len >= len as u64)
}

impl From<NewBase> for BackingFile {
    fn from(base: NewBase) -> Self {
        Self { name: base.name, format: Some(base.format.qemu_name().to_owned()) }
    }
}
