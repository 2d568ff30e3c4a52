use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};
use vmwright_disk::Disk;

use super::chunks::{CHUNK, Chunk, Chunks};
use super::order::Order;
use super::pace::Pace;
use super::transfer::read_chunk;
use super::{Progress, ZEROS, zeros};
use crate::Result;
use crate::error::Reason;

/// So many chunks may wait for a digest.
const AHEAD: usize = 4;

/// Which digests are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digests {
    /// SHA-256.
    pub sha256: bool,
    /// BLAKE3.
    pub blake3: bool,
}

/// The digests of what a disk shows, as of the same disk as a raw file; serialises in hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Checksum {
    /// SHA-256, as `sha256sum` answers.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "hex")]
    pub sha256: Option<[u8; 32]>,
    /// BLAKE3, as `b3sum` answers.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "hex")]
    pub blake3: Option<[u8; 32]>,
}

fn hex<S: Serializer>(digest: &Option<[u8; 32]>, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    let digits = digest.iter().flatten().map(|byte| format!("{byte:02x}"));
    serializer.serialize_str(&digits.collect::<String>())
}

/// The SHA-256 of what a disk shows, as `sha256sum` answers for the same disk as a raw file.
pub fn sha256(disk: &dyn Disk, progress: Progress<'_>) -> Result<[u8; 32]> {
    let found = checksum(disk, Digests { sha256: true, blake3: false }, 2, progress)?;
    Ok(found.sha256.unwrap_or_default())
}

/// Digests of what a disk shows. Zeros that are known are not read.
///
/// So many threads read ahead, and one more works for each digest.
pub fn checksum(
    disk: &dyn Disk,
    digests: Digests,
    threads: usize,
    progress: Progress<'_>,
) -> Result<Checksum> {
    std::thread::scope(|scope| {
        let mut feeds = Vec::new();
        let sha256 = digests.sha256.then(|| {
            let content = feed(&mut feeds);
            scope.spawn(|| digest(content, Sha256::new(), |hasher, bytes| hasher.update(bytes)))
        });
        let blake3 = digests.blake3.then(|| {
            let content = feed(&mut feeds);
            scope.spawn(|| {
                digest(content, blake3::Hasher::new(), |hasher, bytes| {
                    hasher.update(bytes);
                })
            })
        });
        read_ahead(disk, feeds, threads.max(1), progress)?;
        Ok(Checksum {
            sha256: sha256.map(joined).map(|hasher| hasher.finalize().into()),
            blake3: blake3.map(joined).map(|hasher| hasher.finalize().into()),
        })
    })
}

/// What the content of a disk is made of, in order.
#[derive(Clone)]
enum Piece {
    Zeros(u64),
    Data(Arc<Vec<u8>>),
}

fn feed(feeds: &mut Vec<SyncSender<Piece>>) -> Receiver<Piece> {
    let (sender, receiver) = sync_channel(AHEAD);
    feeds.push(sender);
    receiver
}

fn joined<H>(thread: std::thread::ScopedJoinHandle<'_, H>) -> H {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn digest<H>(content: Receiver<Piece>, mut hasher: H, update: impl Fn(&mut H, &[u8])) -> H {
    for piece in content {
        match piece {
            Piece::Data(bytes) => update(&mut hasher, &bytes),
            Piece::Zeros(mut len) => {
                while len > 0 {
                    let step = len.min(ZEROS as u64);
                    update(&mut hasher, &zeros()[..step as usize]);
                    len -= step;
                }
            }
        }
    }
    hasher
}

/// Hands the content of a disk to all feeds in order.
fn read_ahead(
    disk: &dyn Disk,
    feeds: Vec<SyncSender<Piece>>,
    threads: usize,
    progress: Progress<'_>,
) -> Result<()> {
    let disks = [disk];
    let pace = Pace::default();
    let chunks = Chunks::new(&disks, 4096, CHUNK, &pace, progress);
    let order = Order::new();
    // How far the feeds are.
    let reached = Mutex::new(0);
    let send = |piece: Piece| {
        let sent = feeds.iter().try_for_each(|feed| feed.send(piece.clone()));
        // Nobody listens once a thread has panicked, which joining it tells.
        sent.map_err(|_| Reason::Cancelled.into())
    };
    let hand_over = |(chunk, bytes): (Chunk, Vec<u8>)| {
        let mut reached = reached.lock().unwrap_or_else(PoisonError::into_inner);
        if chunk.start > *reached {
            send(Piece::Zeros(chunk.start - *reached))?;
        }
        *reached = chunk.start + chunk.len;
        send(Piece::Data(Arc::new(bytes)))?;
        chunks.finish(chunk);
        Ok(())
    };
    let work = |_: &mut (), chunk: Chunk| {
        if !order.wait(chunk.number, threads as u64 + 2) {
            return Err(Reason::Cancelled.into());
        }
        let mut bytes = Vec::new();
        read_chunk(disk, chunk, &mut bytes)?;
        order.submit(chunk.number, (chunk, bytes), hand_over)
    };
    chunks.each(threads, || Ok(()), work, || order.stop())?;
    let reached = *reached.lock().unwrap_or_else(PoisonError::into_inner);
    match disk.len().saturating_sub(reached) {
        0 => Ok(()),
        rest => send(Piece::Zeros(rest)),
    }
}
