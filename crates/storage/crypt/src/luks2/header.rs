use vmwright_disk::Disk;
use zerocopy::{FromBytes, IntoBytes};

use super::layout::{CSUM_AT, CSUM_LEN, HEADER_LEN, MAGIC, RawHeader, SECOND_MAGIC, SIZES, VERSION};
use super::metadata::{Metadata, Place};
use crate::{Error, Hash, Mode, Payload, Result};

/// The header of a LUKS2 disk: the newer one of its two copies that are sound.
#[derive(Debug, Clone)]
pub struct Header {
    /// What identifies the disk.
    pub uuid: String,
    /// The name that a person gave.
    pub label: String,
    /// The second name.
    pub subsystem: String,
    /// Grows with every change.
    pub sequence: u64,
    pub(super) checksum: Hash,
    pub(super) hdr_size: u64,
    pub(super) metadata: Metadata,
    /// The text that the metadata was read from.
    pub(super) json: Vec<u8>,
    /// Which copy this was read from.
    pub(super) source: Copy,
    /// What is wrong with the other copy.
    pub(super) other: Option<Stale>,
}

/// One of both copies of a header.
#[derive(Debug, Clone, std::marker::Copy, PartialEq, Eq)]
pub(super) enum Copy {
    First,
    Second,
}

impl Copy {
    pub(super) fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }

    pub(super) fn magic(self) -> [u8; 6] {
        match self {
            Self::First => MAGIC,
            Self::Second => SECOND_MAGIC,
        }
    }

    /// Where it stands, with headers of this length.
    pub(super) fn place(self, hdr_size: u64) -> u64 {
        match self {
            Self::First => 0,
            Self::Second => hdr_size,
        }
    }
}

/// Why a copy was not taken.
#[derive(Debug, Clone)]
pub(super) enum Stale {
    /// It is damaged, and how.
    Damaged(std::sync::Arc<Error>),
    /// It is of an earlier or another disk.
    Older,
}

impl Header {
    /// Reads the header at the beginning of `disk`: of both copies the newer one that is sound.
    pub fn read(disk: &dyn Disk) -> Result<Self> {
        let first = Self::read_copy(disk, Copy::First, 0);
        let second = match &first {
            Ok(first) => Self::read_copy(disk, Copy::Second, first.hdr_size),
            Err(_) => Self::find_second(disk),
        };
        match (first, second) {
            (Ok(first), Ok(second)) => Ok(choose(first, second)),
            (Ok(header), Err(error)) | (Err(error), Ok(header)) => {
                Ok(Self { other: Some(Stale::Damaged(std::sync::Arc::new(error))), ..header })
            }
            // How the first one is damaged says more.
            (Err(error), Err(_)) => Err(error),
        }
    }

    /// Looks for the second copy where no first one says how long it is.
    fn find_second(disk: &dyn Disk) -> Result<Self> {
        let mut found = Err(Error::corrupt("the second LUKS2 header", SIZES[0], "SKUL\\xba\\xbe", 0));
        for at in SIZES {
            found = Self::read_copy(disk, Copy::Second, at);
            if found.is_ok() {
                break;
            }
        }
        found
    }

    fn read_copy(disk: &dyn Disk, copy: Copy, at: u64) -> Result<Self> {
        let mut bytes = vec![0; HEADER_LEN];
        if at + bytes.len() as u64 > disk.len() {
            return Err(Error::corrupt("the LUKS2 header", at, "a place within the file", disk.len()));
        }
        disk.read_at(&mut bytes, at)?;
        let raw = RawHeader::read_from_bytes(&bytes)
            .map_err(|_| Error::corrupt("the LUKS2 header", at, "4096 bytes", bytes.len() as u64))?;
        if raw.magic != copy.magic() {
            let expected = if copy == Copy::First { "LUKS\\xba\\xbe" } else { "SKUL\\xba\\xbe" };
            return Err(Error::corrupt("the LUKS2 signature", at, expected, raw.magic[0].into()));
        }
        if raw.version.get() != VERSION {
            return Err(Error::unknown("LUKS version", &raw.version.get().to_string()));
        }
        let hdr_size = raw.hdr_size.get();
        let sound = SIZES.contains(&hdr_size) && copy.place(hdr_size) == at;
        if !sound || at.checked_add(hdr_size).is_none_or(|end| end > disk.len()) {
            let expected = "16 KiB to 4 MiB within the file";
            return Err(Error::corrupt("the length of the LUKS2 header", at + 8, expected, hdr_size));
        }
        if raw.hdr_offset.get() != at {
            let found = raw.hdr_offset.get();
            return Err(Error::corrupt("the place of the LUKS2 header", at + 256, "where it stands", found));
        }
        bytes.resize(hdr_size as usize, 0);
        disk.read_at(&mut bytes[HEADER_LEN..], at + HEADER_LEN as u64)?;
        Self::parse(&raw, bytes, copy, at)
    }

    /// Reads a copy whose binary part is in order.
    fn parse(raw: &RawHeader, mut bytes: Vec<u8>, copy: Copy, at: u64) -> Result<Self> {
        let checksum: Hash = text("the name of the checksum", at + 72, &raw.csum_alg)?.parse()?;
        bytes[CSUM_AT..CSUM_AT + CSUM_LEN].fill(0);
        let sum = checksum.digest(&[&bytes]);
        if sum[..] != raw.csum[..sum.len()] {
            let found = u64::from(raw.csum[0]);
            return Err(Error::corrupt(
                "the checksum of the LUKS2 header",
                at + 448,
                "that of its bytes",
                found,
            ));
        }
        let hdr_size = bytes.len() as u64;
        let place = Place { at: at + HEADER_LEN as u64, hdr_size };
        let area = &bytes[HEADER_LEN..];
        let metadata = Metadata::parse(area, &place)?;
        Ok(Self {
            uuid: text("the UUID", at + 168, &raw.uuid)?,
            label: text("the label", at + 24, &raw.label)?,
            subsystem: text("the subsystem", at + 208, &raw.subsystem)?,
            sequence: raw.seqid.get(),
            checksum,
            hdr_size,
            metadata,
            json: super::metadata::trim(area, &place)?.to_vec(),
            source: copy,
            other: None,
        })
    }

    /// The bytes of a copy of this header.
    pub(super) fn encode(&self, copy: Copy, salt: [u8; 64]) -> Result<Vec<u8>> {
        let room = self.hdr_size as usize - HEADER_LEN;
        if self.json.len() >= room {
            return Err(Error::invalid("the LUKS2 metadata", "it does not fit into its area any more"));
        }
        let raw = RawHeader {
            magic: copy.magic(),
            version: VERSION.into(),
            hdr_size: self.hdr_size.into(),
            seqid: self.sequence.into(),
            label: padded(&self.label),
            csum_alg: padded(self.checksum.name()),
            salt,
            uuid: padded(&self.uuid),
            subsystem: padded(&self.subsystem),
            hdr_offset: copy.place(self.hdr_size).into(),
            padding: [0; 184],
            csum: [0; CSUM_LEN],
            padding4096: [0; 7 * 512],
        };
        let mut bytes = vec![0; self.hdr_size as usize];
        bytes[..HEADER_LEN].copy_from_slice(raw.as_bytes());
        bytes[HEADER_LEN..HEADER_LEN + self.json.len()].copy_from_slice(&self.json);
        let sum = self.checksum.digest(&[&bytes]);
        bytes[CSUM_AT..CSUM_AT + sum.len()].copy_from_slice(&sum);
        Ok(bytes)
    }

    /// Where the encrypted content lies; refuses what cannot be opened here, by name.
    pub fn payload(&self) -> Result<Payload> {
        let segment = self.segment()?;
        if segment.offset.0 == 0 {
            return Err(Error::unsupported("a LUKS header in another file than its content"));
        }
        Ok(Payload {
            offset: segment.offset.0,
            len: segment.len()?,
            first_sector: segment.iv_tweak.map_or(0, |tweak| tweak.0),
            sector_size: segment.sector_size.unwrap_or(0),
        })
    }

    /// The one segment of a disk of which nothing is under way.
    pub(super) fn segment(&self) -> Result<&super::metadata::Segment> {
        if let Some(name) = self.metadata.config.requirements.mandatory.first() {
            return Err(match name.contains("reencrypt") {
                true => Error::unsupported("a LUKS2 disk whose re-encryption is not finished"),
                false => Error::unknown("LUKS2 requirement", name),
            });
        }
        let mut segments = self.metadata.segments.iter();
        let (Some((number, segment)), None) = (segments.next(), segments.next()) else {
            return Err(Error::unsupported("a LUKS2 disk with no or several segments"));
        };
        if number.0 != 0 {
            return Err(Error::unsupported("a LUKS2 disk without a segment of number 0"));
        }
        if segment.kind != "crypt" {
            return Err(Error::unknown("LUKS2 segment", &segment.kind));
        }
        if segment.integrity.is_some() {
            return Err(Error::unsupported("LUKS2 with integrity (authenticated encryption)"));
        }
        Ok(segment)
    }

    /// How the content is encrypted.
    pub fn mode(&self) -> Result<Mode> {
        mode(self.segment()?.encryption.as_deref().unwrap_or_default())
    }

    /// How the content is encrypted, as it stands in the header, also where that is not known here.
    pub fn encryption(&self) -> &str {
        let segment = self.metadata.segments.values().next();
        segment.and_then(|segment| segment.encryption.as_deref()).unwrap_or_default()
    }

    /// The size of a sector in bytes, where the header says it.
    pub fn sector_size(&self) -> Option<u64> {
        self.metadata.segments.values().next().and_then(|segment| segment.sector_size)
    }

    /// Where the content begins in bytes, where the header says it.
    pub fn payload_offset(&self) -> Option<u64> {
        self.metadata.segments.values().next().map(|segment| segment.offset.0)
    }

    /// The hash and the iterations by which the key of the content is known, as they stand in the header.
    pub fn digest_cost(&self) -> Option<(&str, u32)> {
        let digest = self.metadata.digests.values().next();
        digest.map(|digest| (digest.hash.as_str(), digest.iterations))
    }

    /// What is under way or needed to open the disk, by the names that stand in the header.
    pub fn requirements(&self) -> &[String] {
        &self.metadata.config.requirements.mandatory
    }

    /// The key slots with their numbers.
    pub fn slots(&self) -> impl Iterator<Item = Slot> + '_ {
        self.metadata.keyslots.iter().map(|(number, slot)| Slot {
            number: number.0,
            key_bytes: slot.key_size as usize,
            kdf: slot.kdf.as_ref().map_or("", |kdf| kdf.name()),
            cost: slot.kdf.as_ref().and_then(|kdf| kdf.to_kdf().ok()),
            offset: slot.area.offset.0,
        })
    }
}

/// One key slot.
#[derive(Debug, Clone, std::marker::Copy, PartialEq, Eq)]
pub struct Slot {
    /// Its number.
    pub number: u32,
    /// The length of its key in bytes.
    pub key_bytes: usize,
    /// How its passphrase is stretched, such as `argon2id`; empty in slots that hold none.
    pub kdf: &'static str,
    /// The cost of that, where it is known here.
    pub cost: Option<crate::Kdf>,
    /// Where its key material begins, in bytes.
    pub offset: u64,
}

/// Of two sound copies the newer one.
fn choose(first: Header, second: Header) -> Header {
    let same = first.uuid == second.uuid && first.hdr_size == second.hdr_size;
    let (newer, other) = match (same, first.sequence.cmp(&second.sequence)) {
        (true, std::cmp::Ordering::Less) => (second, Some(Stale::Older)),
        (true, std::cmp::Ordering::Equal) if first.json == second.json => (first, None),
        _ => (first, Some(Stale::Older)),
    };
    Header { other, ..newer }
}

/// Takes `aes-xts-plain64` apart.
pub(super) fn mode(encryption: &str) -> Result<Mode> {
    match encryption.split_once('-') {
        Some((cipher, mode)) => Mode::parse(cipher, mode),
        None => Err(Error::unknown("cipher", encryption)),
    }
}

fn text(what: &'static str, at: u64, bytes: &[u8]) -> Result<String> {
    let end = bytes.iter().position(|byte| *byte == 0);
    let text = end.and_then(|end| std::str::from_utf8(&bytes[..end]).ok());
    match text {
        Some(text) if !text.chars().any(char::is_control) => Ok(text.to_owned()),
        _ => Err(Error::corrupt(what, at, "printable characters that end with a zero", u64::from(bytes[0]))),
    }
}

fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut bytes = [0; N];
    let len = text.len().min(N - 1);
    bytes[..len].copy_from_slice(&text.as_bytes()[..len]);
    bytes
}
