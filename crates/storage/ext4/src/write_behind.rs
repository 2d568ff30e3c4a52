//! Content of files that is about to be written: small pieces that continue each other become one write.

use std::ops::Range;

/// The most bytes gathered for one write.
const MOST: usize = 1 << 20;

/// Pieces as long as this gain nothing from waiting.
const LONG: usize = 1 << 18;

/// One range of bytes, the newest content of its place.
#[derive(Debug, Default)]
pub(crate) struct WriteBehind {
    offset: u64,
    bytes: Vec<u8>,
}

impl WriteBehind {
    /// The range that waits, in bytes of the volume.
    pub(crate) fn range(&self) -> Range<u64> {
        self.offset..self.offset + self.bytes.len() as u64
    }

    /// What waits, and where it goes.
    pub(crate) fn waiting(&self) -> Option<(u64, &[u8])> {
        (!self.bytes.is_empty()).then_some((self.offset, self.bytes.as_slice()))
    }

    /// Forgets what was written; the memory serves for what comes next.
    pub(crate) fn written(&mut self) {
        self.bytes.clear();
    }

    /// Whether any byte of a range waits.
    pub(crate) fn overlaps(&self, offset: u64, len: u64) -> bool {
        let range = self.range();
        !self.bytes.is_empty() && offset < range.end && range.start < offset.saturating_add(len)
    }

    /// Takes a piece that continues what waits, lies within it, or is the first; answers whether it did.
    pub(crate) fn take(&mut self, data: &[u8], offset: u64) -> bool {
        if data.len() >= LONG {
            return false;
        }
        if self.bytes.is_empty() {
            self.offset = offset;
        }
        let range = self.range();
        if offset < range.start || offset > range.end {
            return false;
        }
        let at = (offset - range.start) as usize;
        let within = data.len().min(self.bytes.len() - at);
        if self.bytes.len() + data.len() - within > MOST {
            return false;
        }
        self.bytes[at..at + within].copy_from_slice(&data[..within]);
        self.bytes.extend_from_slice(&data[within..]);
        true
    }

    /// Lays what waits over bytes read from the disk at an offset.
    pub(crate) fn lay_over(&self, buf: &mut [u8], offset: u64) {
        let range = self.range();
        let end = range.end.min(offset.saturating_add(buf.len() as u64));
        let start = range.start.max(offset);
        if start < end {
            let from = &self.bytes[(start - range.start) as usize..(end - range.start) as usize];
            buf[(start - offset) as usize..(end - offset) as usize].copy_from_slice(from);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_disk_with_what_waits_is_what_was_written(
            pieces in prop::collection::vec((0_usize..200, 1_usize..50), 1..40),
        ) {
            let mut behind = WriteBehind::default();
            let (mut disk, mut expected) = (vec![0; 300], vec![0; 300]);
            for (number, (at, len)) in pieces.into_iter().enumerate() {
                let data = vec![number as u8 + 1; len];
                expected[at..at + len].copy_from_slice(&data);
                if !behind.take(&data, at as u64) {
                    behind.lay_over(&mut disk, 0);
                    behind.written();
                    prop_assert!(behind.take(&data, at as u64));
                }
                let mut seen = disk[20..280].to_vec();
                behind.lay_over(&mut seen, 20);
                prop_assert_eq!(&seen, &expected[20..280]);
            }
        }
    }

    #[test]
    fn long_pieces_do_not_wait() {
        let mut behind = WriteBehind::default();
        assert!(!behind.take(&vec![1; LONG], 0));
        assert!(behind.take(&[1; 10], 100));
        assert!(behind.overlaps(109, 1) && !behind.overlaps(110, 1) && !behind.overlaps(99, 1));
        assert!(!behind.take(&[1; 10], 111));
    }
}
