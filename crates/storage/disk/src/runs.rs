use std::collections::BTreeMap;

/// Where the bytes of a changed range are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// In the store, from this position on.
    Stored(u64),
    /// Nowhere: they are zeros.
    Zero,
}

impl Source {
    fn advance(self, by: u64) -> Self {
        match self {
            Self::Stored(position) => Self::Stored(position + by),
            Self::Zero => Self::Zero,
        }
    }
}

/// A range that was changed (`source` is there) or not, up to where that ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) end: u64,
    pub(crate) source: Option<Source>,
}

/// Which ranges of a disk were changed: an interval map whose neighbours are merged.
#[derive(Debug, Default)]
pub(crate) struct Runs {
    /// Start of a run → its end and source. Runs are not empty and never overlap.
    map: BTreeMap<u64, (u64, Source)>,
}

impl Runs {
    /// What is at `offset`, and how far that goes; the end is `u64::MAX` after the last run.
    pub(crate) fn at(&self, offset: u64) -> Segment {
        if let Some((start, (end, source))) = self.map.range(..=offset).next_back()
            && *end > offset
        {
            return Segment { end: *end, source: Some(source.advance(offset - start)) };
        }
        let next = self.map.range(offset..).next();
        Segment { end: next.map_or(u64::MAX, |(start, _)| *start), source: None }
    }

    /// The first changed offset that is not less than `offset`.
    pub(crate) fn next_changed(&self, offset: u64) -> Option<u64> {
        match self.at(offset) {
            Segment { source: Some(_), .. } => Some(offset),
            Segment { end: u64::MAX, .. } => None,
            Segment { end, .. } => Some(end),
        }
    }

    /// Makes `start..end` come from `source`, whatever was there before.
    pub(crate) fn insert(&mut self, mut start: u64, mut end: u64, mut source: Source) {
        if start >= end {
            return;
        }
        self.remove(start, end);
        if let Some((before, (before_end, before_source))) = self.map.range(..start).next_back()
            && *before_end == start
            && before_source.advance(start - before) == source
        {
            (start, source) = (*before, *before_source);
        }
        if let Some((after_end, after_source)) = self.map.get(&end).copied()
            && source.advance(end - start) == after_source
        {
            self.map.remove(&end);
            end = after_end;
        }
        self.map.insert(start, (end, source));
    }

    /// Forgets every change in `start..end`.
    pub(crate) fn remove(&mut self, start: u64, end: u64) {
        if let Some((before, (before_end, source))) = self.map.range_mut(..start).next_back()
            && *before_end > start
        {
            let (before, tail_end, source) = (*before, *before_end, *source);
            *before_end = start;
            if tail_end > end {
                self.map.insert(end, (tail_end, source.advance(end - before)));
                return;
            }
        }
        while let Some((inner, (inner_end, source))) = self.map.range(start..end).next() {
            let (inner, inner_end, source) = (*inner, *inner_end, *source);
            self.map.remove(&inner);
            if inner_end > end {
                self.map.insert(end, (inner_end, source.advance(end - inner)));
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        self.map.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn neighbours_that_continue_each_other_become_one_run() {
        let mut runs = Runs::default();
        runs.insert(0, 10, Source::Stored(100));
        runs.insert(20, 30, Source::Stored(120));
        runs.insert(10, 20, Source::Stored(110));
        assert_eq!(runs.count(), 1);
        assert_eq!(runs.at(15), Segment { end: 30, source: Some(Source::Stored(115)) });
    }

    #[test]
    fn cutting_the_middle_keeps_both_ends() {
        let mut runs = Runs::default();
        runs.insert(0, 30, Source::Stored(100));
        runs.remove(10, 20);
        assert_eq!(runs.at(0), Segment { end: 10, source: Some(Source::Stored(100)) });
        assert_eq!(runs.at(10), Segment { end: 20, source: None });
        assert_eq!(runs.at(20), Segment { end: 30, source: Some(Source::Stored(120)) });
    }

    #[test]
    fn everything_from_an_offset_on_can_be_removed() {
        let mut runs = Runs::default();
        runs.insert(0, 30, Source::Stored(100));
        runs.remove(10, u64::MAX);
        assert_eq!(runs.at(0).end, 10);
        assert_eq!(runs.at(10), Segment { end: u64::MAX, source: None });
    }

    proptest! {
        #[test]
        fn the_map_agrees_with_one_entry_per_byte(
            edits in prop::collection::vec((0u64..200, 1u64..60, prop::option::of(0u64..3)), 1..40)
        ) {
            let mut runs = Runs::default();
            let mut model = vec![None; 300];
            for (index, (start, len, kind)) in edits.into_iter().enumerate() {
                let end = start + len;
                match kind {
                    None => runs.remove(start, end),
                    Some(0) => runs.insert(start, end, Source::Zero),
                    Some(_) => runs.insert(start, end, Source::Stored(index as u64 * 1000)),
                }
                for byte in start..end {
                    model[byte as usize] = kind.map(|kind| match kind {
                        0 => Source::Zero,
                        _ => Source::Stored(index as u64 * 1000 + byte - start),
                    });
                }
            }
            for byte in 0..300 {
                let segment = runs.at(byte);
                prop_assert!(segment.end > byte);
                prop_assert_eq!(segment.source, model[byte as usize]);
                prop_assert_eq!(runs.next_changed(byte),
                    (byte..300).find(|byte| model[*byte as usize].is_some()));
            }
        }
    }
}
