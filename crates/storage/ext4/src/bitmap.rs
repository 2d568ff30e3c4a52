//! Bitmaps: bit n is bit n%8 of byte n/8, set where the block or inode is taken.

/// Whether a bit is set.
pub(crate) fn is_set(bits: &[u8], at: u32) -> bool {
    bits[at as usize / 8] >> (at % 8) & 1 == 1
}

/// The bits `from..to` of a byte, where `from` is below 8.
fn mask(from: u32, to: u32) -> u8 {
    let below = |end: u32| if end >= 8 { 0xff } else { (1_u8 << end) - 1 };
    below(to) & !below(from)
}

/// Sets or clears the bits of a range.
pub(crate) fn fill(bits: &mut [u8], from: u32, to: u32, set: bool) {
    if from >= to {
        return;
    }
    let (first, last) = (from as usize / 8, (to as usize - 1) / 8);
    let change = |byte: &mut u8, mask: u8| *byte = if set { *byte | mask } else { *byte & !mask };
    if first == last {
        return change(&mut bits[first], mask(from % 8, from % 8 + (to - from)));
    }
    change(&mut bits[first], mask(from % 8, 8));
    bits[first + 1..last].fill(if set { 0xff } else { 0 });
    change(&mut bits[last], mask(0, (to - 1) % 8 + 1));
}

/// Finds the first bit of the given value in a range; its end where there is none.
pub(crate) fn find(bits: &[u8], from: u32, to: u32, set: bool) -> u32 {
    if from >= to {
        return to;
    }
    // Turned around so that always a set bit is sought.
    let turn = if set { 0 } else { 0xff };
    let mut at = from as usize / 8;
    let byte = (bits[at] ^ turn) & mask(from % 8, 8);
    if byte != 0 {
        return (at as u32 * 8 + byte.trailing_zeros()).min(to);
    }
    at += 1;
    let end = (to as usize).div_ceil(8);
    let wide = u64::from_le_bytes([turn; 8]);
    for word in bits[at..end.max(at)].chunks_exact(8) {
        let word =
            u64::from_le_bytes([word[0], word[1], word[2], word[3], word[4], word[5], word[6], word[7]]);
        if word != wide {
            return (at as u32 * 8 + (word ^ wide).trailing_zeros()).min(to);
        }
        at += 8;
    }
    while at < end {
        let byte = bits[at] ^ turn;
        if byte != 0 {
            return (at as u32 * 8 + byte.trailing_zeros()).min(to);
        }
        at += 1;
    }
    to
}

/// Counts the clear bits among the first `len`.
pub(crate) fn count_clear(bits: &[u8], len: u32) -> u32 {
    let whole = len as usize / 8;
    let set: u32 = bits[..whole].iter().map(|byte| byte.count_ones()).sum();
    let rest = (whole as u32 * 8..len).filter(|at| is_set(bits, *at)).count() as u32;
    len - set - rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn finding_and_counting_agree_with_looking_at_each_bit(
            bytes in prop::collection::vec(prop_oneof![Just(0_u8), Just(0xff), any::<u8>()], 16),
            from in 0_u32..128, to in 0_u32..=128, set: bool,
        ) {
            let naive = (from..to).find(|at| is_set(&bytes, *at) == set).unwrap_or(to.max(from));
            prop_assert_eq!(find(&bytes, from, to.max(from), set), naive);
            let clear = (0..to).filter(|at| !is_set(&bytes, *at)).count() as u32;
            prop_assert_eq!(count_clear(&bytes, to), clear);
            let mut filled = bytes.clone();
            fill(&mut filled, from, to, set);
            for at in 0..128 {
                let expected = if (from..to).contains(&at) { set } else { is_set(&bytes, at) };
                prop_assert_eq!(is_set(&filled, at), expected);
            }
        }
    }
}
