use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;
use vmwright_crypt::Passphrase;
use vmwright_disk::{
    Access, Disk, Extent, ExtentKind, FreeMap, HostFile, Transaction, TransactionOptions, WriteMode,
};

use super::convert::convert_in;
use super::{Base, ConvertOptions, Progress};
use crate::chain::{self, ChainOptions, Gate};
use crate::error::Reason;
use crate::info::FormatInfo;
use crate::{Error, Format, FormatChoice, Image, Layout, ParentId, Result, driver};

/// So many free ranges are kept in memory; what is free beyond them is left as it is.
const MAX_RANGES: usize = 4 << 20;
/// Shorter free ranges are not worth it.
const MIN_RANGE: u64 = 4096;
/// Free space is overwritten in pieces of so many bytes.
const PIECE: u64 = 1 << 20;

/// How an image is rewritten.
#[derive(Clone, Default)]
pub struct CompactOptions {
    /// Whether content that can be stored compressed is.
    pub compress: bool,
    /// What opens encrypted images beneath the image.
    pub secret: Option<Passphrase>,
    /// Whether damages that other programs overlook are overlooked.
    pub lenient: bool,
    /// Ends the rewriting with an error that [is cancelled](crate::Error::is_cancelled) once it is set.
    pub cancel: Option<Arc<AtomicBool>>,
}

/// What a rewrite did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct Compacted {
    /// The bytes that the image occupied on the host.
    pub bytes_before: u64,
    /// The bytes that it occupies now.
    pub bytes_after: u64,
    /// The bytes of the disk that were free, by the map that was given.
    pub bytes_free: u64,
}

/// Knows what of a disk is free, once the disk is open; for [`compact`].
pub type FindFree<'a> = &'a dyn Fn(&Arc<dyn Disk>) -> vmwright_disk::Result<Box<dyn FreeMap>>;

/// Rewrites an image without clusters that hold zeros, and without what is free by `find_free`.
///
/// The new image takes the place of the old one only when it is complete and durable; until then there are both. It has
/// the format, the options and the backing file of the old one. Over a backing file, what is free becomes zeros.
///
/// Refused, since a rewrite would lose something: internal snapshots, persistent bitmaps, encryption with its key slots,
/// images spread over several files.
pub fn compact(
    path: &Path,
    choice: FormatChoice,
    gate: &dyn Gate,
    find_free: Option<FindFree<'_>>,
    options: &CompactOptions,
    progress: Progress<'_>,
) -> Result<Compacted> {
    let transaction = Transaction::begin(TransactionOptions::default().mode(WriteMode::Ordered));
    // Nobody else has the image until the new one takes its place; a change that was interrupted is completed first.
    transaction.open(path, Access::Write)?;
    let how = ChainOptions {
        secret: options.secret.clone(),
        lenient: options.lenient,
        ..ChainOptions::read_only()
    };
    let base = base(&transaction, path, choice, gate, &how)?;
    let image = Arc::new(chain::open_in(&transaction, path, choice, gate, how)?);
    refuse_what_would_be_lost(&transaction, path, &image)?;
    let base = image.backing_file().zip(base).map(|(name, (disk, parent))| Base { name, disk, parent });
    let disk: Arc<dyn Disk> = image.clone();
    let map = find_free.map(|find| find(&disk)).transpose()?;
    let source = Without::new(disk, map.as_deref())?;
    let wanted = ConvertOptions {
        layout: same_layout(&image)?,
        compress: options.compress,
        force: true,
        // Stored zeros are what is to go.
        share: false,
        base,
        cancel: options.cancel.clone(),
        ..ConvertOptions::new(image.format())
    };
    let bytes_before = image.info()?.actual_size;
    convert_in(Some(&transaction), &source, path, &wanted, progress)?;
    let bytes_after = crate::allocated(&HostFile::open_forced(path)?)?;
    Ok(Compacted { bytes_before, bytes_after, bytes_free: source.free_bytes() })
}

/// A rewrite keeps what a guest sees and nothing else.
fn refuse_what_would_be_lost(transaction: &Transaction, path: &Path, image: &Image) -> Result<()> {
    if HostFile::open_forced(path)?.is_block_device() {
        return Err(Error::unsupported(
            "rewriting an image on a block device, which has no name to give to another,",
        ));
    }
    let info = image.info()?;
    if !info.snapshots.is_empty() {
        return Err(Error::unsupported("rewriting an image with internal snapshots, which would be lost,"));
    }
    if info.encrypted || image.format() == Format::Luks {
        return Err(Error::unsupported("rewriting an encrypted image, whose key slots would be lost,"));
    }
    if let Some(FormatInfo::Qcow2(qcow2)) = &info.format_specific {
        if !qcow2.bitmaps.is_empty() {
            return Err(Error::unsupported(
                "rewriting an image with persistent bitmaps, which would be lost,",
            ));
        }
        if qcow2.data_file.is_some() {
            return Err(Error::unsupported("rewriting an image whose data is in another file"));
        }
    }
    let file = transaction.open(path, Access::Read)?;
    if !driver::links(&*file, image.format())?.parts.is_empty() {
        return Err(Error::unsupported("rewriting an image that is spread over several files"));
    }
    Ok(())
}

/// A disk, and what identifies its content.
type Beneath = (Arc<dyn Disk>, Option<ParentId>);

/// What lies beneath the image, open by itself.
fn base(
    transaction: &Transaction,
    path: &Path,
    choice: FormatChoice,
    gate: &dyn Gate,
    how: &ChainOptions,
) -> Result<Option<Beneath>> {
    let links = chain::list(transaction, path, choice, gate)?;
    let Some(below) = links.get(1) else { return Ok(None) };
    let disk =
        chain::open_in(transaction, &below.path, FormatChoice::Exact(below.format), gate, how.clone())?;
    let parent = ParentId::of(&disk)?;
    Ok(Some((Arc::new(disk), parent)))
}

/// The options of the image, with the ids by which others know it.
fn same_layout(image: &Image) -> Result<Layout> {
    let mut layout = image.layout();
    match (&mut layout, image.info()?.format_specific) {
        (Layout::Vhd(layout), Some(FormatInfo::Vpc(info))) => {
            layout.uuid = uuid(&info.unique_id)?.map(uuid::Uuid::into_bytes)
        }
        (Layout::Vdi(layout), Some(FormatInfo::Vdi(info))) => {
            layout.uuid = uuid(&info.uuid)?.map(|id| id.to_bytes_le())
        }
        _ => {}
    }
    Ok(layout)
}

fn uuid(text: &str) -> Result<Option<uuid::Uuid>> {
    let parsed = uuid::Uuid::parse_str(text);
    parsed.map(Some).map_err(|_| Error::invalid("the id of an image", "it must be a UUID"))
}

/// A disk that shows zeros where it is free.
struct Without {
    disk: Arc<dyn Disk>,
    /// In rising order, apart from one another.
    free: Vec<Range<u64>>,
}

impl Without {
    fn new(disk: Arc<dyn Disk>, map: Option<&dyn FreeMap>) -> Result<Self> {
        let mut free = Vec::new();
        if let Some(map) = map {
            each_range(&*disk, map, &mut |range| {
                if free.len() < MAX_RANGES && range.end - range.start >= MIN_RANGE {
                    free.push(range);
                }
                Ok(())
            })?;
        }
        Ok(Self { disk, free })
    }

    fn free_bytes(&self) -> u64 {
        self.free.iter().map(|range| range.end - range.start).sum()
    }

    /// The free ranges that do not end before `offset`.
    fn from(&self, offset: u64) -> &[Range<u64>] {
        &self.free[self.free.partition_point(|range| range.end <= offset)..]
    }
}

/// Tells the free ranges, which must be in order and within the disk.
fn each_range(
    disk: &dyn Disk,
    map: &dyn FreeMap,
    each: &mut dyn FnMut(Range<u64>) -> Result<()>,
) -> Result<()> {
    let (mut last, len) = (0, disk.len());
    let mut failed = None;
    let told = map.free_ranges(&mut |range| {
        if range.start < last || range.end > len || range.is_empty() {
            let why = "its ranges must be in rising order and lie within the disk";
            return Err(Error::invalid("a map of free space", why).into());
        }
        last = range.end;
        each(range).map_err(|error| {
            failed = Some(error);
            vmwright_disk::Error::read_only("the rest")
        })
    });
    match failed {
        Some(error) => Err(error),
        None => Ok(told?),
    }
}

impl Disk for Without {
    fn len(&self) -> u64 {
        self.disk.len()
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> vmwright_disk::Result<()> {
        self.disk.read_at(buf, offset)?;
        let end = offset + buf.len() as u64;
        for range in self.from(offset).iter().take_while(|range| range.start < end) {
            let (from, to) = (range.start.max(offset) - offset, range.end.min(end) - offset);
            buf[from as usize..to as usize].fill(0);
        }
        Ok(())
    }

    fn write_at(&self, _data: &[u8], _offset: u64) -> vmwright_disk::Result<()> {
        Err(vmwright_disk::Error::read_only("the source of a rewrite"))
    }

    fn zero_at(&self, _offset: u64, _len: u64) -> vmwright_disk::Result<()> {
        Err(vmwright_disk::Error::read_only("the source of a rewrite"))
    }

    fn discard(&self, _offset: u64, _len: u64) -> vmwright_disk::Result<()> {
        Err(vmwright_disk::Error::read_only("the source of a rewrite"))
    }

    fn set_len(&self, _len: u64) -> vmwright_disk::Result<()> {
        Err(vmwright_disk::Error::fixed_size("the source of a rewrite"))
    }

    fn flush(&self) -> vmwright_disk::Result<()> {
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> vmwright_disk::Result<Extent> {
        vmwright_disk::check_range(offset, 1, self.len())?;
        let free = self.from(offset).first();
        if let Some(range) = free.filter(|range| range.start <= offset) {
            return Ok(Extent { start: offset, len: range.end - offset, kind: ExtentKind::Zero, depth: 0 });
        }
        let mut extent = self.disk.extent_at(offset)?;
        if let Some(range) = free {
            extent.len = extent.len.min(range.start - offset);
        }
        Ok(extent)
    }
}

/// What giving back or overwriting free space did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct Freed {
    /// The bytes of the disk that are free.
    pub bytes_free: u64,
    /// How many of them were discarded or overwritten; the others held nothing.
    pub bytes_treated: u64,
}

/// Gives the space of what is free back in place, and makes that durable. What could not be given back stays.
///
/// The disk is open for writing in the ordered way, and nothing else changes it meanwhile.
pub fn sparsify(
    disk: &dyn Disk,
    free: &dyn FreeMap,
    cancel: Option<&AtomicBool>,
    progress: Progress<'_>,
) -> Result<Freed> {
    let mut freed = Freed::default();
    each_range(disk, free, &mut |range| {
        go_on(disk, cancel)?;
        freed.bytes_free += range.end - range.start;
        let stored = stored(disk, &range)?;
        if stored > 0 {
            // All of it at once: only whole clusters can be given back.
            disk.discard(range.start, range.end - range.start)?;
            freed.bytes_treated += stored;
        }
        progress(range.end, disk.len());
        Ok(())
    })?;
    disk.flush()?;
    Ok(freed)
}

/// How many bytes of a range are not known to be zeros.
fn stored(disk: &dyn Disk, range: &Range<u64>) -> Result<u64> {
    let (mut at, mut stored) = (range.start, 0);
    while at < range.end {
        let extent = disk.extent_at(at)?;
        let end = extent.end().min(range.end);
        stored += if extent.is_zero() { 0 } else { end - at };
        at = end;
    }
    Ok(stored)
}

/// What free space is overwritten with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Fill {
    /// Zeros; what is known to be zeros is left alone.
    #[default]
    Zeros,
    /// Bytes that nobody can tell from encrypted ones; all of the free space then takes room on the host.
    Random,
}

/// Overwrites what is free in place, and makes that durable.
///
/// What the format keeps elsewhere stays: backing files, internal snapshots, clusters that were given up before.
pub fn wipe(
    disk: &dyn Disk,
    free: &dyn FreeMap,
    fill: Fill,
    cancel: Option<&AtomicBool>,
    progress: Progress<'_>,
) -> Result<Freed> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|_| Error::unsupported("wiping without random numbers"))?;
    let mut random = blake3::Hasher::new_keyed(&seed).finalize_xof();
    let mut buffer = vec![0; PIECE as usize];
    let mut freed = Freed::default();
    each_range(disk, free, &mut |range| {
        freed.bytes_free += range.end - range.start;
        let mut at = range.start;
        while at < range.end {
            go_on(disk, cancel)?;
            let extent = disk.extent_at(at)?;
            let mut end = range.end.min(at + PIECE);
            if fill == Fill::Zeros && extent.is_zero() {
                at = extent.end().min(range.end);
                continue;
            }
            if fill == Fill::Zeros {
                end = end.min(extent.end());
            }
            let piece = &mut buffer[..(end - at) as usize];
            if fill == Fill::Random {
                random.fill(piece);
            }
            disk.write_at(piece, at)?;
            freed.bytes_treated += end - at;
            at = end;
            progress(at, disk.len());
        }
        Ok(())
    })?;
    disk.flush()?;
    Ok(freed)
}

/// Fails if the work was cancelled; what was done so far is made durable.
fn go_on(disk: &dyn Disk, cancel: Option<&AtomicBool>) -> Result<()> {
    if cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
        disk.flush()?;
        return Err(Reason::Cancelled.into());
    }
    Ok(())
}
