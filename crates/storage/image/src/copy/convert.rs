use std::path::Path;
use std::sync::Arc;

use vmwright_disk::{Disk, FreshFile};

use super::chunks::{Chunk, Chunks};
use super::{Progress, is_zero};
use crate::{
    BackingFile, CreateOptions, Error, Format, FormatChoice, Image, OpenOptions, Qcow2Options, Result,
    create_on,
};

/// Blocks of so many bytes are left out of raw images where they are zero.
const RAW_BLOCK: u64 = 4096;

/// What a disk is converted to.
#[derive(Debug, Clone)]
pub struct ConvertOptions {
    /// The format.
    pub format: Format,
    /// How a qcow2 image is laid out.
    pub qcow2: Qcow2Options,
    /// Whether clusters are compressed by deflate; qcow2 only.
    pub compress: bool,
    /// How many threads work; at least one does.
    pub threads: usize,
    /// Whether an existing file is replaced.
    pub force: bool,
}

impl ConvertOptions {
    /// The format's defaults, with four threads.
    pub fn new(format: Format) -> Self {
        Self { format, qcow2: Qcow2Options::default(), compress: false, threads: 4, force: false }
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
    if options.compress && options.format != Format::Qcow2 {
        return Err(Error::invalid("a conversion", "only qcow2 images can be compressed"));
    }
    let fresh = FreshFile::create(target, options.force)?;
    let file: Arc<dyn Disk> = fresh.disk();
    let backing: Option<BackingFile> = None;
    let create =
        CreateOptions { format: options.format, size: source.len(), backing, qcow2: options.qcow2.clone() };
    create_on(&file, &create)?;
    let image = Image::open(file, FormatChoice::Exact(options.format), OpenOptions::default())?;
    copy_data(source, &image, options.compress, options.threads, progress)?;
    image.flush()?;
    drop(image);
    Ok(fresh.commit()?)
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
    let granule = target.cluster_size().unwrap_or(RAW_BLOCK);
    let disks = [source];
    Chunks::new(&disks, granule, progress).each(threads, |chunk, buffer| {
        read_chunk(source, chunk, buffer)?;
        for run in nonzero_runs(buffer, granule as usize) {
            let at = chunk.start + run.start as u64;
            match compress {
                true => target.write_compressed(&buffer[run], at)?,
                false => target.write_at(&buffer[run], at)?,
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
