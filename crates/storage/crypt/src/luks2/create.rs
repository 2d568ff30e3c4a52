use std::time::Duration;

use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::header::{Copy, Header};
use super::layout::{HEADER_LEN, SIZES};
use super::metadata::{Metadata, Place, base64};
use crate::kdf::{Argon2, Kdf};
use crate::luks1::Cost;
use crate::{Cipher, Error, Hash, Mode, Passphrase, Result, SECTOR, af, random};

/// How a passphrase of a new key slot is stretched.
#[derive(Debug, Clone, std::marker::Copy, PartialEq, Eq)]
pub enum Stretch {
    /// Exactly so.
    Exactly(Kdf),
    /// By Argon2id, in about so much time on this machine, with at most so much memory in KiB and for so many
    /// threads. Here one thread does the work; programs with several are faster.
    Argon2id {
        /// How long one try takes.
        time: Duration,
        /// The most memory in KiB.
        memory_kib: u32,
        /// How many threads could share the work.
        lanes: u32,
    },
    /// The same by Argon2i.
    Argon2i {
        /// How long one try takes.
        time: Duration,
        /// The most memory in KiB.
        memory_kib: u32,
        /// How many threads could share the work.
        lanes: u32,
    },
    /// By PBKDF2.
    Pbkdf2 {
        /// The hash.
        hash: Hash,
        /// How hard one try is.
        cost: Cost,
    },
}

impl Default for Stretch {
    /// What cryptsetup takes too: Argon2id for two seconds, in 1 GiB and for four threads.
    fn default() -> Self {
        Self::Argon2id { time: Duration::from_secs(2), memory_kib: 1 << 20, lanes: 4 }
    }
}

impl Stretch {
    /// The same effort by PBKDF2, which is all that version 1 has.
    pub(crate) fn as_cost(self) -> Cost {
        match self {
            Self::Argon2id { time, .. } | Self::Argon2i { time, .. } => Cost::Time(time),
            Self::Pbkdf2 { cost, .. } => cost,
            Self::Exactly(Kdf::Pbkdf2 { iterations, .. }) => Cost::Iterations(iterations),
            Self::Exactly(_) => Cost::default(),
        }
    }

    /// The function and its cost, measured where it is given as a time.
    pub(super) fn resolve(self, key_len: usize) -> Result<Kdf> {
        Ok(match self {
            Self::Exactly(kdf) => kdf,
            Self::Argon2id { time, memory_kib, lanes } => {
                Kdf::Argon2id(Argon2::in_time(time, memory_kib, lanes)?)
            }
            Self::Argon2i { time, memory_kib, lanes } => {
                Kdf::Argon2i(Argon2::in_time(time, memory_kib, lanes)?)
            }
            Self::Pbkdf2 { hash, cost } => Kdf::Pbkdf2 { hash, iterations: cost.iterations(hash, key_len) },
        })
    }
}

/// How a new LUKS2 header is laid out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FormatOptions {
    /// How the content is encrypted.
    pub mode: Mode,
    /// The length of the volume key in bytes: XTS needs twice that of the cipher.
    pub key_bytes: usize,
    /// The size of an encrypted sector in bytes: 512, 1024, 2048 or 4096.
    pub sector_size: u32,
    /// The hash by which keys are spread and known.
    pub hash: Hash,
    /// How the passphrase is stretched.
    pub stretch: Stretch,
    /// How hard it is to compute the digest of the volume key.
    pub digest_cost: Cost,
    /// The name that a person gives.
    pub label: String,
    /// Where the content begins, in bytes; at 16 MiB where not given.
    pub payload_offset: Option<u64>,
}

impl Default for FormatOptions {
    fn default() -> Self {
        Self {
            mode: Mode::XtsPlain64,
            key_bytes: 64,
            sector_size: 512,
            hash: Hash::Sha256,
            stretch: Stretch::default(),
            digest_cost: Cost::Time(Duration::from_millis(125)),
            label: String::new(),
            payload_offset: None,
        }
    }
}

/// The length of a new header with its JSON area.
const HDR_SIZE: u64 = SIZES[0];

/// Key material begins at multiples of this.
pub(super) const AREA_ALIGNMENT: u64 = 4096;

/// The length of the area for a key of so many bytes.
pub(super) fn area_len(key_len: usize) -> u64 {
    (key_len as u64 * u64::from(af::STRIPES)).next_multiple_of(AREA_ALIGNMENT)
}

impl FormatOptions {
    fn check(&self) -> Result<u64> {
        if !self.mode.key_sizes().contains(&self.key_bytes) {
            return Err(Error::invalid("the length of the volume key", "it does not fit the cipher mode"));
        }
        if self.label.len() > 47 || self.label.chars().any(char::is_control) {
            return Err(Error::invalid("the label", "it must be at most 47 printable bytes"));
        }
        let offset = self.payload_offset.unwrap_or(16 << 20);
        let least = 2 * HDR_SIZE + area_len(self.key_bytes);
        if offset < least || !offset.is_multiple_of(AREA_ALIGNMENT) || offset > 128 << 20 {
            return Err(Error::invalid(
                "the place of the encrypted content",
                "it must be a multiple of 4096 behind the key material, and within the first 128 MiB",
            ));
        }
        Ok(offset)
    }
}

/// Makes a new volume key, and both headers with a first key slot for it.
///
/// The bytes are everything before the content.
pub fn format(options: &FormatOptions, passphrase: &Passphrase) -> Result<(Zeroizing<Vec<u8>>, Cipher)> {
    let payload_offset = options.check()?;
    let volume_key = random::secret(options.key_bytes)?;
    let cipher = Cipher::new(options.mode, &volume_key, options.sector_size)?;
    let area = 2 * HDR_SIZE;
    let (slot, material) = keyslot(&volume_key, passphrase, options.stretch, options.hash, area)?;
    let metadata = json!({
        "keyslots": { "0": slot },
        "tokens": {},
        "segments": { "0": {
            "type": "crypt",
            "offset": payload_offset.to_string(),
            "size": "dynamic",
            "iv_tweak": "0",
            "encryption": format!("aes-{}", options.mode.name()),
            "sector_size": options.sector_size,
        } },
        "digests": { "0": digest(&volume_key, options)? },
        "config": {
            "json_size": (HDR_SIZE - HEADER_LEN as u64).to_string(),
            "keyslots_size": (payload_offset - 2 * HDR_SIZE).to_string(),
        },
    });
    let header = blank(options, &metadata)?;
    let mut bytes = Zeroizing::new(vec![0; payload_offset as usize]);
    for copy in [Copy::First, Copy::Second] {
        let at = copy.place(HDR_SIZE) as usize;
        bytes[at..at + HDR_SIZE as usize].copy_from_slice(&header.encode(copy, random::array()?)?);
    }
    bytes[area as usize..area as usize + material.len()].copy_from_slice(&material);
    Ok((bytes, cipher))
}

fn blank(options: &FormatOptions, metadata: &Value) -> Result<Header> {
    let json = metadata.to_string().into_bytes();
    let place = Place { at: HEADER_LEN as u64, hdr_size: HDR_SIZE };
    let mut area = json.clone();
    area.push(0);
    Ok(Header {
        uuid: random::uuid()?,
        label: options.label.clone(),
        subsystem: String::new(),
        sequence: 1,
        checksum: Hash::Sha256,
        hdr_size: HDR_SIZE,
        metadata: Metadata::parse(&area, &place)?,
        json,
        source: Copy::First,
        other: None,
    })
}

fn digest(volume_key: &[u8], options: &FormatOptions) -> Result<Value> {
    let hash = options.hash;
    let iterations = options.digest_cost.iterations(hash, hash.output_len());
    let salt: [u8; 32] = random::array()?;
    Ok(json!({
        "type": "pbkdf2",
        "keyslots": ["0"],
        "segments": ["0"],
        "hash": hash.name(),
        "iterations": iterations,
        "salt": base64(&salt),
        "digest": base64(&hash.pbkdf2(volume_key, &salt, iterations, hash.output_len())),
    }))
}

/// Makes a key slot for a volume key: its description, and its key material for `area`.
pub(super) fn keyslot(
    volume_key: &[u8],
    passphrase: &Passphrase,
    stretch: Stretch,
    hash: Hash,
    area: u64,
) -> Result<(Value, Zeroizing<Vec<u8>>)> {
    // Key material is always encrypted like this, whatever the content is.
    const MODE: Mode = Mode::XtsPlain64;
    const KEY_LEN: usize = 64;
    let kdf = stretch.resolve(KEY_LEN)?;
    let salt: [u8; 32] = random::array()?;
    let key = kdf.derive(passphrase.as_bytes(), &salt, KEY_LEN)?;
    let mut material = af::split(volume_key, af::STRIPES, hash)?;
    let len = material.len().next_multiple_of(SECTOR as usize);
    material.resize(len, 0);
    Cipher::new(MODE, &key, SECTOR as u32)?.encrypt(0, &mut material)?;
    let stretched = match kdf {
        Kdf::Pbkdf2 { hash, iterations } => {
            json!({ "type": "pbkdf2", "hash": hash.name(), "iterations": iterations, "salt": base64(&salt) })
        }
        Kdf::Argon2i(cost) => argon2("argon2i", cost, &salt),
        Kdf::Argon2id(cost) => argon2("argon2id", cost, &salt),
    };
    let slot = json!({
        "type": "luks2",
        "key_size": volume_key.len(),
        "af": { "type": "luks1", "stripes": af::STRIPES, "hash": hash.name() },
        "area": {
            "type": "raw",
            "offset": area.to_string(),
            "size": area_len(volume_key.len()).to_string(),
            "encryption": format!("aes-{}", MODE.name()),
            "key_size": KEY_LEN,
        },
        "kdf": stretched,
    });
    Ok((slot, material))
}

fn argon2(name: &str, cost: Argon2, salt: &[u8]) -> Value {
    json!({
        "type": name,
        "time": cost.passes,
        "memory": cost.memory_kib,
        "cpus": cost.lanes,
        "salt": base64(salt),
    })
}
