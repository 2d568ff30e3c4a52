use std::sync::Arc;

use vmwright_disk::Disk;

use crate::{Cipher, CryptDisk, Error, Limits, Passphrase, Payload, Result, luks1, luks2};

/// The header of a LUKS disk of either version.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Header {
    /// Version 1.
    Luks1(Box<luks1::Header>),
    /// Version 2.
    Luks2(Box<luks2::Header>),
}

impl Header {
    /// Reads the header at the beginning of a disk; of version 2 the second copy where the first one is damaged.
    pub fn read(disk: &dyn Disk) -> Result<Self> {
        let mut start = [0; 8];
        if disk.len() >= 8 {
            disk.read_at(&mut start, 0)?;
        }
        if start[..6] == luks1::layout::MAGIC && start[6..] != luks2::layout::VERSION.to_be_bytes() {
            return Ok(Self::Luks1(Box::new(luks1::Header::read(disk)?)));
        }
        Ok(Self::Luks2(Box::new(luks2::Header::read(disk)?)))
    }

    /// The version: 1 or 2.
    pub fn version(&self) -> u8 {
        match self {
            Self::Luks1(_) => 1,
            Self::Luks2(_) => 2,
        }
    }

    /// Where the encrypted content lies; refuses what cannot be opened, by name.
    pub fn payload(&self) -> Result<Payload> {
        match self {
            Self::Luks1(header) => header.payload(),
            Self::Luks2(header) => header.payload(),
        }
    }

    /// Finds the volume key by a passphrase, at a bounded cost.
    pub fn unlock(&self, disk: &dyn Disk, passphrase: &Passphrase, limits: &Limits) -> Result<Cipher> {
        match self {
            Self::Luks1(header) => header.unlock_within(disk, passphrase, limits),
            Self::Luks2(header) => header.unlock(disk, passphrase, limits),
        }
    }

    /// Opens the content by a passphrase.
    pub fn open(
        &self,
        file: Arc<dyn Disk>,
        passphrase: &Passphrase,
        limits: &Limits,
        read_only: bool,
    ) -> Result<CryptDisk> {
        let payload = self.payload()?;
        payload.check(&*file)?;
        let cipher = self.unlock(&*file, passphrase, limits)?;
        CryptDisk::new(file, payload, cipher, read_only)
    }

    /// Adds a passphrase beside one that is known, and answers its slot; durable when this returns. Version 1 knows only
    /// PBKDF2 with its own hash, and takes the time of another `stretch`.
    pub fn add_passphrase(
        &mut self,
        disk: &dyn Disk,
        known: &Passphrase,
        new: &Passphrase,
        stretch: luks2::Stretch,
    ) -> Result<u32> {
        match self {
            Self::Luks1(header) => Ok(header.add_passphrase(disk, known, new, stretch.as_cost())? as u32),
            Self::Luks2(header) => header.add_passphrase(disk, known, new, stretch),
        }
    }

    /// Replaces a passphrase by another, for which a slot must be free: the new one is durable before the old one is
    /// destroyed.
    pub fn change_passphrase(
        &mut self,
        disk: &dyn Disk,
        old: &Passphrase,
        new: &Passphrase,
        stretch: luks2::Stretch,
    ) -> Result<u32> {
        match self {
            Self::Luks1(header) => Ok(header.change_passphrase(disk, old, new, stretch.as_cost())? as u32),
            Self::Luks2(header) => header.change_passphrase(disk, old, new, stretch),
        }
    }

    /// Destroys the slot that a passphrase opens and answers which; the last one only where `even_last` says so.
    pub fn remove_passphrase(&mut self, disk: &dyn Disk, known: &Passphrase, even_last: bool) -> Result<u32> {
        match self {
            Self::Luks1(header) => Ok(header.remove_passphrase(disk, known, even_last)? as u32),
            Self::Luks2(header) => header.remove_passphrase(disk, known, even_last),
        }
    }

    /// Destroys a slot; the last one only where `even_last` says so.
    pub fn remove_slot(&mut self, disk: &dyn Disk, slot: u32, even_last: bool) -> Result<()> {
        match self {
            Self::Luks1(header) => header.remove_slot(disk, slot as usize, even_last),
            Self::Luks2(header) => header.remove_slot(disk, slot, even_last),
        }
    }

    /// Overwrites all keys and the header: nothing opens the content again but a copy of the header made before.
    pub fn destroy(&self, disk: &dyn Disk) -> Result<()> {
        match self {
            Self::Luks1(header) => header.destroy(disk),
            Self::Luks2(header) => header.destroy(disk),
        }
    }

    /// What is wrong with what stands in the file.
    pub fn check(&self, disk: &dyn Disk) -> Vec<Error> {
        match self {
            Self::Luks1(header) => header.check(disk),
            Self::Luks2(header) => header.check(disk),
        }
    }

    /// Writes a damaged or outdated copy of the header anew by the sound one; answers whether there was one.
    pub fn repair(&mut self, disk: &dyn Disk) -> Result<bool> {
        match self {
            Self::Luks1(_) => Ok(false),
            Self::Luks2(header) => header.repair(disk),
        }
    }
}
