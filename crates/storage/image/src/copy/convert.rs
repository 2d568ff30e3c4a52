use std::path::Path;

use vmwright_crypt::Passphrase;
use vmwright_disk::Disk;

use super::chunks::{Chunk, Chunks};
use super::{Progress, is_zero};
use crate::create::FreshImage;
use crate::{CreateOptions, Error, Format, FormatChoice, Image, Layout, OpenOptions, Result};

/// Blocks of so many bytes are left out of raw images where they are zero.
const RAW_BLOCK: u64 = 4096;

/// What a disk is converted to.
#[derive(Debug, Clone)]
pub struct ConvertOptions {
    /// The format, and how the image is laid out.
    pub layout: Layout,
    /// What opens the new image, if it is to be encrypted.
    pub secret: Option<Passphrase>,
    /// Whether the content is compressed, in formats that can.
    pub compress: bool,
    /// How many threads work; at least one does.
    pub threads: usize,
    /// Whether an existing file is replaced.
    pub force: bool,
}

impl ConvertOptions {
    /// The format's defaults, with four threads.
    pub fn new(format: Format) -> Self {
        Self { layout: Layout::new(format), secret: None, compress: false, threads: 4, force: false }
    }
}

/// Makes an image file that holds what `source` shows now.
///
/// The file appears under its name only when it is complete and durable.
pub fn convert(
    source: &dyn Disk,
    target: &Path,
    options: &ConvertOptions,
    progress: Progress<'_>,
) -> Result<()> {
    let layout = options.layout.clone();
    let create =
        CreateOptions { secret: options.secret.clone(), ..CreateOptions::laid_out(layout, source.len()) };
    let fresh = FreshImage::begin(target, &create, options.force)?;
    let exact = FormatChoice::Exact(options.layout.format());
    let how = OpenOptions { parts: fresh.parts(), secret: options.secret.clone(), ..OpenOptions::default() };
    let image = Image::open(fresh.file(), exact, how)?;
    copy_data(source, &image, options.compress, options.threads, progress)?;
    image.flush()?;
    drop(image);
    fresh.commit()
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
    if target.len() < source.len() {
        return Err(Error::invalid("a copy", "the target is smaller than the source"));
    }
    let packer = match (compress, target.driver().packer()) {
        (false, _) => None,
        (true, Some(packer)) => Some(packer),
        (true, None) => return Err(Error::unsupported("compression in this format")),
    };
    let granule = target.cluster_size().unwrap_or(RAW_BLOCK);
    let whole = !target.driver().new_shows_zeros();
    // Such a target knows nothing of zeros, so that all of it is handed out.
    let disks: &[&dyn Disk] = if whole { &[source, target] } else { &[source] };
    Chunks::new(disks, granule, progress).each(threads, |chunk, buffer| {
        read_chunk(source, chunk, buffer)?;
        let runs = match whole {
            true => std::iter::once(0..buffer.len()).collect(),
            false => nonzero_runs(buffer, granule as usize),
        };
        for run in runs {
            let at = chunk.start + run.start as u64;
            match packer {
                Some(packer) => {
                    let (mut compressor, mut packed) = (packer.compressor(None)?, Vec::new());
                    for (index, unit) in buffer[run].chunks(packer.unit()).enumerate() {
                        let at = at + (index * packer.unit()) as u64;
                        let smaller = compressor.pack(unit, &mut packed)?;
                        packer.store(at, unit, smaller.then_some(&packed[..]))?;
                    }
                }
                None => target.write_at(&buffer[run], at)?,
            }
        }
        Ok(())
    })
}

/// Fills the buffer with a range of a disk that may end before the range does.
pub(super) fn read_chunk(disk: &dyn Disk, chunk: Chunk, buffer: &mut Vec<u8>) -> Result<()> {
    buffer.resize(chunk.len as usize, 0);
    let there = disk.len().saturating_sub(chunk.start).min(chunk.len) as usize;
    let (present, missing) = buffer.split_at_mut(there);
    missing.fill(0);
    if !present.is_empty() {
        disk.read_at(present, chunk.start)?;
    }
    Ok(())
}

/// The runs of blocks that are not zero.
fn nonzero_runs(bytes: &[u8], block: usize) -> Vec<std::ops::Range<usize>> {
    let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
    for (index, data) in bytes.chunks(block).enumerate().filter(|(_, data)| !is_zero(data)) {
        let (start, end) = (index * block, index * block + data.len());
        match runs.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => runs.push(start..end),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_blocks_that_are_not_zero_are_found() {
        let mut bytes = vec![0; 1000];
        (bytes[150], bytes[250], bytes[999]) = (1, 1, 1);
        assert_eq!(nonzero_runs(&bytes, 100), [100..300, 900..1000]);
    }
}
