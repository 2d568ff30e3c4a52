use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmwright_disk::{Disk, Extent};

use super::Progress;
use super::pace::Pace;
use crate::Result;

/// The most bytes that a worker treats at a time, unless units are larger: what a processor's cache holds.
pub(super) const CHUNK: u64 = 1 << 20;

/// Fewer zeros than this in a row are read with what is around them.
const GAP: u64 = 64 << 10;

/// Hands the ranges out in which at least one of some disks may hold something else than zeros, in their order.
pub(super) struct Chunks<'a> {
    disks: &'a [&'a dyn Disk],
    /// Ranges begin and end at multiples of this, or at the end.
    granule: u64,
    size: u64,
    len: u64,
    cursor: Mutex<Cursor>,
    done: AtomicU64,
    stopped: AtomicBool,
    pace: &'a Pace,
    progress: Progress<'a>,
    on_gap: OnGap<'a>,
}

/// Is told which ranges hold only zeros: where they begin, and their length.
pub(super) type OnGap<'a> = Option<&'a (dyn Fn(u64, u64) -> Result<()> + Sync)>;

struct Cursor {
    next: u64,
    number: u64,
    /// The last answer of each disk: asking costs system calls, and an answer mostly holds for many chunks.
    known: Vec<Option<Extent>>,
    /// Where the chunks begin that are not done.
    under_way: BTreeSet<u64>,
}

/// A range of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) start: u64,
    pub(super) len: u64,
    /// The how-manieth it is.
    pub(super) number: u64,
}

impl<'a> Chunks<'a> {
    pub(super) fn new(
        disks: &'a [&'a dyn Disk],
        granule: u64,
        size: u64,
        pace: &'a Pace,
        progress: Progress<'a>,
    ) -> Self {
        let len = disks.iter().map(|disk| disk.len()).max().unwrap_or(0);
        let known = vec![None; disks.len()];
        let cursor = Mutex::new(Cursor { next: 0, number: 0, known, under_way: BTreeSet::new() });
        let (done, stopped) = (AtomicU64::new(0), AtomicBool::new(false));
        let size = size.max(granule);
        Self { disks, granule, size, len, cursor, done, stopped, pace, progress, on_gap: None }
    }

    /// Tells `on_gap` of the ranges that are not handed out.
    pub(super) fn on_gap(self, on_gap: OnGap<'a>) -> Self {
        Self { on_gap, ..self }
    }

    /// Leaves out what is from `end` on, a multiple of the granule or the end.
    pub(super) fn until(self, end: u64) -> Self {
        Self { len: self.len.min(end), ..self }
    }

    /// Leaves out what is before `start`, a multiple of the granule.
    pub(super) fn skip_to(&self, start: u64) {
        let start = start.min(self.len);
        self.cursor().next = start;
        self.advance(start);
    }

    fn cursor(&self) -> MutexGuard<'_, Cursor> {
        self.cursor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next range, or `None` at the end.
    fn next(&self) -> Result<Option<Chunk>> {
        let mut cursor = self.cursor();
        while cursor.next < self.len && !self.stopped.load(Ordering::Relaxed) {
            self.pace.check()?;
            let start = cursor.next;
            let zeros = self.zeros_until(&mut cursor, start)?;
            let whole = zeros - zeros % self.granule;
            if zeros >= self.len || whole > start {
                cursor.next = if zeros >= self.len { self.len } else { whole };
                if let Some(on_gap) = self.on_gap {
                    on_gap(start, cursor.next - start)?;
                }
                self.advance(cursor.next - start);
                continue;
            }
            let end = self.data_until(&mut cursor, start)?.next_multiple_of(self.granule).min(self.len);
            let number = cursor.number;
            (cursor.next, cursor.number) = (end, number + 1);
            cursor.under_way.insert(start);
            return Ok(Some(Chunk { start, len: end - start, number }));
        }
        Ok(None)
    }

    /// Whether a disk holds zeros at `at`, and up to where that answer holds.
    fn known(&self, cursor: &mut Cursor, index: usize, at: u64) -> Result<(bool, u64)> {
        let extent = match cursor.known[index] {
            Some(extent) if extent.start <= at && at < extent.end() => extent,
            _ => *cursor.known[index].insert(self.disks[index].extent_at(at)?),
        };
        Ok((extent.is_zero(), extent.end()))
    }

    /// How far from `start` on every disk is known to hold zeros; `start` itself if not at all.
    fn zeros_until(&self, cursor: &mut Cursor, start: u64) -> Result<u64> {
        let mut until = self.len;
        for (index, disk) in self.disks.iter().enumerate().filter(|(_, disk)| start < disk.len()) {
            let (zero, end) = self.known(cursor, index, start)?;
            if !zero {
                return Ok(start);
            }
            // Past the end of a disk there are zeros again.
            until = until.min(if end >= disk.len() { self.len } else { end });
        }
        Ok(until)
    }

    /// How far from `start` on some disk may hold data, but no further than one chunk; few zeros do not count.
    fn data_until(&self, cursor: &mut Cursor, start: u64) -> Result<u64> {
        let limit = start.saturating_add(self.size).min(self.len);
        let mut until = start;
        while until < limit {
            let zeros = self.zeros_until(cursor, until)?;
            if zeros > until {
                // The first of a chunk are part of a unit that holds data.
                if until > start && (zeros - until >= GAP || zeros >= self.len) {
                    break;
                }
                until = zeros;
                continue;
            }
            let here = until;
            for (index, disk) in self.disks.iter().enumerate() {
                if here >= disk.len() {
                    continue;
                }
                let (zero, end) = self.known(cursor, index, here)?;
                if !zero {
                    until = until.max(end);
                }
            }
        }
        Ok(until.min(limit))
    }

    fn advance(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        (self.progress)(done, self.len);
    }

    /// Notes that everything about a range is done.
    pub(super) fn finish(&self, chunk: Chunk) {
        self.cursor().under_way.remove(&chunk.start);
        self.advance(chunk.len);
    }

    /// Up to where everything is done.
    pub(super) fn done_until(&self) -> u64 {
        let cursor = self.cursor();
        cursor.under_way.first().copied().unwrap_or(cursor.next)
    }

    /// Lets no more ranges out.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Does work on every range, on so many threads; the work calls [`Chunks::finish`]. The first error ends it, and `on_stop` wakes whoever waits then.
    pub(super) fn each<W>(
        &self,
        threads: usize,
        prepare: impl Fn() -> Result<W> + Sync,
        work: impl Fn(&mut W, Chunk) -> Result<()> + Sync,
        on_stop: impl Fn() + Sync,
    ) -> Result<()> {
        let first_error = Mutex::new(None);
        let stop = || {
            self.stop();
            on_stop();
        };
        let all = || {
            let mut worker = prepare()?;
            while let Some(chunk) = self.next()? {
                self.pace.admit(chunk.len)?;
                work(&mut worker, chunk)?;
            }
            Ok(())
        };
        let worker = || {
            let guard = OnPanic(&stop);
            if let Err(error) = all() {
                // Before the others stop for want of this one: theirs would not be the cause.
                first_error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                stop();
            }
            drop(guard);
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

/// Stops the other threads when this one panics, so that none waits for ever.
struct OnPanic<'a>(&'a dyn Fn());

impl Drop for OnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            (self.0)();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmwright_disk::MemDisk;

    fn ranges(disks: &[&dyn Disk], granule: u64, size: u64) -> Vec<(u64, u64)> {
        let pace = Pace::default();
        let chunks = Chunks::new(disks, granule, size, &pace, &|_, _| {});
        std::iter::from_fn(|| chunks.next().unwrap()).map(|chunk| (chunk.start, chunk.len)).collect()
    }

    #[test]
    fn ranges_are_in_order_and_cover_all_data_once() {
        let disk = MemDisk::new(1 << 20);
        assert_eq!(
            ranges(&[&disk], 4096, 1 << 18),
            vec![(0, 1 << 18), (1 << 18, 1 << 18), (1 << 19, 1 << 18), (3 << 18, 1 << 18)]
        );
        let short = MemDisk::new(5000);
        assert_eq!(ranges(&[&short], 4096, 4096), vec![(0, 4096), (4096, 904)]);
    }

    #[test]
    fn what_is_done_is_known_although_later_chunks_are_done_earlier() {
        let disk = MemDisk::new(1 << 20);
        let pace = Pace::default();
        let disks: [&dyn Disk; 1] = [&disk];
        let chunks = Chunks::new(&disks, 4096, 1 << 18, &pace, &|_, _| {});
        let (first, second) = (chunks.next().unwrap().unwrap(), chunks.next().unwrap().unwrap());
        chunks.finish(second);
        assert_eq!(chunks.done_until(), 0);
        chunks.finish(first);
        assert_eq!(chunks.done_until(), 2 << 18);
    }
}
