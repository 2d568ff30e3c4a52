//! Marking an image as corrupt once damage is met while writing it.

use std::sync::atomic::Ordering;

use super::Qcow2;
use super::layout::{AT_INCOMPATIBLE, INCOMPATIBLE_CORRUPT, Version};
use crate::error::Reason;
use crate::{Error, Result};

impl Qcow2 {
    /// Passes a result on; where it says that the tables of this image are damaged, the image is marked as corrupt
    /// (in version 3, which has a flag for it), and refuses every later change.
    ///
    /// Damage found before the first change leaves the file as it is: nothing was in danger.
    pub(super) fn guarded<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result
            && is_damage(error)
            && self.read_state().writer.ready
        {
            self.mark_corrupt();
        }
        result
    }

    fn mark_corrupt(&self) {
        let mut state = self.write_state();
        if self.damaged.swap(true, Ordering::AcqRel) || self.header.version == Version::V2 {
            return;
        }
        let marked = state.header.incompatible | INCOMPATIBLE_CORRUPT;
        // Whoever gets the damage reported learns nothing from a failure to mark it; this opening refuses in any case.
        if self.file.write_at(&marked.to_be_bytes(), AT_INCOMPATIBLE).is_ok() {
            state.header.incompatible = marked;
            let _ = self.file.flush();
        }
    }
}

/// Whether an error says that the tables of this very image are damaged, rather than a backing file, or the content
/// of one compressed cluster.
fn is_damage(error: &Error) -> bool {
    matches!(error.reason(), Reason::Corrupt { what, .. } if !super::compress::CLUSTERS.contains(what))
}
