use vmwright_disk::Disk;
use zeroize::Zeroizing;

use super::header::{Header, Slot};
use super::layout::SECTOR;
use crate::kdf::Budget;
use crate::{Cipher, Error, Hash, Limits, Passphrase, Result, af};

use crate::error::Reason;

/// A volume key, and the slot that held it.
pub(super) struct Opened {
    pub(super) slot: usize,
    pub(super) key: Zeroizing<Vec<u8>>,
}

impl Header {
    /// Finds the volume key by a passphrase; `disk` begins with this header and its key material.
    ///
    /// A passphrase that opens no slot is an error of which
    /// [`Error::is_wrong_passphrase`](crate::Error::is_wrong_passphrase) is true.
    pub fn unlock(&self, disk: &dyn Disk, passphrase: &Passphrase) -> Result<Cipher> {
        self.unlock_within(disk, passphrase, &Limits::default())
    }

    /// The same, at a cost that the caller bounds.
    pub fn unlock_within(&self, disk: &dyn Disk, passphrase: &Passphrase, limits: &Limits) -> Result<Cipher> {
        let opened = self.open(disk, passphrase, limits)?;
        Cipher::new(self.mode()?, &opened.key, SECTOR as u32)
    }

    /// Finds the volume key and the slot that holds it.
    pub(super) fn open(&self, disk: &dyn Disk, passphrase: &Passphrase, limits: &Limits) -> Result<Opened> {
        self.supported()?;
        let mut budget = Budget::new(limits);
        let mut too_expensive = None;
        for (slot, entry) in self.slots.iter().enumerate().filter(|(_, entry)| entry.active) {
            match self.try_slot(disk, entry, passphrase, &mut budget) {
                Ok(Some(key)) => return Ok(Opened { slot, key }),
                Ok(None) => {}
                // Another slot may be cheap enough.
                Err(error) if error.is_too_expensive() => too_expensive = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(too_expensive.unwrap_or_else(|| Reason::WrongPassphrase.into()))
    }

    /// Refuses ciphers and hashes that are not known here.
    pub(super) fn supported(&self) -> Result<Hash> {
        let mode = self.mode()?;
        if !mode.key_sizes().contains(&self.key_bytes) {
            return Err(Error::unsupported("a volume key of this length with this cipher"));
        }
        self.hash_spec.parse()
    }

    fn try_slot(
        &self,
        disk: &dyn Disk,
        slot: &Slot,
        passphrase: &Passphrase,
        budget: &mut Budget,
    ) -> Result<Option<Zeroizing<Vec<u8>>>> {
        let hash = self.supported()?;
        budget.pbkdf2(hash, slot.iterations, self.key_bytes)?;
        budget.pbkdf2(hash, self.digest_iterations, self.digest.len())?;
        let len = self.material_len();
        if slot.offset + len > disk.len() {
            return Err(Error::corrupt("key material", slot.offset, "a place within the file", disk.len()));
        }
        let mut material = Zeroizing::new(vec![0; len as usize]);
        disk.read_at(&mut material, slot.offset)?;
        let key = hash.pbkdf2(passphrase.as_bytes(), &slot.salt, slot.iterations, self.key_bytes);
        Cipher::new(self.mode()?, &key, SECTOR as u32)?.decrypt(0, &mut material)?;
        let spread = &material[..self.key_bytes * slot.stripes as usize];
        let volume_key = af::merge(spread, self.key_bytes, hash);
        let digest = self.digest_of(&volume_key, hash);
        Ok(same(&digest, &self.digest).then_some(volume_key))
    }

    pub(super) fn digest_of(&self, volume_key: &[u8], hash: Hash) -> Zeroizing<Vec<u8>> {
        hash.pbkdf2(volume_key, &self.digest_salt, self.digest_iterations, self.digest.len())
    }

    /// The key material of a slot that holds a volume key.
    pub(super) fn seal(
        &self,
        slot: &Slot,
        volume_key: &[u8],
        passphrase: &Passphrase,
    ) -> Result<Zeroizing<Vec<u8>>> {
        let hash = self.supported()?;
        let mut material = af::split(volume_key, slot.stripes, hash)?;
        material.resize(self.material_len() as usize, 0);
        let key = hash.pbkdf2(passphrase.as_bytes(), &slot.salt, slot.iterations, self.key_bytes);
        Cipher::new(self.mode()?, &key, SECTOR as u32)?.encrypt(0, &mut material)?;
        Ok(material)
    }
}

/// Compares without telling by its time where the difference is.
pub(crate) fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |all, (a, b)| all | (a ^ b)) == 0
}
