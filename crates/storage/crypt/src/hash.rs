use std::time::{Duration, Instant};

use sha2::Digest;
use zeroize::Zeroizing;

use crate::{Error, Result};

/// A hash function, by which passphrases are stretched and keys are spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(missing_docs, reason = "each is its function")]
pub enum Hash {
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

/// Puts the type of a hash in for `$D`.
macro_rules! with {
    ($hash:expr, $D:ident => $body:expr) => {
        match $hash {
            Hash::Sha1 => {
                type $D = sha1::Sha1;
                $body
            }
            Hash::Sha224 => {
                type $D = sha2::Sha224;
                $body
            }
            Hash::Sha256 => {
                type $D = sha2::Sha256;
                $body
            }
            Hash::Sha384 => {
                type $D = sha2::Sha384;
                $body
            }
            Hash::Sha512 => {
                type $D = sha2::Sha512;
                $body
            }
        }
    };
}

impl Hash {
    /// All hash functions.
    pub const ALL: [Self; 5] = [Self::Sha1, Self::Sha224, Self::Sha256, Self::Sha384, Self::Sha512];

    /// The name as it stands in headers, such as `sha256`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "sha1",
            Self::Sha224 => "sha224",
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }

    /// The length of its result in bytes.
    pub fn output_len(self) -> usize {
        with!(self, D => <D as Digest>::output_size())
    }

    /// The hash of some pieces one after another.
    pub(crate) fn digest(self, pieces: &[&[u8]]) -> Zeroizing<Vec<u8>> {
        with!(self, D => {
            let mut hasher = D::new();
            pieces.iter().for_each(|piece| hasher.update(piece));
            Zeroizing::new(hasher.finalize().to_vec())
        })
    }

    /// Stretches a secret to `len` bytes by PBKDF2 with this hash.
    pub(crate) fn pbkdf2(
        self,
        secret: &[u8],
        salt: &[u8],
        iterations: u32,
        len: usize,
    ) -> Zeroizing<Vec<u8>> {
        let mut key = Zeroizing::new(vec![0; len]);
        with!(self, D => pbkdf2::pbkdf2_hmac::<D>(secret, salt, iterations, &mut key));
        key
    }

    /// How many iterations of PBKDF2 for a key of `len` bytes take so long on this machine.
    pub(crate) fn iterations_in(self, time: Duration, len: usize) -> u32 {
        let mut iterations = 1u32 << 12;
        loop {
            let begun = Instant::now();
            self.pbkdf2(b"passphrase", b"salt", iterations, len);
            let took = begun.elapsed();
            if took >= Duration::from_millis(60) || iterations >= 1 << 28 {
                let scaled = f64::from(iterations) * time.as_secs_f64() / took.as_secs_f64().max(1e-9);
                // A float becomes the nearest number that there is.
                return scaled as u32;
            }
            iterations *= 2;
        }
    }
}

impl std::fmt::Display for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for Hash {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|hash| hash.name() == name);
        found.ok_or_else(|| Error::unknown("hash function", name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back_and_lengths_are_those_of_the_functions() {
        for (hash, len) in Hash::ALL.into_iter().zip([20, 28, 32, 48, 64]) {
            assert_eq!(hash.name().parse::<Hash>().unwrap(), hash);
            assert_eq!((hash.output_len(), hash.digest(&[b"a", b"b"]).len()), (len, len));
        }
        assert!("whirlpool".parse::<Hash>().unwrap_err().to_string().contains("\"whirlpool\""));
    }

    #[test]
    fn pbkdf2_is_that_of_rfc_6070() {
        let key = Hash::Sha1.pbkdf2(b"password", b"salt", 4096, 20);
        assert_eq!(key[..4], [0x4b, 0x00, 0x79, 0x01]);
        assert_eq!(key[16..], [0x65, 0xa4, 0x29, 0xc1]);
    }

    #[test]
    fn more_time_is_more_iterations() {
        let few = Hash::Sha256.iterations_in(Duration::from_millis(10), 32);
        assert!(few > 1000 && Hash::Sha256.iterations_in(Duration::from_secs(10), 32) > few * 20);
    }
}
