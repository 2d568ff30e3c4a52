use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmwright_disk::{Disk, Extent, ExtentKind, Result, check_range};

use super::is_zero;

/// Memory is taken by pieces of so many bytes.
const PIECE: u64 = 4096;

/// A file in memory that takes none for zeros, however long it is.
#[derive(Default)]
pub(super) struct Phantom(Mutex<Content>);

#[derive(Default)]
struct Content {
    len: u64,
    pieces: HashMap<u64, Box<[u8]>>,
}

impl Phantom {
    fn lock(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Content {
    fn write(&mut self, mut data: &[u8], mut offset: u64) {
        while !data.is_empty() {
            let skip = offset % PIECE;
            let (now, rest) = data.split_at(data.len().min((PIECE - skip) as usize));
            let index = offset / PIECE;
            if !is_zero(now) || self.pieces.contains_key(&index) {
                let piece = self.pieces.entry(index).or_insert_with(|| vec![0; PIECE as usize].into());
                piece[skip as usize..][..now.len()].copy_from_slice(now);
            }
            offset += now.len() as u64;
            data = rest;
        }
    }

    /// Makes zeros of whole pieces by forgetting them.
    fn clear(&mut self, start: u64, end: u64) {
        for index in [start / PIECE, end / PIECE] {
            let (from, to) = (start.max(index * PIECE), end.min((index + 1) * PIECE));
            if let Some(piece) = self.pieces.get_mut(&index).filter(|_| from < to) {
                piece[(from - index * PIECE) as usize..(to - index * PIECE) as usize].fill(0);
            }
        }
        self.pieces.retain(|index, _| *index < start.div_ceil(PIECE) || *index >= end / PIECE);
    }
}

impl Disk for Phantom {
    fn len(&self) -> u64 {
        self.lock().len
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read_at(&self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        let content = self.lock();
        check_range(offset, buf.len() as u64, content.len)?;
        while !buf.is_empty() {
            let skip = offset % PIECE;
            let step = buf.len().min((PIECE - skip) as usize);
            let (now, rest) = buf.split_at_mut(step);
            match content.pieces.get(&(offset / PIECE)) {
                Some(piece) => now.copy_from_slice(&piece[skip as usize..][..step]),
                None => now.fill(0),
            }
            offset += step as u64;
            buf = rest;
        }
        Ok(())
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        let mut content = self.lock();
        check_range(offset, data.len() as u64, content.len)?;
        content.write(data, offset);
        Ok(())
    }

    fn zero_at(&self, offset: u64, len: u64) -> Result<()> {
        let mut content = self.lock();
        check_range(offset, len, content.len)?;
        content.clear(offset, offset + len);
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.zero_at(offset, len)
    }

    fn set_len(&self, len: u64) -> Result<()> {
        let mut content = self.lock();
        let old = content.len;
        content.clear(len.min(old), old);
        content.len = len;
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        let len = self.len();
        check_range(offset, 1, len)?;
        Ok(Extent { start: offset, len: len - offset, kind: ExtentKind::Opaque, depth: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phantom_does_what_every_disk_must() {
        let make = |len| -> std::sync::Arc<dyn Disk> {
            let disk = Phantom::default();
            disk.set_len(len).unwrap();
            std::sync::Arc::new(disk)
        };
        vmwright_disk::conformance::check(&make, Default::default());
    }

    #[test]
    fn zeros_take_no_memory() {
        let disk = Phantom::default();
        disk.set_len(1 << 50).unwrap();
        disk.write_at(&[0; 100_000], 1 << 40).unwrap();
        disk.zero_at(0, 1 << 50).unwrap();
        assert!(disk.lock().pieces.is_empty());
    }
}
