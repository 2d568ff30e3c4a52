use vmwright_disk::Disk;
use zeroize::Zeroizing;

use super::header::{Header, mode};
use super::metadata::{Digest, Keyslot, Number};
use crate::error::Reason;
use crate::kdf::Budget;
use crate::luks1::same;
use crate::{Cipher, Error, Hash, Limits, Passphrase, Result, SECTOR, af};

/// A volume key, and the slot that held it.
pub(super) struct Opened {
    pub(super) slot: u32,
    pub(super) key: Zeroizing<Vec<u8>>,
}

impl Header {
    /// Finds the volume key by a passphrase; `disk` begins with this header and its key material.
    pub fn unlock(&self, disk: &dyn Disk, passphrase: &Passphrase, limits: &Limits) -> Result<Cipher> {
        let opened = self.open(disk, passphrase, limits)?;
        let sector_size = self.segment()?.sector_size.unwrap_or(0);
        Cipher::new(self.mode()?, &opened.key, sector_size as u32)
    }

    /// The one digest that the key of the content is known by.
    pub(super) fn digest(&self) -> Result<(Number, &Digest)> {
        let of_content = |digest: &Digest| digest.segments.contains(&Number(0));
        let mut digests = self.metadata.digests.iter().filter(|(_, digest)| of_content(digest));
        match (digests.next(), digests.next()) {
            (Some((number, digest)), None) if digest.kind == "pbkdf2" => Ok((*number, digest)),
            (Some((_, digest)), None) => Err(Error::unknown("LUKS2 digest", &digest.kind)),
            _ => Err(Error::unsupported("a LUKS2 disk with no or several digests of its content")),
        }
    }

    /// Finds the volume key and the slot that holds it: slots of high priority first, ignored ones never.
    pub(super) fn open(&self, disk: &dyn Disk, passphrase: &Passphrase, limits: &Limits) -> Result<Opened> {
        self.mode()?;
        let (_, digest) = self.digest()?;
        let slots = self.metadata.keyslots.iter();
        let mut slots: Vec<_> = slots
            .filter(|(number, slot)| slot.is_luks2() && digest.keyslots.contains(number))
            .filter(|(_, slot)| slot.priority != Some(0))
            .collect();
        slots.sort_by_key(|(_, slot)| std::cmp::Reverse(slot.priority.unwrap_or(1)));
        let mut budget = Budget::new(limits);
        let mut refused = None;
        for (number, slot) in slots {
            match try_slot(disk, slot, digest, passphrase, &mut budget) {
                Ok(Some(key)) => return Ok(Opened { slot: number.0, key }),
                Ok(None) => {}
                // Another slot may be cheaper, or be of a kind that is known.
                Err(error) if error.kind() == vmwright_disk::ErrorKind::Unsupported => refused = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(refused.unwrap_or_else(|| Reason::WrongPassphrase.into()))
    }
}

fn try_slot(
    disk: &dyn Disk,
    slot: &Keyslot,
    digest: &Digest,
    passphrase: &Passphrase,
    budget: &mut Budget,
) -> Result<Option<Zeroizing<Vec<u8>>>> {
    let missing = || Error::invalid("a key slot", "it holds no key of a passphrase");
    let (stored, af) = (slot.kdf.as_ref().ok_or_else(missing)?, slot.af.as_ref().ok_or_else(missing)?);
    let kdf = stored.to_kdf()?;
    let area_key_len = slot.area.key_size.unwrap_or(0) as usize;
    let digest_hash: Hash = digest.hash.parse()?;
    budget.take(&kdf, area_key_len)?;
    budget.pbkdf2(digest_hash, digest.iterations, digest.digest.0.len())?;
    let mode = mode(slot.area.encryption.as_deref().unwrap_or_default())?;
    if !mode.key_sizes().contains(&area_key_len) {
        return Err(Error::unsupported("a key of this length with the cipher of a key slot"));
    }
    let af_hash: Hash = af.hash.parse()?;
    let key_len = slot.key_size as usize;
    let spread_len = key_len * af.stripes as usize;
    let mut material = Zeroizing::new(vec![0; spread_len.next_multiple_of(SECTOR as usize)]);
    let end = slot.area.offset.0 + material.len() as u64;
    if end > disk.len() {
        return Err(Error::corrupt(
            "key material",
            slot.area.offset.0,
            "a place within the file",
            disk.len(),
        ));
    }
    disk.read_at(&mut material, slot.area.offset.0)?;
    let key = kdf.derive(passphrase.as_bytes(), stored.salt(), area_key_len)?;
    Cipher::new(mode, &key, SECTOR as u32)?.decrypt(0, &mut material)?;
    let volume_key = af::merge(&material[..spread_len], key_len, af_hash);
    let found = digest_hash.pbkdf2(&volume_key, &digest.salt.0, digest.iterations, digest.digest.0.len());
    Ok(same(&found, &digest.digest.0).then_some(volume_key))
}
