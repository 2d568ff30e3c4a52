use std::sync::{Mutex, PoisonError};

use super::{is_zero, zeros};

/// Content is summed by blocks of so many bytes.
const BLOCK: usize = 4096;

/// A digest of what a disk shows, in which blocks may be entered in any order and those of zeros are left out.
///
/// It finds what went wrong, but does not withstand somebody who looks for content with the same sum.
#[derive(Debug, Default)]
pub(super) struct Sum(Mutex<[u64; 4]>);

impl Sum {
    /// Enters `bytes`, which begin at a multiple of 4096 and end at one or at the end of the disk.
    pub(super) fn add(&self, offset: u64, bytes: &[u8]) {
        let mut sum = [0u64; 4];
        for (index, block) in bytes.chunks(BLOCK).enumerate().filter(|(_, block)| !is_zero(block)) {
            let mut hasher = blake3::Hasher::new();
            hasher.update(block).update(&zeros()[..BLOCK - block.len()]);
            // Where it is comes last: hashing is faster for whole blocks.
            hasher.update(&(offset + (index * BLOCK) as u64).to_le_bytes());
            for (sum, word) in sum.iter_mut().zip(hasher.finalize().as_bytes().chunks_exact(8)) {
                let mut bytes = [0; 8];
                bytes.copy_from_slice(word);
                *sum = sum.wrapping_add(u64::from_le_bytes(bytes));
            }
        }
        let mut total = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (total, sum) in total.iter_mut().zip(sum) {
            *total = total.wrapping_add(sum);
        }
    }

    pub(super) fn value(&self) -> [u64; 4] {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_that_of_the_content_however_it_is_cut() {
        let bytes: Vec<u8> = (0..20_000u32).map(|index| (index / 37) as u8).collect();
        let (whole, parts, padded) = (Sum::default(), Sum::default(), Sum::default());
        whole.add(8192, &bytes);
        parts.add(8192 + 8192, &bytes[8192..]);
        parts.add(0, &[0; 4096]);
        parts.add(8192, &bytes[..8192]);
        padded.add(8192, &[bytes.clone(), vec![0; 480]].concat());
        assert_eq!(whole.value(), parts.value());
        assert_eq!(whole.value(), padded.value());
        let moved = Sum::default();
        moved.add(4096, &bytes);
        assert_ne!(whole.value(), moved.value());
    }
}
