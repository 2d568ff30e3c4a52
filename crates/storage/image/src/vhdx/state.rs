//! What changes while an image is open, behind one lock.

use std::collections::BTreeMap;

use super::header::Header;
use super::metadata::Params;
use super::region::{Place, Regions};

/// Where everything is.
pub(super) struct State {
    pub(super) header: Header,
    pub(super) regions: Regions,
    pub(super) params: Params,
    pub(super) writer: Writer,
}

/// What writing needs to know.
#[derive(Default)]
pub(super) struct Writer {
    /// Whether the log was replayed, and the headers say that the content changes.
    pub(super) ready: bool,
    /// Set when it is unknown what the host kept; nothing more is written then.
    pub(super) broken: bool,
    /// Which half of the log the next entry goes to.
    pub(super) half: u64,
    /// The number of the last entry that was written.
    pub(super) sequence: u64,
    /// Places that nothing uses and nothing in the file points to.
    pub(super) free: Free,
    /// Places that the file will not point to any more once the tables are written.
    pub(super) freed: Vec<Place>,
}

/// Places by their offset, neighbours joined.
#[derive(Debug, Default)]
pub(super) struct Free(BTreeMap<u64, u64>);

impl Free {
    /// Adds a place that is not among them yet.
    pub(super) fn add(&mut self, place: Place) {
        if place.len == 0 {
            return;
        }
        let (mut start, mut end) = (place.offset, place.end());
        if let Some((&at, &before)) = self.0.range(..start).next_back().filter(|(_, end)| **end == start) {
            debug_assert!(before == start);
            start = at;
        }
        if let Some(after) = self.0.remove(&end) {
            end = after;
        }
        self.0.insert(start, end);
    }

    /// Takes out the first place of `len` bytes.
    pub(super) fn take(&mut self, len: u64) -> Option<u64> {
        let (&start, &end) = self.0.iter().find(|(start, end)| **end - **start >= len)?;
        self.0.remove(&start);
        if start + len < end {
            self.0.insert(start + len, end);
        }
        Some(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_places_join_their_neighbours_and_are_taken_from_the_front() {
        let mut free = Free::default();
        for offset in [30, 10, 20] {
            free.add(Place { offset, len: 10 });
        }
        free.add(Place { offset: 50, len: 5 });
        assert_eq!(free.take(31), None);
        assert_eq!(free.take(25), Some(10));
        assert_eq!(free.take(5), Some(35));
        assert_eq!(free.take(5), Some(50));
        assert_eq!(free.take(1), None);
    }
}
