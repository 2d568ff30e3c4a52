//! Reference counts of 1 to 64 bits.

/// The width of the reference counts of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Width {
    order: u32,
}

impl Width {
    /// A width of `1 << order` bits, `order` at most 6.
    pub(super) fn new(order: u32) -> Self {
        debug_assert!(order <= 6);
        Self { order }
    }

    /// The width in bits.
    pub(super) fn bits(self) -> u32 {
        1 << self.order
    }

    /// The largest count that fits.
    pub(super) fn max(self) -> u64 {
        u64::MAX >> (64 - self.bits())
    }

    /// How many counts one cluster holds.
    pub(super) fn per_block(self, cluster_bits: u32) -> u64 {
        (8u64 << cluster_bits) >> self.order
    }

    /// The count at `index`: big-endian if it has whole bytes, else from the lowest bits of its byte up.
    pub(super) fn get(self, bytes: &[u8], index: u64) -> u64 {
        let (at, shift) = self.place(index);
        if self.order < 3 {
            return u64::from(bytes[at]) >> shift & self.max();
        }
        let entry = &bytes[at..at + (self.bits() / 8) as usize];
        entry.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    /// Changes the count at `index`; `value` must fit.
    pub(super) fn set(self, bytes: &mut [u8], index: u64, value: u64) {
        debug_assert!(value <= self.max());
        let (at, shift) = self.place(index);
        if self.order < 3 {
            let mask = (self.max() as u8) << shift;
            bytes[at] = bytes[at] & !mask | (value as u8) << shift & mask;
            return;
        }
        let len = (self.bits() / 8) as usize;
        bytes[at..at + len].copy_from_slice(&value.to_be_bytes()[8 - len..]);
    }

    fn place(self, index: u64) -> (usize, u32) {
        let bit = index << self.order;
        ((bit / 8) as usize, (bit % 8) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn counts_of_every_width_read_back_and_leave_their_neighbours_alone(
            order in 0u32..=6, values in proptest::collection::vec(any::<u64>(), 8),
        ) {
            let width = Width::new(order);
            let mut bytes = vec![0xff; 64];
            for (index, value) in values.iter().enumerate() {
                width.set(&mut bytes, index as u64, value & width.max());
            }
            for (index, value) in values.iter().enumerate() {
                prop_assert_eq!(width.get(&bytes, index as u64), value & width.max());
            }
            let used = (8usize << order) / 8;
            prop_assert!(bytes[used..].iter().all(|byte| *byte == 0xff));
        }
    }

    #[test]
    fn sub_byte_counts_start_at_the_lowest_bits() {
        assert_eq!(Width::new(1).get(&[0b11_10_01_00], 1), 1);
        assert_eq!(Width::new(0).get(&[0b1000_0000], 7), 1);
        assert_eq!(Width::new(5).get(&[0, 0, 1, 2], 0), 258);
    }
}
