//! The copying itself: threads that read, look for zeros and pack or write.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vmwright_disk::{Disk, ExtentKind, FileId, HostFile};

use super::chunks::{CHUNK, Chunk, Chunks};
use super::order::Order;
use super::pace::Pace;
use super::sum::Sum;
use super::{Progress, is_zero};
use crate::driver::{Compressor, Packer, Place, Placing};
use crate::error::Reason;
use crate::{Error, Image, Result};

/// Blocks of so many bytes are left out of raw images where they are zero.
const RAW_BLOCK: u64 = 4096;

/// How much is packed at a time, unless units are larger.
const PACKED_CHUNK: u64 = 256 << 10;

/// Threads that do not pack keep no more bytes than this together, unless one alone does.
const MEMORY: usize = 64 << 20;

/// Notes how far a copy is, given that and whether it ends there.
pub(super) type Checkpoint<'a> = &'a (dyn Fn(u64, bool) -> Result<()> + Sync);

/// One copy of what a disk shows to an image.
pub(super) struct Transfer<'a> {
    pub(super) source: &'a dyn Disk,
    pub(super) target: &'a Image,
    /// The file of the target where it holds nothing so far, so that places in it can be written plainly.
    pub(super) file: Option<Arc<dyn Disk>>,
    /// The file of the target where it is the disk itself, byte for byte, and new.
    pub(super) host: Option<Arc<HostFile>>,
    /// What shows where the target holds nothing.
    pub(super) base: Option<&'a dyn Disk>,
    /// Whether the target may hold anything where the source holds zeros.
    pub(super) overwrite: bool,
    pub(super) packer: Option<&'a dyn Packer>,
    pub(super) level: Option<i32>,
    pub(super) threads: usize,
    pub(super) find_zeros: bool,
    /// Whether the target may share the source's bytes, zeros among them.
    pub(super) may_share: bool,
    pub(super) pace: &'a Pace,
    /// What was read, if that is to be compared.
    pub(super) sum: Option<&'a Sum>,
    pub(super) read: AtomicU64,
    pub(super) written: AtomicU64,
    /// Notes how far the copy is, given that and whether it ends there.
    pub(super) checkpoint: Option<Checkpoint<'a>>,
    pub(super) start: u64,
}

impl<'a> Transfer<'a> {
    pub(super) fn new(
        source: &'a dyn Disk,
        target: &'a Image,
        compress: bool,
        pace: &'a Pace,
    ) -> Result<Self> {
        if target.len() < source.len() {
            return Err(Error::invalid("a copy", "the target is smaller than the source"));
        }
        let packer = match (compress || target.driver().packs_only(), target.driver().packer()) {
            (false, _) => None,
            (true, Some(packer)) => Some(packer),
            (true, None) => return Err(Error::unsupported("compression in this format")),
        };
        Ok(Self {
            source,
            target,
            file: None,
            host: None,
            base: None,
            overwrite: !target.driver().new_shows_zeros(),
            packer,
            level: None,
            threads: 1,
            find_zeros: true,
            may_share: true,
            pace,
            sum: None,
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
            checkpoint: None,
            start: 0,
        })
    }

    /// Copies everything; the caller flushes.
    pub(super) fn run(&self, progress: Progress<'_>) -> Result<()> {
        let placing = match (&self.file, self.packer) {
            (Some(_), None) => self.target.driver().place(0, 0, &mut Vec::new())?,
            _ => Placing::InOrder,
        };
        let unit = match placing {
            // Units can be very large: what one holds is looked at and written in pieces.
            Placing::Parts => None,
            _ => self.packer.map(|packer| packer.unit() as u64).or(self.target.cluster_size()),
        };
        let granule = unit.unwrap_or(RAW_BLOCK).max(RAW_BLOCK);
        let mut disks = vec![self.source];
        disks.extend(self.base);
        if !self.target.driver().new_shows_zeros() {
            // Such a target knows nothing of zeros, so that all of it is handed out.
            disks.push(self.target);
        }
        let size = if self.packer.is_some() { PACKED_CHUNK } else { CHUNK };
        let clear = |start, len| self.clear(start, len);
        let chunks = Chunks::new(&disks, granule, size, self.pace, progress);
        let chunks = chunks.on_gap(self.overwrite.then_some(&clear));
        chunks.skip_to(self.start);
        let run = Run {
            transfer: self,
            chunks: &chunks,
            unit: unit.unwrap_or(RAW_BLOCK) as usize,
            order: Order::new(),
            spare: Mutex::default(),
        };
        if self.share()? {
            progress(self.source.len(), self.source.len());
            return Ok(());
        }
        let copied = match self.packer {
            Some(packer) => run.packed(packer),
            None => run.plain(placing),
        };
        if let (Err(_), Some(checkpoint)) = (&copied, self.checkpoint) {
            checkpoint(chunks.done_until(), true)?;
        }
        copied
    }

    /// Makes a range of the target zeros, whatever it holds.
    fn clear(&self, start: u64, len: u64) -> Result<()> {
        let len = len.min(self.target.len().saturating_sub(start));
        Ok(self.target.zero_at(start, len)?)
    }

    /// Whether the host may copy by itself what nobody wants to look at.
    fn by_host(&self) -> Option<&HostFile> {
        self.host.as_deref().filter(|_| self.sum.is_none() && self.base.is_none() && self.start == 0)
    }

    /// Lets the target share the content of the one file whose bytes the source is, where the host can do that; answers
    /// whether it did.
    fn share(&self) -> Result<bool> {
        let Some(host) = self.by_host().filter(|_| self.may_share) else { return Ok(false) };
        let (mut at, mut only): (_, Option<FileId>) = (0, None);
        while at < self.source.len() {
            let extent = self.source.extent_at(at)?;
            match extent.kind {
                ExtentKind::Data { file, offset } if offset == at && only.is_none_or(|only| only == file) => {
                    only = Some(file);
                }
                _ if extent.is_zero() => {}
                _ => return Ok(false),
            }
            at = extent.end();
        }
        let Some(file) = only else { return Ok(false) };
        if !host.share_content(file)? {
            return Ok(false);
        }
        if host.len() != self.source.len() {
            // The file has more than the disk, which may be anything.
            host.set_len(0)?;
            host.set_len(self.source.len())?;
            return Ok(false);
        }
        // A layer in between may have called zeros what the file has something else for.
        self.clear_zeros(host)?;
        Ok(true)
    }

    /// Clears in the target what the source knows to be zeros.
    fn clear_zeros(&self, host: &HostFile) -> Result<()> {
        let mut at = 0;
        while at < self.source.len() {
            let extent = self.source.extent_at(at)?;
            if extent.is_zero() {
                host.zero_at(at, extent.len)?;
            }
            at = extent.end();
        }
        Ok(())
    }

    /// Lets the host copy a chunk that the source keeps plainly in files; answers whether all of it was.
    fn copy_by_host(&self, chunk: Chunk) -> Result<bool> {
        let Some(host) = self.by_host().filter(|_| !self.find_zeros) else { return Ok(false) };
        let end = (chunk.start + chunk.len).min(self.source.len());
        let mut at = chunk.start;
        while at < end {
            let extent = self.source.extent_at(at)?;
            let len = extent.len.min(end - at);
            match extent.kind {
                ExtentKind::Data { file, offset } if host.copy_from(at, file, offset, len)? == len => {
                    self.written.fetch_add(len, Ordering::Relaxed);
                }
                _ if extent.is_zero() => {}
                // What was copied so far is written once more.
                _ => return Ok(false),
            }
            at += len;
        }
        self.read.fetch_add(end - chunk.start, Ordering::Relaxed);
        Ok(true)
    }

    fn read(&self, chunk: Chunk, buffer: &mut Vec<u8>) -> Result<()> {
        read_chunk(self.source, chunk, buffer)?;
        self.read.fetch_add(chunk.len, Ordering::Relaxed);
        if let Some(sum) = self.sum {
            sum.add(chunk.start, buffer);
        }
        Ok(())
    }

    /// What of a chunk has to be stored, by blocks.
    fn runs(&self, chunk: Chunk, bytes: &[u8], block: usize, other: &mut Vec<u8>) -> Result<Vec<Piece>> {
        if let Some(base) = self.base {
            read_chunk(base, chunk, other)?;
            return Ok(runs(bytes, block, |range, data| match data == &other[range] {
                true => Kind::Nothing,
                false if is_zero(data) => Kind::Zeros,
                false => Kind::Data,
            }));
        }
        let zeros = if self.overwrite { Kind::Zeros } else { Kind::Nothing };
        Ok(runs(bytes, block, |_, data| match self.find_zeros && is_zero(data) {
            true => zeros,
            false => Kind::Data,
        }))
    }
}

/// A copy under way.
struct Run<'a> {
    transfer: &'a Transfer<'a>,
    chunks: &'a Chunks<'a>,
    /// What is stored or not stored as one.
    unit: usize,
    order: Order<PackedChunk>,
    /// Buffers that can be used again.
    spare: Mutex<Vec<PackedChunk>>,
}

/// What a thread that does not pack keeps between chunks.
#[derive(Default)]
struct Worker {
    buffer: Vec<u8>,
    other: Vec<u8>,
    places: Vec<Place>,
}

impl Run<'_> {
    fn plain(&self, how: Placing) -> Result<()> {
        let target = self.transfer.target;
        // Where nothing is allocated, nothing depends on the order.
        let any_order = target.cluster_size().is_none();
        let placing = how != Placing::InOrder;
        let file = self.transfer.file.as_deref().filter(|_| matches!(how, Placing::Plain | Placing::Parts));
        let work = |worker: &mut Worker, chunk: Chunk| {
            if self.transfer.copy_by_host(chunk)? {
                return self.finish(chunk);
            }
            self.transfer.read(chunk, &mut worker.buffer)?;
            let Worker { buffer, other, places } = worker;
            let runs = self.transfer.runs(chunk, buffer, self.unit, other)?;
            let turn = !any_order && self.wait(chunk.number, 1)?;
            if placing {
                self.place(chunk, &runs, places)?;
            } else {
                self.write(chunk, buffer, &runs)?;
            }
            if turn {
                self.order.pass();
            }
            if placing {
                self.write_placed(chunk, buffer, places, file)?;
            }
            self.finish(chunk)
        };
        // Each keeps a whole unit, and those of a VHDX may be 256 MiB long.
        let threads = self.transfer.threads.min((MEMORY / self.unit.max(CHUNK as usize)).max(1));
        self.chunks.each(threads, || Ok(Worker::default()), work, || self.order.stop())
    }

    /// Waits for a turn; an error where another thread has failed, whose error counts.
    fn wait(&self, number: u64, window: u64) -> Result<bool> {
        match self.order.wait(number, window) {
            true => Ok(true),
            false => Err(Reason::Cancelled.into()),
        }
    }

    fn finish(&self, chunk: Chunk) -> Result<()> {
        self.chunks.finish(chunk);
        match self.transfer.checkpoint {
            Some(checkpoint) => checkpoint(self.chunks.done_until(), false),
            None => Ok(()),
        }
    }

    fn wrote(&self, bytes: usize) {
        self.transfer.written.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn write(&self, chunk: Chunk, bytes: &[u8], runs: &[Piece]) -> Result<()> {
        for Piece { kind, range } in runs {
            let at = chunk.start + range.start as u64;
            if *kind == Kind::Zeros {
                self.transfer.clear(at, range.len() as u64)?;
                continue;
            }
            self.transfer
                .target
                .write_at(within(&bytes[range.clone()], at, self.transfer.target.len()), at)?;
            self.wrote(range.len());
        }
        Ok(())
    }

    /// Gives data its places, and makes zeros.
    fn place(&self, chunk: Chunk, runs: &[Piece], places: &mut Vec<Place>) -> Result<()> {
        let target = self.transfer.target;
        places.clear();
        for Piece { kind, range } in runs {
            let (at, len) = (chunk.start + range.start as u64, range.len() as u64);
            if *kind == Kind::Zeros {
                self.transfer.clear(at, len)?;
                continue;
            }
            target.driver().place(at, len.min(target.len().saturating_sub(at)), places)?;
        }
        Ok(())
    }

    /// Writes what has its places, while others are given theirs.
    fn write_placed(
        &self,
        chunk: Chunk,
        bytes: &[u8],
        places: &[Place],
        file: Option<&dyn Disk>,
    ) -> Result<()> {
        for Place { offset, host, len } in places {
            let start = (offset - chunk.start) as usize;
            let data = &bytes[start..start + *len as usize];
            let Some(file) = file else {
                self.transfer.target.write_at(data, *offset)?;
                self.wrote(data.len());
                continue;
            };
            for range in self.worth_writing(data) {
                file.write_at(&data[range.clone()], host + range.start as u64)?;
                self.wrote(range.len());
            }
        }
        Ok(())
    }

    /// What of a new place is not zeros already.
    fn worth_writing(&self, data: &[u8]) -> Vec<Range<usize>> {
        if !self.transfer.find_zeros || self.unit as u64 <= RAW_BLOCK {
            // Wanted as it is, or without zeros already.
            return std::iter::once(0..data.len()).collect();
        }
        let kind = |_, data: &[u8]| if is_zero(data) { Kind::Nothing } else { Kind::Data };
        runs(data, RAW_BLOCK as usize, kind).into_iter().map(|piece| piece.range).collect()
    }

    fn packed(&self, packer: &dyn Packer) -> Result<()> {
        let chunk_len = PACKED_CHUNK.max(self.unit as u64);
        // Each keeps a chunk and what it is packed into.
        let most = (MEMORY as u64 / 4 / (2 * chunk_len)).max(1);
        let threads = (self.transfer.threads as u64).min(most);
        // What waits to be stored is kept in memory.
        let window = threads + ((4 << 20) / chunk_len).clamp(1, threads * 2);
        let prepare = || Ok((packer.compressor(self.transfer.level)?, Vec::new()));
        let work = |worker: &mut (Box<dyn Compressor>, Vec<u8>), chunk: Chunk| {
            self.wait(chunk.number, window)?;
            let (compressor, other) = worker;
            let item = self.pack(&mut **compressor, chunk, other)?;
            self.order.submit(chunk.number, item, |item| self.store(packer, item))
        };
        self.chunks.each(threads as usize, prepare, work, || self.order.stop())
    }

    fn pack(
        &self,
        compressor: &mut dyn Compressor,
        chunk: Chunk,
        other: &mut Vec<u8>,
    ) -> Result<PackedChunk> {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut item = spare.unwrap_or_default();
        item.chunk = Some(chunk);
        item.units.clear();
        item.packed.clear();
        self.transfer.read(chunk, &mut item.bytes)?;
        for Piece { kind, range } in self.transfer.runs(chunk, &item.bytes, self.unit, other)? {
            if kind == Kind::Zeros {
                item.units.push(Unit::Zeros(range));
                continue;
            }
            for start in range.clone().step_by(self.unit) {
                let plain = start..(start + self.unit).min(range.end);
                let smaller = compressor.pack(&item.bytes[plain.clone()], &mut item.one)?;
                item.units.push(match smaller {
                    true => {
                        let begin = item.packed.len();
                        item.packed.extend_from_slice(&item.one);
                        Unit::Packed(plain, begin..item.packed.len())
                    }
                    false => Unit::Plain(plain),
                });
            }
        }
        Ok(item)
    }

    fn store(&self, packer: &dyn Packer, item: PackedChunk) -> Result<()> {
        let Some(chunk) = item.chunk else { return Ok(()) };
        let at = |range: &Range<usize>| chunk.start + range.start as u64;
        for unit in &item.units {
            match unit {
                Unit::Zeros(range) => self.transfer.clear(at(range), range.len() as u64)?,
                Unit::Plain(range) => {
                    let at = at(range);
                    let data = within(&item.bytes[range.clone()], at, self.transfer.target.len());
                    packer.store(at, data, None)?;
                    self.wrote(range.len());
                }
                Unit::Packed(range, packed) => {
                    let packed = &item.packed[packed.clone()];
                    packer.store(at(range), &item.bytes[range.clone()], Some(packed))?;
                    self.wrote(packed.len());
                }
            }
        }
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).push(item);
        self.finish(chunk)
    }
}

/// A chunk that waits to be stored.
#[derive(Default)]
struct PackedChunk {
    chunk: Option<Chunk>,
    bytes: Vec<u8>,
    packed: Vec<u8>,
    units: Vec<Unit>,
    /// One unit packed.
    one: Vec<u8>,
}

/// A unit of a packed chunk, by its range of the bytes.
enum Unit {
    Zeros(Range<usize>),
    Plain(Range<usize>),
    /// And its range of what is packed.
    Packed(Range<usize>, Range<usize>),
}

/// What becomes of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Nothing,
    Zeros,
    Data,
}

/// Blocks in a row of which the same becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Piece {
    kind: Kind,
    range: Range<usize>,
}

/// The runs of blocks of which something becomes.
fn runs(bytes: &[u8], block: usize, kind: impl Fn(Range<usize>, &[u8]) -> Kind) -> Vec<Piece> {
    let mut runs: Vec<Piece> = Vec::new();
    for (index, data) in bytes.chunks(block).enumerate() {
        let range = index * block..index * block + data.len();
        let kind = kind(range.clone(), data);
        match runs.last_mut() {
            Some(last) if last.kind == kind && last.range.end == range.start => last.range.end = range.end,
            _ if kind != Kind::Nothing => runs.push(Piece { kind, range }),
            _ => {}
        }
    }
    runs
}

/// What of `bytes` at `at` lies within a disk of `len` bytes.
fn within(bytes: &[u8], at: u64, len: u64) -> &[u8] {
    let there = usize::try_from(len.saturating_sub(at)).unwrap_or(usize::MAX);
    &bytes[..bytes.len().min(there)]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_blocks_that_are_not_zero_are_found() {
        let mut bytes = vec![0; 1000];
        (bytes[150], bytes[250], bytes[999]) = (1, 1, 1);
        let found = runs(&bytes, 100, |_, data| if is_zero(data) { Kind::Nothing } else { Kind::Data });
        let ranges: Vec<_> = found.into_iter().map(|run| run.range).collect();
        assert_eq!(ranges, [100..300, 900..1000]);
    }
}
