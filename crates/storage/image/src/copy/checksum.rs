use sha2::{Digest, Sha256};
use vmwright_disk::Disk;

use super::Progress;
use super::chunks::CHUNK;
use crate::Result;

/// The SHA-256 of what a disk shows, as `sha256sum` answers for the same disk as a raw file.
///
/// Zeros that are known are not read.
pub fn sha256(disk: &dyn Disk, progress: Progress<'_>) -> Result<[u8; 32]> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; CHUNK as usize];
    let zeros = vec![0; CHUNK as usize];
    let mut at = 0;
    while at < disk.len() {
        let extent = disk.extent_at(at)?;
        let len = extent.len.min(CHUNK);
        if extent.is_zero() {
            hasher.update(&zeros[..len as usize]);
        } else {
            disk.read_at(&mut buffer[..len as usize], at)?;
            hasher.update(&buffer[..len as usize]);
        }
        at += len;
        progress(at, disk.len());
    }
    Ok(hasher.finalize().into())
}
