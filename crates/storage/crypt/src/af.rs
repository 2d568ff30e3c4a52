//! The anti-forensic splitter: spreads a key over many stripes of which every one is needed, so that destroying any
//! of them destroys the key (LUKS1 specification, section 2.4).

use zeroize::Zeroizing;

use crate::{Hash, Result, random};

/// How many stripes there are, in both versions.
pub(crate) const STRIPES: u32 = 4000;

/// Spreads `key` over `stripes` times its length.
pub(crate) fn split(key: &[u8], stripes: u32, hash: Hash) -> Result<Zeroizing<Vec<u8>>> {
    let mut spread = random::secret(key.len() * stripes as usize)?;
    let last = spread.len() - key.len();
    let mut sum = Zeroizing::new(vec![0; key.len()]);
    let (random, end) = spread.split_at_mut(last);
    gather(random, &mut sum, hash);
    end.iter_mut().zip(&*sum).zip(key).for_each(|((end, sum), key)| *end = sum ^ key);
    Ok(spread)
}

/// Finds the key of `key_len` bytes that was spread.
pub(crate) fn merge(spread: &[u8], key_len: usize, hash: Hash) -> Zeroizing<Vec<u8>> {
    let mut sum = Zeroizing::new(vec![0; key_len]);
    let (random, end) = spread.split_at(spread.len().saturating_sub(key_len));
    gather(random, &mut sum, hash);
    sum.iter_mut().zip(end).for_each(|(sum, end)| *sum ^= end);
    sum
}

/// Adds all stripes up, diffused after each.
fn gather(stripes: &[u8], sum: &mut Zeroizing<Vec<u8>>, hash: Hash) {
    for stripe in stripes.chunks_exact(sum.len().max(1)) {
        sum.iter_mut().zip(stripe).for_each(|(sum, byte)| *sum ^= byte);
        diffuse(sum, hash);
    }
}

/// Replaces each piece of the length of a hash by the hash of its number and itself.
fn diffuse(bytes: &mut [u8], hash: Hash) {
    for (index, piece) in bytes.chunks_mut(hash.output_len()).enumerate() {
        let digest = hash.digest(&[&(index as u32).to_be_bytes(), piece]);
        piece.copy_from_slice(&digest[..piece.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_split_merges_back_and_every_stripe_is_needed() {
        for (len, hash) in [(16, Hash::Sha1), (32, Hash::Sha256), (64, Hash::Sha256), (24, Hash::Sha512)] {
            let key: Vec<u8> = (0..len).collect();
            let mut spread = split(&key, 50, hash).unwrap();
            assert_eq!(*merge(&spread, key.len(), hash), key);
            for stripe in 0..50 {
                spread[stripe * key.len()] ^= 1;
                assert_ne!(*merge(&spread, key.len(), hash), key);
                spread[stripe * key.len()] ^= 1;
            }
        }
    }
}
