use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vmwright_disk::{Disk, HostFile, Transaction};

use super::early::{Unnamed, written_early};
use super::options::{ConvertOptions, Converted};
use super::pace::Pace;
use super::resume::{self, Progressing};
use super::sum::Sum;
use super::transfer::{Checkpoint, Transfer};
use super::{Progress, verify};
use crate::create::FreshImage;
use crate::{CreateOptions, Error, Format, FormatChoice, Image, OpenOptions, Result};

/// Makes an image file that holds what `source` shows now.
///
/// The file appears under its name only when it is complete and durable. A block device is overwritten in place, which
/// [`Converted::atomic`] says, and only with a raw image.
pub fn convert(
    source: &dyn Disk,
    target: &Path,
    options: &ConvertOptions,
    progress: Progress<'_>,
) -> Result<Converted> {
    convert_in(None, source, target, options, progress)
}

/// Does what [`convert`] does; within a transaction, the new image takes the place of one that is open for writing in it.
pub(super) fn convert_in(
    transaction: Option<&Transaction>,
    source: &dyn Disk,
    target: &Path,
    options: &ConvertOptions,
    progress: Progress<'_>,
) -> Result<Converted> {
    let pace = Pace::new(options.cancel.clone(), options.rate_limit);
    if HostFile::open_forced(target).is_ok_and(|file| file.is_block_device()) {
        return to_device(source, target, options, &pace, progress);
    }
    let create = CreateOptions {
        secret: options.secret.clone(),
        backing: options.base.as_ref().map(|base| base.name.clone()),
        parent: options.base.as_ref().and_then(|base| base.parent),
        ..CreateOptions::laid_out(options.layout.clone(), source.len())
    };
    let record = options.resume.as_ref().map(|identity| resume::digest(identity, source.len(), options));
    let (fresh, start) = match (record, transaction) {
        (None, Some(transaction)) => (FreshImage::replacing(transaction, target, &create)?, 0),
        (None, None) => (FreshImage::begin(target, &create, options.force)?, 0),
        (Some(record), _) => resume::begin(target, &create, options.force, record)?,
    };
    let unnamed = |file| Arc::new(Unnamed::new(file));
    let files: Vec<Arc<Unnamed>> = match record {
        None => std::iter::once(fresh.file()).chain(fresh.parts()).map(unnamed).collect(),
        Some(_) => Vec::new(),
    };
    let (file, parts): (Arc<dyn Disk>, _) = match files.split_first() {
        Some((file, parts)) => (file.clone(), parts.iter().map(|part| part.clone() as _).collect()),
        // What is to be gone on with has to be durable from time to time.
        None => (fresh.file(), fresh.parts()),
    };
    let how = OpenOptions {
        parts,
        secret: options.secret.clone(),
        backing: options.base.as_ref().map(|base| base.disk.clone()),
        ..OpenOptions::default()
    };
    let image = Image::open(file.clone(), FormatChoice::Exact(options.layout.format()), how)?;
    if record.is_some() && image.driver().packs_only() {
        // It ends with the first flush.
        return Err(Error::unsupported("going on with a copy to an image that is written in one go"));
    }
    let progressing = record.map(|record| Progressing::new(&fresh, &image, record, start));
    let checkpoint = |done, last| match &progressing {
        Some(progressing) if last => progressing.end(done),
        Some(progressing) => progressing.note(done),
        None => Ok(()),
    };
    let plain = start == 0 && options.layout.format() == Format::Raw;
    let host = plain.then(|| fresh.host_file());
    let file = (start == 0).then_some(file);
    let job = Job { source, options, pace: &pace, start, file, host, overwrite: false };
    let converted =
        written_early(&files, || job.run(&image, Some(&checkpoint), progress)).inspect_err(|error| {
            if error.is_not_verified() {
                // What is wrong is no beginning of anything.
                fresh.keep(false);
            }
        })?;
    drop(image);
    fresh.commit()?;
    Ok(Converted { atomic: true, ..converted })
}

/// Overwrites a block device.
fn to_device(
    source: &dyn Disk,
    target: &Path,
    options: &ConvertOptions,
    pace: &Pace,
    progress: Progress<'_>,
) -> Result<Converted> {
    if !options.force {
        let exists = std::io::ErrorKind::AlreadyExists.into();
        return Err(vmwright_disk::Error::host("overwrite", target, exists).into());
    }
    if options.layout.format() != Format::Raw {
        return Err(Error::unsupported("an image in another format than raw on a block device"));
    }
    if options.resume.is_some() {
        return Err(Error::unsupported("going on with a copy to a block device"));
    }
    if options.base.is_some() {
        return Err(Error::invalid("a raw image", "the raw format has no backing files"));
    }
    let file: Arc<dyn Disk> = Arc::new(HostFile::open(target, false)?);
    let image = Image::open(file, FormatChoice::Exact(Format::Raw), OpenOptions::default())?;
    let job = Job { source, options, pace, start: 0, file: None, host: None, overwrite: true };
    job.run(&image, None, progress)
}

/// One conversion, its target made.
struct Job<'a> {
    source: &'a dyn Disk,
    options: &'a ConvertOptions,
    pace: &'a Pace,
    start: u64,
    file: Option<Arc<dyn Disk>>,
    host: Option<Arc<HostFile>>,
    overwrite: bool,
}

impl Job<'_> {
    /// Copies, flushes and verifies.
    fn run(
        self,
        image: &Image,
        checkpoint: Option<Checkpoint<'_>>,
        progress: Progress<'_>,
    ) -> Result<Converted> {
        let Self { source, options, pace, start, .. } = self;
        let sum = Sum::default();
        let transfer = Transfer {
            file: self.file,
            host: self.host,
            base: options.base.as_ref().map(|base| &*base.disk),
            overwrite: self.overwrite || !image.driver().new_shows_zeros(),
            level: options.level,
            threads: options.threads.max(1),
            find_zeros: options.find_zeros || options.base.is_some(),
            may_share: options.share,
            sum: options.verify.then_some(&sum),
            checkpoint,
            start,
            ..Transfer::new(source, image, options.compress, pace)?
        };
        transfer.run(progress)?;
        image.flush()?;
        if options.verify {
            verify::sum(source, 0, start, &sum, transfer.threads, pace)?;
            verify::check(image, source.len(), &sum, transfer.threads, pace)?;
        }
        Ok(Converted {
            atomic: false,
            bytes_read: transfer.read.load(Ordering::Relaxed),
            bytes_written: transfer.written.load(Ordering::Relaxed),
            resumed_from: start,
            verified: options.verify,
        })
    }
}

/// Copies what is not zero in `source` to `target`, a new image at least as long that holds only zeros.
///
/// The caller flushes.
pub fn copy_data(
    source: &dyn Disk,
    target: &Image,
    compress: bool,
    threads: usize,
    progress: Progress<'_>,
) -> Result<()> {
    let pace = Pace::default();
    Transfer { threads: threads.max(1), ..Transfer::new(source, target, compress, &pace)? }.run(progress)
}
