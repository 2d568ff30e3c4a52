//! Compressed clusters.

use std::collections::VecDeque;
use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};

use flate2::{Compress, Decompress, FlushCompress, FlushDecompress, Status};

use super::layout::Compression;
use crate::error::Reason;
use crate::{Error, Result};

/// Unpacks one cluster of `len` bytes; `at` is where it is in the file, for errors.
pub(super) fn unpack(kind: Compression, packed: &[u8], len: usize, at: u64) -> Result<Vec<u8>> {
    match kind {
        Compression::Deflate => inflate(packed, len, at),
        Compression::Zstd => {
            let fail = |source: Box<dyn std::error::Error + Send + Sync>| {
                Error::from(Reason::Compressed { what: "a zstd cluster", at, source })
            };
            let mut out = vec![0; len];
            let mut decoder =
                ruzstd::decoding::StreamingDecoder::new(packed).map_err(|error| fail(error.into()))?;
            decoder.read_exact(&mut out).map_err(|error| fail(error.into()))?;
            Ok(out)
        }
    }
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
    fn a_short_stream_is_corrupt() {
        let packed = deflate(&[7; 4096]).unwrap();
        for kind in [Compression::Deflate, Compression::Zstd] {
            let error = unpack(kind, &packed, 65536, 9).unwrap_err();
            assert_eq!(error.kind(), vmwright_disk::ErrorKind::Corrupt);
        }
    }
}
