use std::time::Duration;

use vmwright_crypt::luks1::Cost;
use vmwright_crypt::luks2::Stretch;
use vmwright_crypt::{Argon2, Hash, Header, Kdf, Mode, luks1, luks2};

use crate::create::{bad_value, no_option, parse_bytes, parse_switch};
use crate::{Error, Format, Result};

/// How the blocks of a sector hang together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is its mode")]
pub enum Chaining {
    Xts,
    Cbc,
}

/// How the number of a sector goes into its encryption.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IvGenerator {
    /// Its low 32 bits.
    Plain,
    /// As it is.
    Plain64,
    /// Encrypted with the SHA-256 of the key.
    Essiv,
}

/// How passphrases are stretched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is its function")]
pub enum LuksKdf {
    Pbkdf2,
    Argon2i,
    Argon2id,
}

/// How a new LUKS image is laid out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LuksOptions {
    /// The version: 1, which QEMU reads, or 2.
    pub version: u8,
    /// The length of the cipher's key in bits: 128, 192 or 256.
    pub key_bits: u32,
    /// How the blocks of a sector hang together.
    pub chaining: Chaining,
    /// How the number of a sector goes into its encryption.
    pub iv_generator: IvGenerator,
    /// The hash by which passphrases are stretched and keys are spread.
    pub hash: Hash,
    /// How passphrases are stretched; version 1 has PBKDF2 alone. Where not given, version 2 has Argon2id.
    pub kdf: Option<LuksKdf>,
    /// How hard it is to try a passphrase; iterations are passes over the memory with Argon2.
    pub cost: Cost,
    /// The most memory of Argon2 in KiB.
    pub memory_kib: u32,
    /// For how many threads Argon2 is.
    pub threads: u32,
    /// The size of an encrypted sector in bytes; in version 1 it is 512.
    pub sector_size: u32,
    /// The name that a person gives, in version 2.
    pub label: String,
    /// Whether the new disk reads as zeros. All of it is written then; otherwise it holds what nobody can foretell.
    pub zeroed: bool,
}

impl Default for LuksOptions {
    fn default() -> Self {
        Self {
            version: 1,
            key_bits: 256,
            chaining: Chaining::Xts,
            iv_generator: IvGenerator::Plain64,
            hash: Hash::Sha256,
            kdf: None,
            cost: Cost::default(),
            memory_kib: 1 << 20,
            threads: 4,
            sector_size: 512,
            label: String::new(),
            zeroed: false,
        }
    }
}

const CIPHERS: &str = "aes-128, aes-192 or aes-256";
const PBKDFS: &str = "pbkdf2, argon2i or argon2id; the last two in version 2 only";
const HASHES: &str = "sha1, sha224, sha256, sha384 or sha512";

impl LuksOptions {
    /// How many bytes a new image has before its content.
    pub(crate) fn header_len(&self) -> Result<u64> {
        Ok(match self.version {
            1 => self.key_area_len()?.next_multiple_of(1 << 20),
            _ => self.luks2()?.payload_offset.unwrap_or(16 << 20),
        })
    }

    /// How many bytes the header and the key slots of version 1 have.
    pub(crate) fn key_area_len(&self) -> Result<u64> {
        Ok(self.luks1()?.least_payload_offset())
    }

    pub(crate) const KEYS: &'static [(&'static str, &'static str)] = &[
        ("version", "1 or 2; QEMU reads 1"),
        ("cipher-alg", CIPHERS),
        ("cipher-mode", "xts or cbc"),
        ("ivgen-alg", "plain, plain64 or essiv"),
        ("ivgen-hash-alg", "sha256"),
        ("hash-alg", HASHES),
        ("iter-time", "how long one try of a passphrase takes, in milliseconds"),
        ("iterations", "by how many iterations or passes it is stretched, instead of iter-time"),
        ("pbkdf", PBKDFS),
        ("memory", "the most memory of argon2, such as 1G"),
        ("threads", "for how many threads argon2 is, 1 to 64"),
        ("sector-size", "512, 1024, 2048 or 4096; more than 512 in version 2 only"),
        ("label", "a name, in version 2 only"),
        ("zeroed", "on or off: whether the new disk reads as zeros, for which all of it is written"),
    ];

    pub(crate) fn set(&mut self, key: &str, value: &str) -> Result<()> {
        match key {
            "version" => {
                self.version = number("version", value, "1 or 2", 1..=2)? as u8;
            }
            "cipher-alg" => {
                self.key_bits = match value {
                    "aes-128" => 128,
                    "aes-192" => 192,
                    "aes-256" => 256,
                    _ => return Err(bad_value("cipher-alg", value, CIPHERS)),
                }
            }
            "cipher-mode" => {
                self.chaining = match value {
                    "xts" => Chaining::Xts,
                    "cbc" => Chaining::Cbc,
                    _ => return Err(bad_value("cipher-mode", value, "xts or cbc")),
                }
            }
            "ivgen-alg" => {
                self.iv_generator = match value {
                    "plain" => IvGenerator::Plain,
                    "plain64" => IvGenerator::Plain64,
                    "essiv" => IvGenerator::Essiv,
                    _ => return Err(bad_value("ivgen-alg", value, "plain, plain64 or essiv")),
                }
            }
            "ivgen-hash-alg" if value == "sha256" => {}
            "ivgen-hash-alg" => return Err(bad_value("ivgen-hash-alg", value, "sha256")),
            "hash-alg" => self.hash = value.parse().map_err(|_| bad_value("hash-alg", value, HASHES))?,
            "iter-time" => {
                let time = number("iter-time", value, "milliseconds, at most 600000", 1..=600_000)?;
                self.cost = Cost::Time(Duration::from_millis(time));
            }
            "iterations" => {
                let count = number("iterations", value, "1 to 100000000", 1..=100_000_000)?;
                self.cost = Cost::Iterations(count as u32);
            }
            "pbkdf" => {
                self.kdf = Some(match value {
                    "pbkdf2" => LuksKdf::Pbkdf2,
                    "argon2i" => LuksKdf::Argon2i,
                    "argon2id" => LuksKdf::Argon2id,
                    _ => return Err(bad_value("pbkdf", value, PBKDFS)),
                });
            }
            "memory" => {
                let kib = parse_bytes("memory", value)? / 1024;
                let fits = u32::try_from(kib).ok().filter(|kib| (64..=4 << 20).contains(kib));
                self.memory_kib = fits.ok_or_else(|| bad_value("memory", value, "64K to 4G"))?;
            }
            "threads" => self.threads = number("threads", value, "1 to 64", 1..=64)? as u32,
            "sector-size" => {
                let allowed = "512, 1024, 2048 or 4096";
                let size = number("sector-size", value, allowed, 512..=4096)? as u32;
                if !size.is_power_of_two() {
                    return Err(bad_value("sector-size", value, allowed));
                }
                self.sector_size = size;
            }
            "label" => self.label = value.to_owned(),
            "zeroed" => self.zeroed = parse_switch("zeroed", value)?,
            _ => return Err(no_option(Format::Luks, key)),
        }
        Ok(())
    }

    /// How sectors are encrypted, and the length of the volume key in bytes.
    pub(super) fn cipher(&self) -> Result<(Mode, usize)> {
        let mode = match (self.chaining, self.iv_generator) {
            (Chaining::Xts, IvGenerator::Plain64) => Mode::XtsPlain64,
            (Chaining::Xts, IvGenerator::Plain) => Mode::XtsPlain,
            (Chaining::Cbc, IvGenerator::Essiv) => Mode::CbcEssivSha256,
            (Chaining::Cbc, IvGenerator::Plain64) => Mode::CbcPlain64,
            (Chaining::Cbc, IvGenerator::Plain) => Mode::CbcPlain,
            (Chaining::Xts, IvGenerator::Essiv) => {
                return Err(Error::invalid(
                    "a new LUKS image",
                    "XTS goes with plain or plain64, not with essiv",
                ));
            }
        };
        let doubled = if self.chaining == Chaining::Xts { 2 } else { 1 };
        let len = self.key_bits as usize / 8 * doubled;
        match mode.key_sizes().contains(&len) {
            true => Ok((mode, len)),
            false => Err(Error::invalid("a new LUKS image", "this cipher mode has no keys of this length")),
        }
    }

    /// The header of version 1.
    pub(crate) fn luks1(&self) -> Result<luks1::FormatOptions> {
        let (mode, key_bytes) = self.cipher()?;
        if self.sector_size != 512
            || !self.label.is_empty()
            || !matches!(self.kdf, None | Some(LuksKdf::Pbkdf2))
        {
            let why = "sector sizes, labels and argon2 are of version 2 (version=2)";
            return Err(Error::invalid("a new LUKS1 image", why));
        }
        Ok(luks1::FormatOptions { mode, key_bytes, hash: self.hash, cost: self.cost, payload_offset: None })
    }

    /// The header of version 2.
    pub(super) fn luks2(&self) -> Result<luks2::FormatOptions> {
        let (mode, key_bytes) = self.cipher()?;
        Ok(luks2::FormatOptions {
            mode,
            key_bytes,
            sector_size: self.sector_size,
            hash: self.hash,
            stretch: self.stretch(),
            digest_cost: match self.cost {
                Cost::Time(time) => Cost::Time(time / 16),
                Cost::Iterations(count) => Cost::Iterations(count / 8),
            },
            label: self.label.clone(),
            ..luks2::FormatOptions::default()
        })
    }

    /// How the passphrase of a key slot of version 2 is stretched.
    pub fn stretch(&self) -> Stretch {
        let (memory_kib, lanes) = (self.memory_kib, self.threads);
        let exactly = |passes| Argon2 { passes, memory_kib, lanes };
        match (self.kdf.unwrap_or(LuksKdf::Argon2id), self.cost) {
            (LuksKdf::Pbkdf2, cost) => Stretch::Pbkdf2 { hash: self.hash, cost },
            (LuksKdf::Argon2id, Cost::Time(time)) => Stretch::Argon2id { time, memory_kib, lanes },
            (LuksKdf::Argon2id, Cost::Iterations(passes)) => Stretch::Exactly(Kdf::Argon2id(exactly(passes))),
            (LuksKdf::Argon2i, Cost::Iterations(passes)) => Stretch::Exactly(Kdf::Argon2i(exactly(passes))),
            (LuksKdf::Argon2i, Cost::Time(time)) => Stretch::Argon2i { time, memory_kib, lanes },
        }
    }

    /// The options that make an image like one that exists.
    pub(super) fn like(header: &Header) -> Self {
        let mut options = Self::default();
        let (mode, key_bytes) = match header {
            Header::Luks1(header) => {
                options.hash = header.hash_spec.parse().unwrap_or(options.hash);
                (header.mode(), header.key_bytes)
            }
            Header::Luks2(header) => {
                let hash = header.digest_cost().and_then(|(hash, _)| hash.parse().ok());
                options.version = 2;
                options.hash = hash.unwrap_or(options.hash);
                options.sector_size = header.sector_size().map_or(512, |size| size as u32);
                options.label.clone_from(&header.label);
                (header.mode(), header.slots().next().map_or(0, |slot| slot.key_bytes))
            }
            _ => return options,
        };
        let Ok(mode) = mode else { return options };
        (options.chaining, options.iv_generator) = match mode {
            Mode::XtsPlain64 => (Chaining::Xts, IvGenerator::Plain64),
            Mode::XtsPlain => (Chaining::Xts, IvGenerator::Plain),
            Mode::CbcPlain64 => (Chaining::Cbc, IvGenerator::Plain64),
            Mode::CbcPlain => (Chaining::Cbc, IvGenerator::Plain),
            _ => (Chaining::Cbc, IvGenerator::Essiv),
        };
        let halves = if options.chaining == Chaining::Xts { 2 } else { 1 };
        options.key_bits = (key_bytes * 8 / halves) as u32;
        options
    }
}

fn number(
    key: &'static str,
    value: &str,
    allowed: &'static str,
    range: std::ops::RangeInclusive<u64>,
) -> Result<u64> {
    let number = value.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| bad_value(key, value, allowed))
}
