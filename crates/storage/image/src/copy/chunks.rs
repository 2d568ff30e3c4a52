use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use vmwright_disk::Disk;

use super::Progress;
use crate::Result;

/// The most bytes that a worker treats at a time.
pub(super) const CHUNK: u64 = 2 << 20;

/// Hands the ranges out in which at least one of some disks may hold something else than zeros.
pub(super) struct Chunks<'a> {
    disks: &'a [&'a dyn Disk],
    /// Ranges begin and end at multiples of this, or at the end.
    granule: u64,
    len: u64,
    next: Mutex<u64>,
    done: AtomicU64,
    stopped: AtomicBool,
    progress: Progress<'a>,
}

/// A range of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) start: u64,
    pub(super) len: u64,
}

impl<'a> Chunks<'a> {
    pub(super) fn new(disks: &'a [&'a dyn Disk], granule: u64, progress: Progress<'a>) -> Self {
        let len = disks.iter().map(|disk| disk.len()).max().unwrap_or(0);
        Self {
            disks,
            granule,
            len,
            next: Mutex::new(0),
            done: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            progress,
        }
    }

    /// The next range, or `None` at the end.
    fn next(&self) -> Result<Option<Chunk>> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        while *next < self.len && !self.stopped.load(Ordering::Relaxed) {
            let start = *next;
            let zeros = self.zeros_until(start)?;
            let whole = zeros - zeros % self.granule;
            if zeros >= self.len || whole > start {
                *next = if zeros >= self.len { self.len } else { whole };
                self.advance(*next - start);
                continue;
            }
            let end = self.data_until(start)?.next_multiple_of(self.granule).min(self.len);
            *next = end;
            return Ok(Some(Chunk { start, len: end - start }));
        }
        Ok(None)
    }

    /// How far from `start` on every disk is known to hold zeros; `start` itself if not at all.
    fn zeros_until(&self, start: u64) -> Result<u64> {
        let mut until = self.len;
        for disk in self.disks.iter().filter(|disk| start < disk.len()) {
            let extent = disk.extent_at(start)?;
            if !extent.is_zero() {
                return Ok(start);
            }
            // Past the end of a disk there are zeros again.
            until = until.min(if extent.end() >= disk.len() { self.len } else { extent.end() });
        }
        Ok(until)
    }

    /// How far from `start` on some disk may hold data, but no further than one chunk.
    fn data_until(&self, start: u64) -> Result<u64> {
        let limit = start.saturating_add(CHUNK.max(self.granule));
        let mut until = start + 1;
        for disk in self.disks.iter().filter(|disk| start < disk.len()) {
            let extent = disk.extent_at(start)?;
            if !extent.is_zero() {
                until = until.max(extent.end());
            }
        }
        Ok(until.min(limit))
    }

    fn advance(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        (self.progress)(done, self.len);
    }

    /// Lets no more ranges out.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Does `work` on every range, on so many threads; the first error ends it.
    pub(super) fn each(
        &self,
        threads: usize,
        work: impl Fn(Chunk, &mut Vec<u8>) -> Result<()> + Sync,
    ) -> Result<()> {
        let first_error = Mutex::new(None);
        let worker = || {
            let mut buffer = Vec::new();
            let all = || {
                while let Some(chunk) = self.next()? {
                    work(chunk, &mut buffer)?;
                    self.advance(chunk.len);
                }
                Ok(())
            };
            let mut all = all;
            if let Err(error) = all() {
                self.stop();
                first_error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(worker);
            }
            worker();
        });
        first_error.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }
}
