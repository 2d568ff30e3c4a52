//! The JSON area: key slots, segments, digests (section 3 of the specification).

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Error as _, IgnoredAny};
use serde::{Deserialize, Deserializer};

use crate::error::Reason;
use crate::{Error, Hash, Result};

/// The most objects of a kind, and the numbers they may have.
pub(crate) const MAX_OBJECTS: u32 = 32;

/// Objects by their numbers.
pub(crate) type Numbered<T> = BTreeMap<Number, T>;

/// The number of an object, which JSON has as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Number(pub(crate) u32);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        // One number has one name, by which the text is changed.
        let number = text.parse::<u32>().ok().filter(|number| number.to_string() == text);
        number.map(Self).ok_or_else(|| D::Error::custom("the name of an object is no number"))
    }
}

/// A number of bytes, which JSON has as text since it has no numbers of 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bytes(pub(crate) u64);

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse().ok().filter(|_| digits);
        number.map(Self).ok_or_else(|| D::Error::custom("a number of bytes is no decimal text of 64 bits"))
    }
}

/// Bytes in base64.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Base64(pub(crate) Vec<u8>);

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Self).map_err(D::Error::custom)
    }
}

/// The whole area.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Metadata {
    pub(crate) keyslots: Numbered<Keyslot>,
    /// Other ways to get at a passphrase, which are not used here.
    #[serde(rename = "tokens")]
    pub(crate) _tokens: Numbered<IgnoredAny>,
    pub(crate) segments: Numbered<Segment>,
    pub(crate) digests: Numbered<Digest>,
    pub(crate) config: Config,
}

/// A key slot (section 3.2); all but the type is read where the type is known.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Keyslot {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) key_size: u64,
    /// 0 is not tried unless it is asked for, 2 is tried first.
    pub(crate) priority: Option<u64>,
    pub(crate) area: Area,
    pub(crate) kdf: Option<Kdf>,
    pub(crate) af: Option<Af>,
}

/// Where the key material of a slot is.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Area {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) offset: Bytes,
    pub(crate) size: Bytes,
    pub(crate) encryption: Option<String>,
    pub(crate) key_size: Option<u64>,
}

/// How a passphrase is stretched.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(crate) enum Kdf {
    Pbkdf2 { hash: String, iterations: u32, salt: Base64 },
    Argon2i { time: u32, memory: u32, cpus: u32, salt: Base64 },
    Argon2id { time: u32, memory: u32, cpus: u32, salt: Base64 },
}

/// How a key is spread over its key material.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Af {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) stripes: u32,
    pub(crate) hash: String,
}

/// A range of the content (section 3.3).
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Segment {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) offset: Bytes,
    /// A number or `dynamic`.
    pub(crate) size: String,
    pub(crate) iv_tweak: Option<Bytes>,
    pub(crate) encryption: Option<String>,
    pub(crate) sector_size: Option<u64>,
    pub(crate) integrity: Option<IgnoredAny>,
}

/// What a key is known by (section 3.4).
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Digest {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) keyslots: Vec<Number>,
    pub(crate) segments: Vec<Number>,
    pub(crate) hash: String,
    pub(crate) iterations: u32,
    pub(crate) salt: Base64,
    pub(crate) digest: Base64,
}

/// What is true of the whole header (section 3.5).
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Config {
    pub(crate) json_size: Bytes,
    pub(crate) keyslots_size: Bytes,
    #[serde(default)]
    pub(crate) requirements: Requirements,
}

/// What a program must know to open the disk.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Requirements {
    #[serde(default)]
    pub(crate) mandatory: Vec<String>,
}

/// Where in the metadata something is wrong.
pub(crate) struct Place {
    /// Where the area begins in the file.
    pub(crate) at: u64,
    /// The length of one copy of the header.
    pub(crate) hdr_size: u64,
}

impl Place {
    pub(crate) fn error(&self, place: impl Into<String>, why: &'static str) -> Error {
        Reason::Metadata { at: self.at, place: place.into(), why }.into()
    }
}

impl Metadata {
    /// Reads an area: JSON, and behind it nothing but zeros.
    pub(crate) fn parse(area: &[u8], place: &Place) -> Result<Self> {
        let json = trim(area, place)?;
        let json_error = |source| Error::from(Reason::Json { at: place.at, source });
        let metadata: Self = serde_json::from_slice(json).map_err(json_error)?;
        metadata.validate(place)?;
        Ok(metadata)
    }

    fn validate(&self, place: &Place) -> Result<()> {
        self.check_numbers(place)?;
        let config = &self.config;
        if config.json_size.0 != place.hdr_size - super::layout::HEADER_LEN as u64 {
            return Err(place.error("config.json_size", "it is not that of the area"));
        }
        if !config.keyslots_size.0.is_multiple_of(4096) || config.keyslots_size.0 > 128 << 20 {
            return Err(place.error("config.keyslots_size", "it is no multiple of 4096 up to 128 MiB"));
        }
        for (number, segment) in &self.segments {
            segment.validate(*number, self.keyslots_end(place), place)?;
        }
        self.check_areas(place)?;
        for (number, digest) in &self.digests {
            let name = || format!("digests.{}", number.0);
            if !digest.keyslots.iter().all(|slot| self.keyslots.contains_key(slot))
                || !digest.segments.iter().all(|segment| self.segments.contains_key(segment))
            {
                return Err(place.error(name(), "it is for a key slot or a segment that does not exist"));
            }
            if digest.iterations == 0 || digest.digest.0.is_empty() || digest.digest.0.len() > 64 {
                return Err(place.error(name(), "its iterations or its length are out of range"));
            }
        }
        Ok(())
    }

    fn check_numbers(&self, place: &Place) -> Result<()> {
        let highest = |last: Option<&Number>| last.is_some_and(|number| number.0 >= MAX_OBJECTS);
        for (name, too_high) in [
            ("keyslots", highest(self.keyslots.keys().last())),
            ("tokens", highest(self._tokens.keys().last())),
            ("segments", highest(self.segments.keys().last())),
            ("digests", highest(self.digests.keys().last())),
        ] {
            if too_high {
                return Err(place.error(name, "an object has a number above 31"));
            }
        }
        Ok(())
    }

    /// Where the area for key material ends.
    pub(crate) fn keyslots_end(&self, place: &Place) -> u64 {
        2 * place.hdr_size + self.config.keyslots_size.0
    }

    /// Key material is behind both headers, before the content, and no two in one place.
    fn check_areas(&self, place: &Place) -> Result<()> {
        let mut areas: Vec<(u64, u64)> = Vec::new();
        for (number, slot) in &self.keyslots {
            let name = || format!("keyslots.{}.area", number.0);
            let (start, len) = (slot.area.offset.0, slot.area.size.0);
            let end = start.checked_add(len).filter(|end| *end <= self.keyslots_end(place));
            let Some(end) = end.filter(|_| start >= 2 * place.hdr_size && len > 0) else {
                return Err(place.error(name(), "it is not within the area for key material"));
            };
            if areas.iter().any(|other| start < other.1 && other.0 < end) {
                return Err(place.error(name(), "it overlaps another one"));
            }
            areas.push((start, end));
            slot.validate(*number, place)?;
        }
        Ok(())
    }
}

impl Keyslot {
    /// Whether it holds a key that a passphrase opens; others are for programs that change the encryption.
    pub(crate) fn is_luks2(&self) -> bool {
        self.kind == "luks2"
    }

    fn validate(&self, number: Number, place: &Place) -> Result<()> {
        if !self.is_luks2() {
            return Ok(());
        }
        let error = |why| Err(place.error(format!("keyslots.{}", number.0), why));
        if self.area.kind != "raw" || self.kdf.is_none() || self.area.encryption.is_none() {
            return error("its area or the stretching of its passphrase is missing");
        }
        if !(1..=128).contains(&self.key_size) || !(1..=128).contains(&self.area.key_size.unwrap_or(0)) {
            return error("the length of a key is out of range");
        }
        let Some(af) = &self.af else { return error("how its key is spread is missing") };
        if af.kind != "luks1" || af.stripes != crate::af::STRIPES {
            return error("its key is not spread over 4000 stripes");
        }
        if self.area.size.0 < (self.key_size * u64::from(af.stripes)).next_multiple_of(512) {
            return error("its area is smaller than its key material");
        }
        Ok(())
    }
}

impl Segment {
    fn validate(&self, number: Number, keyslots_end: u64, place: &Place) -> Result<()> {
        let error = |why| Err(place.error(format!("segments.{}", number.0), why));
        if self.len().is_err() {
            return error("its size is neither a number nor \"dynamic\"");
        }
        if self.kind != "crypt" {
            return Ok(());
        }
        let Some(sector_size) = self.sector_size.filter(|size| [512, 1024, 2048, 4096].contains(size)) else {
            return error("its sectors have neither 512, 1024, 2048 nor 4096 bytes");
        };
        if self.encryption.is_none() || self.iv_tweak.is_none() {
            return error("how it is encrypted is missing");
        }
        // Beginning at zero says that the content is in another file.
        if self.offset.0 != 0 && self.offset.0 < keyslots_end {
            return error("it begins before the end of the key material");
        }
        let len = self.len().unwrap_or(None).unwrap_or(0);
        if !self.offset.0.is_multiple_of(sector_size) || !len.is_multiple_of(sector_size) {
            return error("it is not of whole sectors");
        }
        if self.offset.0.checked_add(len).is_none() {
            return error("it ends behind all bounds");
        }
        Ok(())
    }

    /// The length in bytes; `None` up to the end of the file.
    pub(crate) fn len(&self) -> Result<Option<u64>> {
        match self.size.as_str() {
            "dynamic" => Ok(None),
            text => {
                let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
                let len = text.parse().ok().filter(|len| digits && *len > 0);
                len.map(Some).ok_or_else(|| Error::invalid("the size of a segment", "it is no number"))
            }
        }
    }
}

impl Kdf {
    /// The name, such as `argon2id`.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Pbkdf2 { .. } => "pbkdf2",
            Self::Argon2i { .. } => "argon2i",
            Self::Argon2id { .. } => "argon2id",
        }
    }

    /// The kind of hash and how it is repeated.
    pub(crate) fn to_kdf(&self) -> Result<crate::kdf::Kdf> {
        use crate::kdf::{Argon2, Kdf};
        Ok(match self {
            Self::Pbkdf2 { hash, iterations, .. } => {
                Kdf::Pbkdf2 { hash: hash.parse::<Hash>()?, iterations: *iterations }
            }
            Self::Argon2i { time, memory, cpus, .. } => {
                Kdf::Argon2i(Argon2 { passes: *time, memory_kib: *memory, lanes: *cpus })
            }
            Self::Argon2id { time, memory, cpus, .. } => {
                Kdf::Argon2id(Argon2 { passes: *time, memory_kib: *memory, lanes: *cpus })
            }
        })
    }

    pub(crate) fn salt(&self) -> &[u8] {
        match self {
            Self::Pbkdf2 { salt, .. } | Self::Argon2i { salt, .. } | Self::Argon2id { salt, .. } => &salt.0,
        }
    }
}

/// The JSON text of an area, which ends with a zero and has nothing but zeros behind that.
pub(crate) fn trim<'a>(area: &'a [u8], place: &Place) -> Result<&'a [u8]> {
    let end = area.iter().position(|byte| *byte == 0);
    let Some(end) = end.filter(|end| area[*end..].iter().all(|byte| *byte == 0)) else {
        return Err(place.error("the area", "its text does not end with zeros"));
    };
    Ok(&area[..end])
}

/// Bytes as they stand in JSON.
pub(crate) fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}
