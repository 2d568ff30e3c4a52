use vmwright_disk::Disk;
use zerocopy::{FromBytes, IntoBytes};

use super::layout::{
    DIGEST, DISABLED, ENABLED, HEADER_LEN, MAGIC, RawHeader, RawSlot, SALT, SECTOR, SLOT_LEN, SLOTS,
    SLOTS_AT, VERSION,
};
use crate::af::STRIPES;
use crate::{Error, Mode, Payload, Result};

/// The header of a LUKS1 disk, its fields within their ranges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The name of the cipher, such as `aes`.
    pub cipher_name: String,
    /// The mode of the cipher, such as `xts-plain64`.
    pub cipher_mode: String,
    /// The name of the hash function, such as `sha256`.
    pub hash_spec: String,
    /// What identifies the disk.
    pub uuid: String,
    /// The length of the volume key in bytes.
    pub key_bytes: usize,
    /// How many iterations the digest of the volume key has.
    pub digest_iterations: u32,
    pub(super) payload_offset: u64,
    pub(super) digest: [u8; DIGEST],
    pub(super) digest_salt: [u8; SALT],
    /// The key slots.
    pub slots: [Slot; SLOTS],
}

/// One key slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// Whether a passphrase opens it.
    pub active: bool,
    /// How many iterations stretch its passphrase.
    pub iterations: u32,
    /// Where its key material begins, in bytes.
    pub offset: u64,
    /// Over how many stripes its key is spread.
    pub stripes: u32,
    pub(super) salt: [u8; SALT],
}

impl Header {
    /// Reads the header that stands at the beginning of `disk`.
    ///
    /// Where the payload lies is not compared with the length of `disk`: it may be elsewhere.
    pub fn read(disk: &dyn Disk) -> Result<Self> {
        if disk.len() < HEADER_LEN as u64 {
            return Err(Error::corrupt("the LUKS header", 0, "592 bytes", disk.len()));
        }
        let mut bytes = [0; HEADER_LEN];
        disk.read_at(&mut bytes, 0)?;
        Self::parse(&bytes)
    }

    fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Self> {
        let raw = RawHeader::read_from_bytes(bytes)
            .map_err(|_| Error::corrupt("the LUKS header", 0, "592 bytes", bytes.len() as u64))?;
        if raw.magic != MAGIC {
            return Err(Error::corrupt("the LUKS signature", 0, "LUKS\\xba\\xbe", u64::from(raw.magic[0])));
        }
        if raw.version.get() != VERSION {
            return Err(Error::unknown("LUKS version", &raw.version.get().to_string()));
        }
        let header = Self {
            cipher_name: text("the name of the cipher", 8, &raw.cipher_name)?,
            cipher_mode: text("the mode of the cipher", 40, &raw.cipher_mode)?,
            hash_spec: text("the name of the hash", 72, &raw.hash_spec)?,
            uuid: text("the UUID", 168, &raw.uuid)?,
            key_bytes: key_bytes(raw.key_bytes.get())?,
            digest_iterations: raw.mk_digest_iterations.get(),
            payload_offset: u64::from(raw.payload_offset.get()) * SECTOR,
            digest: raw.mk_digest,
            digest_salt: raw.mk_digest_salt,
            slots: slots(&raw.slots)?,
        };
        if header.digest_iterations == 0 {
            return Err(Error::corrupt("the iterations of the volume key's digest", 164, "at least 1", 0));
        }
        header.check_places()?;
        Ok(header)
    }

    /// No two of header, key material and payload may overlap; nor may what is not in use now, since it is written
    /// when a passphrase is added.
    fn check_places(&self) -> Result<()> {
        let len = self.material_len();
        for (index, slot) in self.slots.iter().enumerate() {
            let at = slot_at(index) + 40;
            if slot.offset < HEADER_LEN as u64 {
                return Err(Error::corrupt(
                    "key material",
                    at,
                    "a place behind the header",
                    slot.offset / SECTOR,
                ));
            }
            if self.payload_offset != 0 && slot.offset + len > self.payload_offset {
                return Err(Error::corrupt(
                    "key material",
                    at,
                    "a place before the payload",
                    slot.offset / SECTOR,
                ));
            }
            if self.slots[..index].iter().any(|other| other.offset.abs_diff(slot.offset) < len) {
                return Err(Error::corrupt("key material", at, "a place of its own", slot.offset / SECTOR));
            }
        }
        Ok(())
    }

    /// The header as it stands on the disk.
    pub(super) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut raw = RawHeader {
            magic: MAGIC,
            version: VERSION.into(),
            cipher_name: padded(&self.cipher_name),
            cipher_mode: padded(&self.cipher_mode),
            hash_spec: padded(&self.hash_spec),
            payload_offset: ((self.payload_offset / SECTOR) as u32).into(),
            key_bytes: (self.key_bytes as u32).into(),
            mk_digest: self.digest,
            mk_digest_salt: self.digest_salt,
            mk_digest_iterations: self.digest_iterations.into(),
            uuid: padded(&self.uuid),
            slots: self.slots.map(|slot| slot.raw()),
        };
        // Nothing stands behind a text that fills its field but its end.
        for field in [&mut raw.cipher_name, &mut raw.cipher_mode, &mut raw.hash_spec] {
            field[31] = 0;
        }
        let mut bytes = [0; HEADER_LEN];
        bytes.copy_from_slice(raw.as_bytes());
        bytes
    }

    /// Where the encrypted content begins, in bytes; zero where it is in another file than the header.
    pub fn payload_offset(&self) -> u64 {
        self.payload_offset
    }

    /// Where the encrypted content lies in the file that begins with this header.
    pub fn payload(&self) -> Result<Payload> {
        if self.payload_offset == 0 {
            return Err(Error::unsupported("a LUKS header in another file than its content"));
        }
        Ok(Payload { offset: self.payload_offset, len: None, first_sector: 0, sector_size: SECTOR })
    }

    /// How the content is encrypted; an error of kind unsupported where that is not known here.
    pub fn mode(&self) -> Result<Mode> {
        Mode::parse(&self.cipher_name, &self.cipher_mode)
    }

    /// The length of the key material of a slot, in whole sectors.
    pub(super) fn material_len(&self) -> u64 {
        (self.key_bytes as u64 * u64::from(STRIPES)).next_multiple_of(SECTOR)
    }
}

impl Slot {
    pub(super) fn raw(&self) -> RawSlot {
        RawSlot {
            active: if self.active { ENABLED } else { DISABLED }.into(),
            iterations: self.iterations.into(),
            salt: self.salt,
            key_material_offset: ((self.offset / SECTOR) as u32).into(),
            stripes: self.stripes.into(),
        }
    }
}

/// Where a key slot stands.
pub(super) fn slot_at(index: usize) -> u64 {
    (SLOTS_AT + index * SLOT_LEN) as u64
}

fn slots(raw: &[RawSlot; SLOTS]) -> Result<[Slot; SLOTS]> {
    let blank = Slot { active: false, iterations: 0, offset: 0, stripes: 0, salt: [0; SALT] };
    let mut slots = [blank; SLOTS];
    for (index, (slot, raw)) in slots.iter_mut().zip(raw).enumerate() {
        let at = slot_at(index);
        let active = match raw.active.get() {
            ENABLED => true,
            DISABLED => false,
            other => return Err(Error::corrupt("a key slot", at, "0xac71f3 or 0xdead", other.into())),
        };
        let (iterations, stripes) = (raw.iterations.get(), raw.stripes.get());
        if active && iterations == 0 {
            return Err(Error::corrupt("the iterations of a key slot", at + 4, "at least 1", 0));
        }
        if stripes != STRIPES {
            return Err(Error::corrupt("the stripes of a key slot", at + 44, "4000", stripes.into()));
        }
        let offset = u64::from(raw.key_material_offset.get()) * SECTOR;
        *slot = Slot { active, iterations, offset, stripes, salt: raw.salt };
    }
    Ok(slots)
}

fn key_bytes(found: u32) -> Result<usize> {
    match found {
        1..=128 => Ok(found as usize),
        _ => Err(Error::corrupt("the length of the volume key", 108, "1 to 128 bytes", found.into())),
    }
}

fn text(what: &'static str, at: u64, bytes: &[u8]) -> Result<String> {
    let end = bytes.iter().position(|byte| *byte == 0);
    let text = end.and_then(|end| std::str::from_utf8(&bytes[..end]).ok());
    match text {
        Some(text) if text.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(text.to_owned()),
        _ => Err(Error::corrupt(what, at, "printable characters that end with a zero", u64::from(bytes[0]))),
    }
}

fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut bytes = [0; N];
    let len = text.len().min(N);
    bytes[..len].copy_from_slice(&text.as_bytes()[..len]);
    bytes
}
