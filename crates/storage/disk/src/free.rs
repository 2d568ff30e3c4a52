//! What of a disk nobody needs.

use std::ops::Range;

use crate::Result;

/// Knows which bytes of a disk hold nothing that anyone needs, such as a filesystem on it.
pub trait FreeMap: Send + Sync {
    /// Tells `each` the ranges of the disk that hold nothing anyone needs, in bytes, in rising order and apart from one
    /// another. An error of `each` ends it.
    ///
    /// Wherever it cannot be certain it fails: what it names may be overwritten.
    fn free_ranges(&self, each: &mut dyn FnMut(Range<u64>) -> Result<()>) -> Result<()>;
}
