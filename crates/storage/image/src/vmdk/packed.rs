//! Compressed grains: zlib streams (RFC 1950), in images with markers behind the sector and the length of the grain.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use libdeflater::{CompressionLvl, Compressor, Decompressor};
use vmwright_disk::Disk;

use super::layout::parse_marker;
use super::sparse::Sparse;
use crate::error::Reason;
use crate::{Error, Result, driver};

/// The length of what precedes a compressed grain.
pub(super) const GRAIN_MARKER: u64 = 12;

thread_local! {
    // It is large, and used for every grain.
    static UNPACKER: RefCell<Decompressor> = RefCell::new(Decompressor::new());
}

impl Sparse {
    /// The compressed grain at `host`, unpacked: as long as a grain, or as its writer made the last one.
    pub(super) fn unpacked(&self, host: u64) -> Result<Arc<Vec<u8>>> {
        self.unpacked.get(host, || unpack(&*self.file, host, self.grain, self.packed == Some(true)))
    }
}

/// How many bytes of the file the compressed grain at `host` takes.
pub(super) fn packed_len(file: &dyn Disk, host: u64, grain: u64) -> Result<u64> {
    let mut head = [0; 16];
    let there = file.len().saturating_sub(host).min(16) as usize;
    file.read_at(&mut head[..there], host)?;
    let (_, size, _) = parse_marker(&head).unwrap_or_default();
    let size = u64::from(size);
    // As much as QEMU accepts: more than what does not compress at all would take.
    if size == 0 || size > 2 * grain || host + GRAIN_MARKER + size > file.len() {
        let expected = "up to twice that of a grain, within the file";
        return Err(Error::corrupt("the length of a compressed grain", host + 8, expected, size));
    }
    Ok(GRAIN_MARKER + size)
}

fn unpack(file: &dyn Disk, host: u64, grain: u64, markers: bool) -> Result<Vec<u8>> {
    let (at, len) = match markers {
        true => (host + GRAIN_MARKER, packed_len(file, host, grain)? - GRAIN_MARKER),
        false => (host, grain.min(file.len().saturating_sub(host))),
    };
    let mut packed = vec![0; len as usize];
    file.read_at(&mut packed, at)?;
    let mut bytes = vec![0; grain as usize];
    // The room is that of a grain: a stream that would fill more ends with an error.
    let done = UNPACKER.with_borrow_mut(|unpacker| unpacker.zlib_decompress(&packed, &mut bytes));
    let len = done.map_err(|error| {
        Error::from(Reason::Compressed { what: "a compressed grain", at, source: error.into() })
    })?;
    bytes.truncate(len);
    Ok(bytes)
}

/// What packs grains of this length, at a level of zlib.
pub(super) fn compressor(grain: usize, level: Option<i32>) -> Result<Box<dyn driver::Compressor>> {
    let level = match level {
        None => CompressionLvl::default(),
        Some(level) => CompressionLvl::new(level)
            .ok()
            .filter(|_| (1..=12).contains(&level))
            .ok_or_else(|| Error::invalid("the level of compression", "it must be from 1 to 12"))?,
    };
    Ok(Box::new(Zlib { packer: Compressor::new(level), grain }))
}

struct Zlib {
    packer: Compressor,
    grain: usize,
}

impl driver::Compressor for Zlib {
    /// Always packs: nothing in a stream is stored as it is.
    fn pack(&mut self, data: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        let mut whole = Cow::Borrowed(data);
        if data.len() < self.grain {
            whole.to_mut().resize(self.grain, 0);
        }
        out.resize(self.packer.zlib_compress_bound(whole.len()), 0);
        let len = self.packer.zlib_compress(&whole, out).map_err(|_| {
            Error::invalid("a compressed grain", "the room that compression asked for is not enough")
        })?;
        out.truncate(len);
        Ok(true)
    }
}

/// The grains that were unpacked last, so that reading one in small pieces unpacks it once.
pub(super) struct Unpacked {
    grains: Mutex<VecDeque<(u64, Arc<Vec<u8>>)>>,
    capacity: usize,
}

impl Unpacked {
    /// Keeps about 1 MiB, but at least two grains.
    pub(super) fn new(grain: u64) -> Self {
        Self { grains: Mutex::default(), capacity: ((1 << 20) / grain.max(1)).clamp(2, 64) as usize }
    }

    fn get(&self, host: u64, unpack: impl FnOnce() -> Result<Vec<u8>>) -> Result<Arc<Vec<u8>>> {
        let lock = || self.grains.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, bytes)) = lock().iter().find(|(at, _)| *at == host) {
            return Ok(bytes.clone());
        }
        let bytes = Arc::new(unpack()?);
        let mut grains = lock();
        if grains.len() >= self.capacity {
            grains.pop_front();
        }
        grains.push_back((host, bytes.clone()));
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmwright_disk::{ErrorKind, MemDisk};

    fn pack(data: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        assert!(compressor(data.len(), None).unwrap().pack(data, &mut out).unwrap());
        out
    }

    fn stored(size: u32, packed: &[u8]) -> MemDisk {
        let mut bytes = vec![0; 8];
        bytes.extend_from_slice(&size.to_le_bytes());
        bytes.extend_from_slice(packed);
        MemDisk::from_bytes(bytes)
    }

    #[test]
    fn a_grain_unpacks_and_one_that_would_not_end_is_corrupt() {
        let packed = pack(&[7; 65536]);
        let file = stored(packed.len() as u32, &packed);
        assert_eq!(unpack(&file, 0, 65536, true).unwrap(), vec![7; 65536]);
        let bomb = pack(&vec![7; 10 << 20]);
        let file = stored(bomb.len() as u32, &bomb);
        assert_eq!(unpack(&file, 0, 65536, true).unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn the_length_of_a_grain_asks_for_no_more_than_there_is() {
        let packed = pack(&[7; 65536]);
        for size in [0, u32::MAX, 131_073, packed.len() as u32 + 1] {
            let error = unpack(&stored(size, &packed), 0, 65536, true).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{size}");
        }
    }
}
