//! The redo file: a complete description of a change, made durable before any image is touched.
//!
//! `docs/formats/redo.md` describes the bytes and argues every step.

mod apply;
mod check;
mod layout;
mod place;
mod read;
mod view;
mod write;

use std::path::PathBuf;

pub(crate) use apply::apply;
pub(crate) use check::{Mismatch, check};
#[cfg(any(test, feature = "test-util"))]
pub(crate) use layout::reseal;
pub(crate) use layout::{Digest, Pointer, digest};
pub(crate) use place::{Found, Place, Places, beside, part_name};
pub(crate) use read::{Parsed, Redo};
pub(crate) use view::view;
pub(crate) use write::{RedoWriter, write_pointer};

/// How many bytes of a cut-off tail have one digest.
pub(crate) const CUT_GRANULE: u64 = 65536;

/// The most bytes that one record writes.
pub(crate) const MAX_WRITE: u64 = 256 << 10;

/// The most bytes that one record zeroes or cuts off.
pub(crate) const MAX_RANGE: u64 = 16 << 20;

/// The most bytes that one record zeroes which were zeros before.
pub(crate) const MAX_SPARSE: u64 = 1 << 40;

/// One host file that a redo changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) path: PathBuf,
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) old_len: u64,
    pub(crate) new_len: u64,
    pub(crate) block_device: bool,
}

impl Entry {
    /// The lengths a file may have while the change is partly applied.
    pub(crate) fn lengths(&self) -> std::ops::RangeInclusive<u64> {
        self.old_len.min(self.new_len)..=self.old_len.max(self.new_len)
    }
}

/// One changed range of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) kind: RecordKind,
    pub(crate) start: u64,
    pub(crate) len: u64,
    /// The range was known to read as zeros before, so it has no digests.
    pub(crate) old_zero: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RecordKind {
    /// The range gets the bytes that the redo holds.
    Write,
    /// The range becomes zeros.
    Zero,
    /// The range lies past the new end of the file.
    Cut,
}

impl Record {
    pub(crate) fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }

    /// How many bytes one digest covers.
    pub(crate) fn granule(&self) -> u64 {
        match self.kind {
            RecordKind::Cut => CUT_GRANULE,
            _ => crate::overlay::SECTOR,
        }
    }

    pub(crate) fn digests(&self) -> u64 {
        if self.old_zero { 0 } else { self.len.div_ceil(self.granule()) }
    }

    pub(crate) fn data_len(&self) -> u64 {
        if self.kind == RecordKind::Write { self.len } else { 0 }
    }
}
