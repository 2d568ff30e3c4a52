use std::time::Duration;

use vmwright_crypt::luks1::Cost;
use vmwright_crypt::{Hash, Header, Mode};

use crate::create::{bad_value, no_option, parse_switch};
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
    /// How hard it is to try a passphrase.
    pub cost: Cost,
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
            cost: Cost::default(),
            zeroed: false,
        }
    }
}

const CIPHERS: &str = "aes-128, aes-192 or aes-256";
const HASHES: &str = "sha1, sha224, sha256, sha384 or sha512";

impl LuksOptions {
    pub(crate) const KEYS: &'static [(&'static str, &'static str)] = &[
        ("version", "1 or 2; QEMU reads 1"),
        ("cipher-alg", CIPHERS),
        ("cipher-mode", "xts or cbc"),
        ("ivgen-alg", "plain, plain64 or essiv"),
        ("ivgen-hash-alg", "sha256"),
        ("hash-alg", HASHES),
        ("iter-time", "how long one try of a passphrase takes, in milliseconds"),
        ("iterations", "how many iterations a passphrase is stretched by, instead of iter-time"),
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
                let count = number("iterations", value, "1000 to 100000000", 1000..=100_000_000)?;
                self.cost = Cost::Iterations(count as u32);
            }
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

    /// The options that make an image like one that exists.
    pub(super) fn like(header: &Header) -> Self {
        let mut options = Self::default();
        let (mode, key_bytes) = match header {
            Header::Luks1(header) => {
                options.hash = header.hash_spec.parse().unwrap_or(options.hash);
                (header.mode(), header.key_bytes)
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
