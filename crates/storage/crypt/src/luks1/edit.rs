//! Adding and removing passphrases: whoever loses power in between has the old ones, the new one, or both.

use vmwright_disk::Disk;
use zerocopy::IntoBytes;

use super::create::Cost;
use super::header::{Header, Slot, slot_at};
use super::layout::{ENABLED, HEADER_LEN};
use crate::error::Reason;
use crate::{Error, Limits, Passphrase, Result, random};

impl Header {
    /// Adds a passphrase beside the one that is known, and answers its slot.
    ///
    /// Key material and the entry of the slot are durable before the entry is made valid, which is one write within
    /// a sector.
    pub fn add_passphrase(
        &mut self,
        disk: &dyn Disk,
        known: &Passphrase,
        new: &Passphrase,
        cost: Cost,
    ) -> Result<usize> {
        let opened = self.open(disk, known, &Limits::default())?;
        let index = self.slots.iter().position(|slot| !slot.active).ok_or(Reason::NoFreeSlot)?;
        let hash = self.supported()?;
        let iterations = cost.iterations(hash, self.key_bytes);
        let slot = Slot { active: false, iterations, salt: random::array()?, ..self.slots[index] };
        let material = self.seal(&slot, &opened.key, new)?;
        disk.write_at(&material, slot.offset)?;
        disk.write_at(slot.raw().as_bytes(), slot_at(index))?;
        disk.flush()?;
        disk.write_at(&ENABLED.to_be_bytes(), slot_at(index))?;
        disk.flush()?;
        self.slots[index] = Slot { active: true, ..slot };
        Ok(index)
    }

    /// Replaces a passphrase by another: the new one is durable before the old one is destroyed.
    ///
    /// Needs a free slot.
    pub fn change_passphrase(
        &mut self,
        disk: &dyn Disk,
        old: &Passphrase,
        new: &Passphrase,
        cost: Cost,
    ) -> Result<usize> {
        let opened = self.open(disk, old, &Limits::default())?;
        let index = self.add_passphrase(disk, old, new, cost)?;
        self.remove_slot(disk, opened.slot, false)?;
        Ok(index)
    }

    /// Destroys the slot that a passphrase opens; the last one only where `even_last` says so.
    pub fn remove_passphrase(
        &mut self,
        disk: &dyn Disk,
        known: &Passphrase,
        even_last: bool,
    ) -> Result<usize> {
        let opened = self.open(disk, known, &Limits::default())?;
        self.remove_slot(disk, opened.slot, even_last)?;
        Ok(opened.slot)
    }

    /// Destroys a slot; the last one only where `even_last` says so, since nothing opens the content then.
    ///
    /// The key material is overwritten first: a slot that is only marked as free could be marked as used again.
    pub fn remove_slot(&mut self, disk: &dyn Disk, index: usize, even_last: bool) -> Result<()> {
        let number = u32::try_from(index).unwrap_or(u32::MAX);
        let slot = self.slots.get(index).copied().filter(|slot| slot.active);
        let slot = slot.ok_or(Reason::NoSuchSlot { slot: number })?;
        if !even_last && self.slots.iter().filter(|slot| slot.active).count() == 1 {
            return Err(Reason::LastSlot { slot: number }.into());
        }
        let garbage = random::secret(self.material_len() as usize)?;
        disk.write_at(&garbage, slot.offset)?;
        disk.flush()?;
        let removed = Slot { active: false, iterations: 0, salt: [0; 32], ..slot };
        disk.write_at(removed.raw().as_bytes(), slot_at(index))?;
        disk.flush()?;
        self.slots[index] = removed;
        Ok(())
    }

    /// Overwrites all keys and the header: no passphrase and no copy of a passphrase opens the content again, unless
    /// somebody has a copy of the header.
    pub fn destroy(&self, disk: &dyn Disk) -> Result<()> {
        for slot in &self.slots {
            let len = self.material_len().min(disk.len().saturating_sub(slot.offset));
            disk.write_at(&random::secret(len as usize)?, slot.offset.min(disk.len()))?;
        }
        disk.flush()?;
        disk.write_at(&random::secret(HEADER_LEN)?, 0)?;
        Ok(disk.flush()?)
    }

    /// Whether key material lies behind the end of the file, for each slot in use.
    pub(crate) fn check(&self, disk: &dyn Disk) -> Vec<Error> {
        let used = self.slots.iter().filter(|slot| slot.active);
        let lost = used.filter(|slot| slot.offset + self.material_len() > disk.len());
        lost.map(|slot| Error::corrupt("key material", slot.offset, "a place within the file", disk.len()))
            .collect()
    }
}
