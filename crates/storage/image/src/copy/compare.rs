use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use vmwright_disk::Disk;

use super::Progress;
use super::chunks::Chunks;
use super::convert::read_chunk;
use crate::Result;

/// How two disks differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct Comparison {
    /// The offset of the first byte that differs; what one disk is longer counts as zeros in the other.
    pub first_difference: Option<u64>,
    /// Whether the lengths are the same.
    pub same_size: bool,
}

/// Compares what two disks show, without reading what both know to be zeros.
pub fn compare(a: &dyn Disk, b: &dyn Disk, threads: usize, progress: Progress<'_>) -> Result<Comparison> {
    let disks = [a, b];
    let chunks = Chunks::new(&disks, 4096, progress);
    let first = AtomicU64::new(u64::MAX);
    chunks.each(threads, |chunk, buffer| {
        let mut other = Vec::new();
        read_chunk(a, chunk, buffer)?;
        read_chunk(b, chunk, &mut other)?;
        if let Some(index) = first_difference(buffer, &other) {
            // Chunks before this one are already with their workers, so the least of all is the first.
            chunks.stop();
            first.fetch_min(chunk.start + index as u64, Ordering::Relaxed);
        }
        Ok(())
    })?;
    let first = first.into_inner();
    Ok(Comparison { first_difference: (first != u64::MAX).then_some(first), same_size: a.len() == b.len() })
}

fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    if a == b {
        return None;
    }
    a.iter().zip(b).position(|(a, b)| a != b)
}
