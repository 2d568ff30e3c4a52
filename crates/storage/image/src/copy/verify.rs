use vmwright_disk::Disk;

use super::chunks::{CHUNK, Chunks};
use super::pace::Pace;
use super::sum::Sum;
use super::transfer::read_chunk;
use crate::Result;
use crate::error::Reason;

/// Enters what a disk shows from `start` to `end` into a sum.
pub(super) fn sum(
    disk: &dyn Disk,
    start: u64,
    end: u64,
    sum: &Sum,
    threads: usize,
    pace: &Pace,
) -> Result<()> {
    if start >= end {
        return Ok(());
    }
    let disks = [disk];
    let chunks = Chunks::new(&disks, 4096, CHUNK, pace, &|_, _| {}).until(end);
    chunks.skip_to(start);
    let work = |buffer: &mut Vec<u8>, chunk| {
        read_chunk(disk, chunk, buffer)?;
        sum.add(chunk.start, buffer);
        chunks.finish(chunk);
        Ok(())
    };
    chunks.each(threads, || Ok(Vec::new()), work, || {})
}

/// Reads the new image again; what it shows must have the sum of what was read from a source of `len` bytes.
pub(super) fn check(image: &dyn Disk, len: u64, expected: &Sum, threads: usize, pace: &Pace) -> Result<()> {
    let found = Sum::default();
    sum(image, 0, image.len().max(len), &found, threads, pace)?;
    match found.value() == expected.value() {
        true => Ok(()),
        false => Err(Reason::NotVerified.into()),
    }
}
