//! Compressed clusters.

use std::collections::VecDeque;
use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};

use flate2::{Compress, Decompress, FlushCompress, FlushDecompress, Status};

use super::layout::Compression;
use crate::error::Reason;
use crate::{Error, Result};

/// The window that every zstd decoder should have, by RFC 8878. A larger one would let a few bytes ask for gigabytes.
const MAX_ZSTD_WINDOW: u64 = 8 << 20;

/// Unpacks one cluster of `len` bytes; `at` is where it is in the file, for errors.
pub(super) fn unpack(kind: Compression, packed: &[u8], len: usize, at: u64) -> Result<Vec<u8>> {
    match kind {
        Compression::Deflate => inflate(packed, len, at),
        Compression::Zstd => unpack_zstd(packed, len, at),
    }
}

fn unpack_zstd(packed: &[u8], len: usize, at: u64) -> Result<Vec<u8>> {
    let fail = |source: Box<dyn std::error::Error + Send + Sync>| {
        Error::from(Reason::Compressed { what: "a zstd cluster", at, source })
    };
    if let Some(window) = zstd_window(packed).filter(|window| *window > MAX_ZSTD_WINDOW) {
        return Err(Error::corrupt("the window of a zstd cluster", at, "at most 8 MiB", window));
    }
    let mut out = vec![0; len];
    let mut decoder = zstd::stream::read::Decoder::with_buffer(packed).map_err(|error| fail(error.into()))?;
    decoder.window_log_max(MAX_ZSTD_WINDOW.ilog2()).map_err(|error| fail(error.into()))?;
    decoder.read_exact(&mut out).map_err(|error| fail(error.into()))?;
    Ok(out)
}

/// How far back the data of a zstd frame may refer, which is what has to be kept in memory (RFC 8878, 3.1.1.1);
/// `None` where the frame is too short to say.
fn zstd_window(packed: &[u8]) -> Option<u64> {
    let descriptor = *packed.get(4)?;
    let single_segment = descriptor & 0x20 != 0;
    if !single_segment {
        let window = *packed.get(5)?;
        let base = 1u64 << (10 + (window >> 3));
        return Some(base + base / 8 * u64::from(window & 7));
    }
    // The window is the content, whose size follows the id of a dictionary.
    let start = 5 + [0, 1, 2, 4][usize::from(descriptor & 3)];
    let len = [1, 2, 4, 8][usize::from(descriptor >> 6)];
    let size = packed.get(start..start + len)?;
    let size = size.iter().rev().fold(0, |size, byte| size << 8 | u64::from(*byte));
    Some(if len == 2 { size + 256 } else { size })
}

fn inflate(packed: &[u8], len: usize, at: u64) -> Result<Vec<u8>> {
    let fail = |source| Error::from(Reason::Compressed { what: "a deflate cluster", at, source });
    let mut out = vec![0; len];
    let mut inflater = Decompress::new(false);
    loop {
        let (consumed, produced) = (inflater.total_in() as usize, inflater.total_out() as usize);
        let status = inflater
            .decompress(&packed[consumed..], &mut out[produced..], FlushDecompress::Finish)
            .map_err(|error| fail(error.into()))?;
        if inflater.total_out() == len as u64 {
            return Ok(out);
        }
        let stuck = (inflater.total_in() as usize, inflater.total_out() as usize) == (consumed, produced);
        if status == Status::StreamEnd || stuck {
            return Err(Error::corrupt("a deflate cluster", at, "a whole cluster", inflater.total_out()));
        }
    }
}

/// Packs one cluster by deflate, unless that does not make it smaller.
pub(crate) fn deflate(data: &[u8]) -> Option<Vec<u8>> {
    // QEMU unpacks with a window of 12 bits, so none larger may be used.
    let mut packer = Compress::new_with_window_bits(flate2::Compression::default(), false, 12);
    let mut out = vec![0; data.len().saturating_sub(1)];
    let status = packer.compress(data, &mut out, FlushCompress::Finish).ok()?;
    if status != Status::StreamEnd {
        return None;
    }
    out.truncate(packer.total_out() as usize);
    Some(out)
}

/// The clusters that were unpacked last, so that reading one in small pieces unpacks it once.
pub(super) struct Unpacked {
    clusters: Mutex<VecDeque<(u64, Arc<Vec<u8>>)>>,
    capacity: usize,
}

impl Unpacked {
    /// Keeps about 1 MiB, but at least two clusters.
    pub(super) fn new(cluster_size: u64) -> Self {
        let capacity = ((1 << 20) / cluster_size).clamp(2, 64) as usize;
        Self { clusters: Mutex::default(), capacity }
    }

    /// The cluster packed at `host`, from `unpack` if it is not here.
    pub(super) fn get(&self, host: u64, unpack: impl FnOnce() -> Result<Vec<u8>>) -> Result<Arc<Vec<u8>>> {
        let lock = || self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, bytes)) = lock().iter().find(|(at, _)| *at == host) {
            return Ok(bytes.clone());
        }
        let bytes = Arc::new(unpack()?);
        let mut clusters = lock();
        if clusters.len() >= self.capacity {
            clusters.pop_front();
        }
        clusters.push_back((host, bytes.clone()));
        Ok(bytes)
    }

    /// Forgets everything, since space of compressed clusters was given back.
    pub(super) fn clear(&self) {
        self.clusters.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_deflate_packs_unpacks_with_garbage_behind_it() {
        let data: Vec<u8> = (0..65536u32).map(|index| (index / 700) as u8).collect();
        let mut packed = deflate(&data).unwrap();
        packed.extend_from_slice(&[0xaa; 300]);
        assert_eq!(unpack(Compression::Deflate, &packed, data.len(), 0).unwrap(), data);
    }

    #[test]
    fn noise_is_not_packed() {
        let mut state = 1u64;
        let noise = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 56) as u8
        });
        let noise: Vec<u8> = noise.take(4096).collect();
        assert!(deflate(&noise).is_none());
    }

    #[test]
    fn a_zstd_frame_cannot_ask_for_much_memory() {
        // No single segment, a window of 2^41 bytes and more; then blocks that repeat one byte 131,072 times.
        let mut bomb = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xff];
        for _ in 0..1000 {
            bomb.extend_from_slice(&[0x02, 0x00, 0x10, 7]);
        }
        let error = unpack(Compression::Zstd, &bomb, 65536, 512).unwrap_err();
        assert_eq!(error.kind(), vmwright_disk::ErrorKind::Corrupt);
        assert!(error.to_string().contains("window"), "{error}");
        // The same content with a window of 128 KiB is a cluster like any other.
        bomb[5] = 7 << 3;
        assert_eq!(unpack(Compression::Zstd, &bomb, 65536, 512).unwrap(), vec![7; 65536]);
        // As a single segment of 2^40 bytes.
        let segment = [0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0, 0, 0, 0, 0, 1, 0, 0];
        assert_eq!(zstd_window(&segment), Some(1 << 40));
    }

    #[test]
    fn a_short_stream_is_corrupt() {
        let packed = deflate(&[7; 4096]).unwrap();
        for kind in [Compression::Deflate, Compression::Zstd] {
            let error = unpack(kind, &packed, 65536, 9).unwrap_err();
            assert_eq!(error.kind(), vmwright_disk::ErrorKind::Corrupt);
        }
    }
}
