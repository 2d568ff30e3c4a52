//! Sets of blocks or inodes, in pieces that take memory only where they are mixed.

/// The bits of one piece.
const PIECE: u64 = 1 << 15;

/// One piece of a set.
#[derive(Clone)]
enum Piece {
    None,
    All,
    Some(Box<[u64; PIECE as usize / 64]>),
}

/// A set of numbers below a bound.
#[derive(Clone)]
pub(crate) struct Bits {
    pieces: Vec<Piece>,
    len: u64,
}

impl Bits {
    /// Makes an empty set of numbers below `len`.
    pub(crate) fn new(len: u64) -> Self {
        Self { pieces: vec![Piece::None; len.div_ceil(PIECE) as usize], len }
    }

    /// Whether a number is in the set; numbers beyond the bound never are.
    pub(crate) fn has(&self, at: u64) -> bool {
        if at >= self.len {
            return false;
        }
        match &self.pieces[(at / PIECE) as usize] {
            Piece::None => false,
            Piece::All => true,
            Piece::Some(words) => words[(at % PIECE / 64) as usize] >> (at % 64) & 1 == 1,
        }
    }

    /// Puts a number in; answers whether it was there before. Numbers beyond the bound are left out.
    pub(crate) fn set(&mut self, at: u64) -> bool {
        if at >= self.len {
            return false;
        }
        let words = match &mut self.pieces[(at / PIECE) as usize] {
            Piece::All => return true,
            Piece::Some(words) => words,
            piece => {
                *piece = Piece::Some(Box::new([0; PIECE as usize / 64]));
                match piece {
                    Piece::Some(words) => words,
                    _ => return false,
                }
            }
        };
        let word = &mut words[(at % PIECE / 64) as usize];
        let bit = 1 << (at % 64);
        let before = *word & bit != 0;
        *word |= bit;
        before
    }

    /// Puts a range in; answers whether none of it was there before.
    pub(crate) fn set_range(&mut self, start: u64, len: u64) -> bool {
        let end = start.saturating_add(len).min(self.len);
        let (mut at, mut fresh) = (start, true);
        while at < end {
            let piece = &mut self.pieces[(at / PIECE) as usize];
            if at.is_multiple_of(PIECE) && end - at >= PIECE {
                fresh &= match piece {
                    Piece::None => true,
                    Piece::All => false,
                    Piece::Some(words) => words.iter().all(|word| *word == 0),
                };
                *piece = Piece::All;
                at += PIECE;
                continue;
            }
            let within = (PIECE - at % PIECE).min(end - at);
            fresh &= set_within(piece, (at % PIECE) as usize, within as usize);
            at += within;
        }
        fresh
    }

    /// The first number of the set from `from` on.
    pub(crate) fn next(&self, from: u64) -> Option<u64> {
        let mut at = from;
        while at < self.len {
            match &self.pieces[(at / PIECE) as usize] {
                Piece::None => at = (at / PIECE + 1) * PIECE,
                Piece::All => return Some(at),
                Piece::Some(words) => {
                    let word = words[(at % PIECE / 64) as usize] >> (at % 64);
                    if word != 0 {
                        let found = at + u64::from(word.trailing_zeros());
                        return (found < self.len).then_some(found);
                    }
                    at = (at / 64 + 1) * 64;
                }
            }
        }
        None
    }

    /// Writes the bits of a range, which begins at the lowest bit of the first byte, into bytes.
    pub(crate) fn copy(&self, start: u64, len: u64, bytes: &mut [u8]) {
        bytes.fill(0);
        let end = start.saturating_add(len).min(self.len);
        let mut at = start;
        while at < end {
            let to = at - start;
            let piece = &self.pieces[(at / PIECE) as usize];
            if at.is_multiple_of(64) && to.is_multiple_of(8) && end - at >= 64 {
                let word = match piece {
                    Piece::None => 0,
                    Piece::All => !0,
                    Piece::Some(words) => words[(at % PIECE / 64) as usize],
                };
                let to = (to / 8) as usize;
                bytes[to..to + 8].copy_from_slice(&word.to_le_bytes());
                at += 64;
                continue;
            }
            if self.has(at) {
                bytes[(to / 8) as usize] |= 1 << (to % 8);
            }
            at += 1;
        }
    }

    /// How many numbers of a range are in the set.
    pub(crate) fn count(&self, start: u64, len: u64) -> u64 {
        let end = start.saturating_add(len).min(self.len);
        let (mut at, mut count) = (start, 0);
        while at < end {
            let piece = &self.pieces[(at / PIECE) as usize];
            if at.is_multiple_of(64) && end - at >= 64 {
                count += match piece {
                    Piece::None => 0,
                    Piece::All => 64,
                    Piece::Some(words) => u64::from(words[(at % PIECE / 64) as usize].count_ones()),
                };
                at += 64;
                continue;
            }
            count += u64::from(self.has(at));
            at += 1;
        }
        count
    }
}

/// Sets bits of one piece; answers whether none of them was set.
fn set_within(piece: &mut Piece, at: usize, len: usize) -> bool {
    if matches!(piece, Piece::All) {
        return len == 0;
    }
    if matches!(piece, Piece::None) {
        *piece = Piece::Some(Box::new([0; PIECE as usize / 64]));
    }
    let Piece::Some(words) = piece else { return true };
    let (mut at, end, mut fresh) = (at, at + len, true);
    while at < end {
        let bits = (64 - at % 64).min(end - at);
        let mask = (!0_u64 >> (64 - bits)) << (at % 64);
        let word = &mut words[at / 64];
        fresh &= *word & mask == 0;
        *word |= mask;
        at += bits;
    }
    fresh
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn a_set_is_what_was_put_in(
            ranges in prop::collection::vec((0_u64..140_000, 0_u64..70_000, any::<bool>()), 1..6),
            window in (0_u64..100_000, 0_u64..5000),
        ) {
            let len = 150_003;
            let (mut bits, mut model) = (Bits::new(len), BTreeSet::new());
            for (start, count, single) in ranges {
                if single {
                    prop_assert_eq!(bits.set(start + 1), !model.insert(start + 1));
                    continue;
                }
                let range = start..(start + count).min(len);
                let fresh = range.clone().all(|at| !model.contains(&at));
                prop_assert_eq!(bits.set_range(start, count), fresh);
                model.extend(range);
            }
            let (start, count) = window;
            prop_assert_eq!(bits.count(start, count), model.range(start..start + count).count() as u64);
            prop_assert_eq!(bits.next(start), model.range(start..).next().copied());
            let mut bytes = vec![0xff; (count as usize).div_ceil(8)];
            bits.copy(start, count, &mut bytes);
            for at in 0..count {
                let expected = model.contains(&(start + at));
                prop_assert_eq!(bytes[at as usize / 8] >> (at % 8) & 1 == 1, expected);
                prop_assert_eq!(bits.has(start + at), expected);
            }
        }
    }
}
