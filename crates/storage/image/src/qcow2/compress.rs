//! Compressed clusters.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};

use flate2::{Decompress, FlushDecompress, Status};
use zlib_rs::{Deflate as Stream, DeflateConfig, DeflateFlush};

use super::layout::Compression;
use crate::driver::Compressor;
use crate::error::Reason;
use crate::{Error, Result};

const WINDOW: &str = "the window of a zstd cluster";
const DEFLATE_CLUSTER: &str = "a deflate cluster";
/// What errors call damage that is confined to the content of one cluster.
pub(super) const CLUSTERS: [&str; 2] = [WINDOW, DEFLATE_CLUSTER];

/// The window that every zstd decoder should have, by RFC 8878. A larger one would let a few bytes ask for gigabytes.
const MAX_ZSTD_WINDOW: u64 = 8 << 20;

/// Unpacks one cluster to `out`, which is as long as a cluster; `at` is where it is in the file, for errors.
pub(super) fn unpack_to(kind: Compression, packed: &[u8], out: &mut [u8], at: u64) -> Result<()> {
    match kind {
        Compression::Deflate => inflate(packed, out, at),
        Compression::Zstd => unpack_zstd(packed, out, at),
    }
}

fn unpack_zstd(packed: &[u8], out: &mut [u8], at: u64) -> Result<()> {
    let fail = |source: Box<dyn std::error::Error + Send + Sync>| {
        Error::from(Reason::Compressed { what: "a zstd cluster", at, source })
    };
    if let Some(window) = zstd_window(packed).filter(|window| *window > MAX_ZSTD_WINDOW) {
        return Err(Error::corrupt(WINDOW, at, "at most 8 MiB", window));
    }
    if unpack_frame(packed, out) {
        return Ok(());
    }
    let mut decoder = zstd::stream::read::Decoder::with_buffer(packed).map_err(|error| fail(error.into()))?;
    decoder.window_log_max(MAX_ZSTD_WINDOW.ilog2()).map_err(|error| fail(error.into()))?;
    decoder.read_exact(out).map_err(|error| fail(error.into()))
}

/// Unpacks a frame that is exactly one cluster, at once; false where it is not, whatever else it is.
fn unpack_frame(packed: &[u8], out: &mut [u8]) -> bool {
    thread_local! {
        static UNPACKER: RefCell<Option<zstd::bulk::Decompressor<'static>>> =
            RefCell::new(zstd::bulk::Decompressor::new().ok());
    }
    // What follows the frame belongs to the next cluster.
    let Ok(len) = zstd::zstd_safe::find_frame_compressed_size(packed) else { return false };
    let Some(frame) = packed.get(..len) else { return false };
    UNPACKER.with_borrow_mut(|unpacker| {
        let unpacked = unpacker.as_mut().map(|unpacker| unpacker.decompress_to_buffer(frame, out));
        matches!(unpacked, Some(Ok(len)) if len == out.len())
    })
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

fn inflate(packed: &[u8], out: &mut [u8], at: u64) -> Result<()> {
    thread_local! {
        static UNPACKER: RefCell<libdeflater::Decompressor> = RefCell::new(libdeflater::Decompressor::new());
    }
    let at_once = UNPACKER.with_borrow_mut(|unpacker| unpacker.deflate_decompress(packed, out));
    if matches!(at_once, Ok(len) if len == out.len()) {
        return Ok(());
    }
    // Longer than a cluster, or without an end: QEMU takes that as long as a whole cluster comes out.
    inflate_some(packed, out, at)
}

fn inflate_some(packed: &[u8], out: &mut [u8], at: u64) -> Result<()> {
    let fail = |source| Error::from(Reason::Compressed { what: DEFLATE_CLUSTER, at, source });
    let mut inflater = Decompress::new(false);
    loop {
        let (consumed, produced) = (inflater.total_in() as usize, inflater.total_out() as usize);
        let status = inflater
            .decompress(&packed[consumed..], &mut out[produced..], FlushDecompress::Finish)
            .map_err(|error| fail(error.into()))?;
        if inflater.total_out() == out.len() as u64 {
            return Ok(());
        }
        let stuck = (inflater.total_in() as usize, inflater.total_out() as usize) == (consumed, produced);
        if status == Status::StreamEnd || stuck {
            return Err(Error::corrupt(DEFLATE_CLUSTER, at, "a whole cluster", inflater.total_out()));
        }
    }
}

/// What one thread packs clusters of `unit` bytes with.
pub(super) fn compressor(kind: Compression, unit: usize, level: Option<i32>) -> Result<Box<dyn Compressor>> {
    Ok(match kind {
        Compression::Deflate => {
            let level = level.unwrap_or(DEFLATE_LEVEL);
            if !(1..=9).contains(&level) {
                return Err(Error::invalid("the level of compression", "deflate has levels 1 to 9"));
            }
            Box::new(Deflate { stream: stream(level), unit })
        }
        Compression::Zstd => {
            let level = level.unwrap_or(ZSTD_LEVEL);
            if !(1..=22).contains(&level) {
                return Err(Error::invalid("the level of compression", "zstd has levels 1 to 22"));
            }
            let context = zstd::bulk::Compressor::new(level)
                .map_err(|source| Error::from(Reason::Compressor { source }))?;
            Box::new(Zstd { context, unit })
        }
    })
}

/// What deflates clusters at a level.
fn stream(level: i32) -> Stream {
    let defaults = DeflateConfig::new(level);
    Stream::new_with_config(DeflateConfig { window_bits: WINDOW_BITS, mem_level: MEM_LEVEL, ..defaults })
}

/// QEMU writes with so large a window, and other readers have no larger one (decision 2); negative without a header.
const WINDOW_BITS: i32 = -12;

/// How many symbols have one code: with fewer than zlib takes, clusters are smaller, and it costs little time.
const MEM_LEVEL: i32 = 7;

/// Within 2 % of the size that zlib reaches at QEMU's level, at more than twice its speed.
const DEFLATE_LEVEL: i32 = 6;

/// As QEMU.
const ZSTD_LEVEL: i32 = 3;

struct Deflate {
    stream: Stream,
    unit: usize,
}

impl Compressor for Deflate {
    fn pack(&mut self, data: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        let cluster = whole(data, self.unit);
        self.stream.reset();
        // Room for what gets longer too, by an eighth at most: zlib-rs 0.6.8 panics where blocks have to wait for room.
        out.resize(self.unit + self.unit / 4 + 4096, 0);
        let status = self.stream.compress(&cluster, out, DeflateFlush::Finish);
        out.truncate(self.stream.total_out() as usize);
        Ok(matches!(status, Ok(zlib_rs::Status::StreamEnd)) && out.len() < self.unit)
    }
}

struct Zstd {
    context: zstd::bulk::Compressor<'static>,
    unit: usize,
}

impl Compressor for Zstd {
    fn pack(&mut self, data: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        let cluster = whole(data, self.unit);
        out.resize(self.unit - 1, 0);
        // That it does not fit is the only failure there is.
        let Ok(len) = self.context.compress_to_buffer(&cluster[..], out.as_mut_slice()) else {
            return Ok(false);
        };
        out.truncate(len);
        Ok(true)
    }
}

/// A cluster with the zeros past the end of the disk.
fn whole(data: &[u8], unit: usize) -> Cow<'_, [u8]> {
    let mut cluster = Cow::Borrowed(data);
    if data.len() < unit {
        cluster.to_mut().resize(unit, 0);
    }
    cluster
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

    fn unpack(kind: Compression, packed: &[u8], len: usize, at: u64) -> Result<Vec<u8>> {
        let mut out = vec![0; len];
        unpack_to(kind, packed, &mut out, at)?;
        Ok(out)
    }

    fn pack(kind: Compression, data: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        compressor(kind, data.len(), None).unwrap().pack(data, &mut out).unwrap().then_some(out)
    }

    fn text(len: u32) -> Vec<u8> {
        (0..len).map(|index| (index / 700) as u8 ^ ((index * index) >> 9) as u8 & 7).collect()
    }

    #[test]
    fn what_is_packed_unpacks_with_garbage_behind_it() {
        for kind in [Compression::Deflate, Compression::Zstd] {
            let data = text(65536);
            let mut packed = pack(kind, &data).unwrap();
            packed.extend_from_slice(&[0xaa; 300]);
            assert_eq!(unpack(kind, &packed, data.len(), 0).unwrap(), data);
        }
    }

    #[test]
    fn a_compressor_packs_every_unit_as_a_new_one_would() {
        for kind in [Compression::Deflate, Compression::Zstd] {
            let mut used = compressor(kind, 4096, None).unwrap();
            let mut out = Vec::new();
            for seed in 0..20u8 {
                let data: Vec<u8> = text(4096).into_iter().map(|byte| byte.wrapping_mul(seed)).collect();
                assert!(used.pack(&data, &mut out).unwrap());
                assert_eq!(Some(&out), pack(kind, &data).as_ref());
            }
        }
    }

    #[test]
    fn a_stream_longer_than_a_cluster_or_without_an_end_gives_its_first_cluster() {
        // Other writers' clusters: QEMU stops once it has what it wants.
        let data = text(8192);
        let long = pack(Compression::Deflate, &data).unwrap();
        assert_eq!(unpack(Compression::Deflate, &long, 4096, 0).unwrap(), data[..4096]);
        let mut stream = stream(DEFLATE_LEVEL);
        let mut endless = vec![0; 16384];
        stream.compress(&data, &mut endless, DeflateFlush::SyncFlush).unwrap();
        endless.truncate(stream.total_out() as usize);
        assert_eq!(unpack(Compression::Deflate, &endless, 8192, 0).unwrap(), data);
    }

    #[test]
    fn levels_that_do_not_exist_are_refused() {
        for (kind, level) in [(Compression::Deflate, 10), (Compression::Deflate, 0), (Compression::Zstd, 23)]
        {
            let error = compressor(kind, 4096, Some(level)).err().unwrap();
            assert_eq!(error.kind(), vmwright_disk::ErrorKind::InvalidInput);
        }
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut state = 1u64;
        let noise = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 56) as u8
        });
        noise.take(len).collect()
    }

    #[test]
    fn half_noise_is_packed_in_clusters_of_every_size_and_at_every_level() {
        for bits in 9..=21 {
            let mut data = noise(1 << bits);
            // At level 1, nothing makes deflate longer than bytes of 144 and more.
            data.iter_mut().step_by(3).for_each(|byte| *byte |= 0xd0);
            data[..1 << (bits - 1)].fill(3);
            for (kind, level) in
                (1..=9).map(|level| (Compression::Deflate, level)).chain([(Compression::Zstd, 3)])
            {
                let mut packed = Vec::new();
                let mut compressor = compressor(kind, data.len(), Some(level)).unwrap();
                let high: Vec<u8> = noise(1 << bits).iter().map(|byte| byte | 0x90).collect();
                compressor.pack(&high, &mut packed).unwrap();
                if compressor.pack(&data, &mut packed).unwrap() {
                    assert!(packed.len() < data.len());
                    assert!(unpack(kind, &packed, data.len(), 0).unwrap() == data);
                }
            }
        }
    }

    #[test]
    fn noise_is_not_packed() {
        let noise = noise(4096);
        assert!(pack(Compression::Deflate, &noise).is_none());
        assert!(pack(Compression::Zstd, &noise).is_none());
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
        let packed = pack(Compression::Deflate, &[7; 4096]).unwrap();
        for kind in [Compression::Deflate, Compression::Zstd] {
            let error = unpack(kind, &packed, 65536, 9).unwrap_err();
            assert_eq!(error.kind(), vmwright_disk::ErrorKind::Corrupt);
        }
    }
}
