use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use vmwright_disk::{Disk, ExtentKind};

use super::Progress;
use super::chunks::{CHUNK, Chunks};
use super::pace::Pace;
use super::transfer::read_chunk;
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
    /// The first offset that one disk records and the other does not, or that one knows to be zeros and the other
    /// stores; only [`compare_strictly`] looks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_difference_in_allocation: Option<u64>,
}

impl Comparison {
    /// Whether no difference was found, not even in length.
    pub fn is_same(&self) -> bool {
        self.first_difference.is_none() && self.first_difference_in_allocation.is_none() && self.same_size
    }
}

/// Compares what two disks show, without reading what both know to be zeros.
pub fn compare(a: &dyn Disk, b: &dyn Disk, threads: usize, progress: Progress<'_>) -> Result<Comparison> {
    let disks = [a, b];
    let pace = Pace::default();
    let chunks = Chunks::new(&disks, 4096, CHUNK / 4, &pace, progress);
    let first = AtomicU64::new(u64::MAX);
    let work = |(ours, theirs): &mut (Vec<u8>, Vec<u8>), chunk| {
        read_chunk(a, chunk, ours)?;
        read_chunk(b, chunk, theirs)?;
        if let Some(index) = first_difference(ours, theirs) {
            // Chunks before this one are already with their workers, so the least of all is the first.
            chunks.stop();
            first.fetch_min(chunk.start + index as u64, Ordering::Relaxed);
        }
        chunks.finish(chunk);
        Ok(())
    };
    chunks.each(threads.max(1), || Ok((Vec::new(), Vec::new())), work, || {})?;
    let first = first.into_inner();
    Ok(Comparison {
        first_difference: (first != u64::MAX).then_some(first),
        same_size: a.len() == b.len(),
        first_difference_in_allocation: None,
    })
}

/// Compares what two disks show and how they keep it, as `qemu-img compare -s` does.
///
/// Where they keep things differently, what they show is not compared.
pub fn compare_strictly(
    a: &dyn Disk,
    b: &dyn Disk,
    threads: usize,
    progress: Progress<'_>,
) -> Result<Comparison> {
    let first = first_difference_in_allocation(a, b)?;
    if first.is_some() || a.len() != b.len() {
        let same_size = a.len() == b.len();
        return Ok(Comparison { first_difference: None, same_size, first_difference_in_allocation: first });
    }
    compare(a, b, threads, progress)
}

fn first_difference_in_allocation(a: &dyn Disk, b: &dyn Disk) -> Result<Option<u64>> {
    let how = |kind: ExtentKind| match kind {
        ExtentKind::Unallocated => (false, true),
        ExtentKind::Zero => (true, true),
        _ => (true, false),
    };
    let len = a.len().min(b.len());
    let (mut at, mut in_a, mut in_b) = (0, None, None);
    while at < len {
        let a = known(a, &mut in_a, at)?;
        let b = known(b, &mut in_b, at)?;
        if how(a.kind) != how(b.kind) {
            return Ok(Some(at));
        }
        at = a.end().min(b.end());
    }
    Ok(None)
}

/// The extent at `at`: the last answer where it still holds.
fn known(
    disk: &dyn Disk,
    last: &mut Option<vmwright_disk::Extent>,
    at: u64,
) -> Result<vmwright_disk::Extent> {
    Ok(match last {
        Some(extent) if at < extent.end() => *extent,
        _ => *last.insert(disk.extent_at(at)?),
    })
}

fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    if a == b {
        return None;
    }
    a.iter().zip(b).position(|(a, b)| a != b)
}
