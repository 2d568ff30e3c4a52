//! Bitmaps: bit n is bit n%8 of byte n/8, set where the block or inode is taken.

/// Whether a bit is set.
pub(crate) fn is_set(bits: &[u8], at: u32) -> bool {
    bits[at as usize / 8] >> (at % 8) & 1 == 1
}

/// Sets or clears the bits of a range.
pub(crate) fn fill(bits: &mut [u8], from: u32, to: u32, set: bool) {
    let mut at = from;
    while at < to {
        let byte = &mut bits[at as usize / 8];
        if at.is_multiple_of(8) && to - at >= 8 {
            *byte = if set { 0xff } else { 0 };
            at += 8;
            continue;
        }
        let bit = 1 << (at % 8);
        *byte = if set { *byte | bit } else { *byte & !bit };
        at += 1;
    }
}

/// Finds the first bit of the given value in a range; its end where there is none.
pub(crate) fn find(bits: &[u8], from: u32, to: u32, set: bool) -> u32 {
    // What a byte is when it holds no bit of the value sought.
    let boring = if set { 0 } else { 0xff };
    let mut at = from;
    while at < to {
        let index = at as usize / 8;
        if at.is_multiple_of(8) {
            let whole =
                bits[index..(to as usize / 8).max(index)].iter().take_while(|byte| **byte == boring).count();
            at += whole as u32 * 8;
            if whole > 0 {
                continue;
            }
        }
        if is_set(bits, at) == set {
            return at;
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
