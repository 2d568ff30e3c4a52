use std::time::Duration;

use zeroize::Zeroizing;

use super::header::{Header, Slot};
use super::layout::{DIGEST, SALT, SECTOR, SLOTS};
use crate::af::STRIPES;
use crate::{Cipher, Error, Hash, Mode, Passphrase, Result, random};

/// The least iterations, as every other program has them too.
const LEAST: u32 = 1000;

/// Headers and key material begin at multiples of this, in bytes.
const ALIGNMENT: u64 = 4096;

/// How hard it is to try a passphrase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cost {
    /// So much that one try takes about this long on this machine.
    Time(Duration),
    /// So many iterations.
    Iterations(u32),
}

impl Default for Cost {
    fn default() -> Self {
        Self::Time(Duration::from_secs(2))
    }
}

impl Cost {
    /// The iterations of PBKDF2 for a key of `len` bytes.
    pub(crate) fn iterations(self, hash: Hash, len: usize) -> u32 {
        match self {
            Self::Time(time) => hash.iterations_in(time, len).max(LEAST),
            Self::Iterations(iterations) => iterations.max(LEAST),
        }
    }

    /// The cost of a digest: an eighth, since it is paid on top.
    pub(crate) fn of_digest(self) -> Self {
        match self {
            Self::Time(time) => Self::Time(time / 8),
            Self::Iterations(iterations) => Self::Iterations(iterations / 8),
        }
    }
}

/// How a new LUKS1 header is laid out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FormatOptions {
    /// How the content is encrypted.
    pub mode: Mode,
    /// The length of the volume key in bytes: XTS needs twice that of the cipher.
    pub key_bytes: usize,
    /// The hash by which passphrases are stretched.
    pub hash: Hash,
    /// How hard it is to try a passphrase.
    pub cost: Cost,
    /// Where the content begins, in bytes; behind the key material, at a multiple of 1 MiB, where not given.
    pub payload_offset: Option<u64>,
}

impl Default for FormatOptions {
    fn default() -> Self {
        Self {
            mode: Mode::XtsPlain64,
            key_bytes: 64,
            hash: Hash::Sha256,
            cost: Cost::default(),
            payload_offset: None,
        }
    }
}

impl FormatOptions {
    /// The length of the key material of a slot with its padding.
    fn stride(&self) -> u64 {
        (self.key_bytes as u64 * u64::from(STRIPES)).next_multiple_of(ALIGNMENT)
    }

    /// The least offset that the content can have, in bytes.
    pub fn least_payload_offset(&self) -> u64 {
        ALIGNMENT + SLOTS as u64 * self.stride()
    }

    fn place_payload(&self) -> Result<u64> {
        let least = self.least_payload_offset();
        let offset = self.payload_offset.unwrap_or_else(|| least.next_multiple_of(1 << 20));
        if offset < least || !offset.is_multiple_of(SECTOR) || offset > 1 << 30 {
            return Err(Error::invalid(
                "the place of the encrypted content",
                "it must be whole sectors behind the key material, and within the first GiB",
            ));
        }
        Ok(offset)
    }
}

/// Makes a new volume key, and the header with a first key slot for it.
///
/// The bytes are everything before the content, [`Header::payload_offset`] of them.
pub fn format(options: &FormatOptions, passphrase: &Passphrase) -> Result<(Zeroizing<Vec<u8>>, Cipher)> {
    if !options.mode.key_sizes().contains(&options.key_bytes) {
        return Err(Error::invalid("the length of the volume key", "it does not fit the cipher mode"));
    }
    let volume_key = random::secret(options.key_bytes)?;
    let mut header = blank(options)?;
    header.digest = header.digest_of(&volume_key, options.hash)[..]
        .try_into()
        .map_err(|_| Error::invalid("the digest", "it has another length"))?;
    let iterations = options.cost.iterations(options.hash, options.key_bytes);
    header.slots[0] = Slot { active: true, iterations, salt: random::array()?, ..header.slots[0] };
    let material = header.seal(&header.slots[0], &volume_key, passphrase)?;

    let mut bytes = Zeroizing::new(vec![0; header.payload_offset as usize]);
    let encoded = header.encode();
    bytes[..encoded.len()].copy_from_slice(&encoded);
    let at = header.slots[0].offset as usize;
    bytes[at..at + material.len()].copy_from_slice(&material);
    Ok((bytes, Cipher::new(options.mode, &volume_key, SECTOR as u32)?))
}

/// A header without a digest and without keys.
fn blank(options: &FormatOptions) -> Result<Header> {
    let slot = |index: usize| Slot {
        active: false,
        iterations: 0,
        offset: ALIGNMENT + index as u64 * options.stride(),
        stripes: STRIPES,
        salt: [0; SALT],
    };
    Ok(Header {
        cipher_name: "aes".into(),
        cipher_mode: options.mode.name().into(),
        hash_spec: options.hash.name().into(),
        uuid: random::uuid()?,
        key_bytes: options.key_bytes,
        digest_iterations: options.cost.of_digest().iterations(options.hash, DIGEST),
        payload_offset: options.place_payload()?,
        digest: [0; DIGEST],
        digest_salt: random::array()?,
        slots: std::array::from_fn(slot),
    })
}
