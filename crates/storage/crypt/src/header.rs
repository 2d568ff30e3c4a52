use std::sync::Arc;

use vmwright_disk::Disk;

use crate::{Cipher, CryptDisk, Error, Limits, Passphrase, Payload, Result, luks1};

/// The header of a LUKS disk of either version.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Header {
    /// Version 1.
    Luks1(luks1::Header),
}

impl Header {
    /// Reads the header at the beginning of a disk.
    pub fn read(disk: &dyn Disk) -> Result<Self> {
        Ok(Self::Luks1(luks1::Header::read(disk)?))
    }

    /// Where the encrypted content lies; refuses what cannot be opened, by name.
    pub fn payload(&self) -> Result<Payload> {
        match self {
            Self::Luks1(header) => header.payload(),
        }
    }

    /// Finds the volume key by a passphrase.
    pub fn unlock(&self, disk: &dyn Disk, passphrase: &Passphrase, limits: &Limits) -> Result<Cipher> {
        match self {
            Self::Luks1(header) => header.unlock_within(disk, passphrase, limits),
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

    /// Overwrites all keys and the header.
    pub fn destroy(&self, disk: &dyn Disk) -> Result<()> {
        match self {
            Self::Luks1(header) => header.destroy(disk),
        }
    }

    /// What is wrong with what stands in the file.
    pub fn check(&self, disk: &dyn Disk) -> Vec<Error> {
        match self {
            Self::Luks1(header) => header.check(disk),
        }
    }
}
