//! Encrypted images: LUKS1, its header in clusters of the file, each sector of data numbered by where it is in the file.

use std::sync::Arc;

use vmwright_crypt::{Cipher, Passphrase, luks1};
use vmwright_disk::{Disk, MemDisk, Window};

use super::Qcow2;
use super::layout::{ENCRYPTION_LUKS, Header};
use crate::error::Reason;
use crate::{Error, Result};

/// What sectors are encrypted as one.
pub(super) const SECTOR: u64 = 512;
/// At most so many bytes are encrypted at a time.
const STEP: usize = 1 << 20;
/// No LUKS1 header with its key material is longer.
const MAX_HEADER: u64 = 64 << 20;

/// How data is encrypted.
pub(super) enum Crypt {
    /// Not at all.
    None,
    /// Nobody knows yet: there was no passphrase.
    Locked,
    Open(Cipher),
}

/// Reads the LUKS header of an encrypted image, without its key material.
pub(super) fn describe(file: &dyn Disk, header: &Header) -> Result<luks1::Header> {
    let (offset, len) = place(file, header)?;
    let mut bytes = vec![0; len.min(4096) as usize];
    file.read_at(&mut bytes, offset)?;
    Ok(luks1::Header::read(&MemDisk::from_bytes(bytes))?)
}

/// Where the LUKS header is, and its length.
fn place(file: &dyn Disk, header: &Header) -> Result<(u64, u64)> {
    let what = "the place of the LUKS header";
    let Some((offset, len)) = header.encryption_header else {
        return Err(Error::corrupt("the header of an encrypted image", 32, "where the LUKS header is", 0));
    };
    if offset == 0 || !offset.is_multiple_of(header.cluster_size()) {
        return Err(Error::corrupt(what, 0, "a multiple of the cluster size", offset));
    }
    if len > MAX_HEADER || offset.checked_add(len).is_none_or(|end| end > file.len()) {
        return Err(Error::corrupt(what, 0, "a range within the file, of at most 64 MiB", len));
    }
    Ok((offset, len))
}

/// The part of the file that holds the header and the key slots of LUKS.
pub(crate) fn key_area(file: Arc<dyn Disk>) -> Result<Arc<dyn Disk>> {
    let header = super::open::read_header(&*file)?;
    if header.encryption != ENCRYPTION_LUKS {
        return Err(Error::unsupported("changing keys of an image that LUKS does not encrypt"));
    }
    let (offset, len) = place(&*file, &header)?;
    Ok(Arc::new(Window::new(file, offset, len)?))
}

/// Opens the key slot that a passphrase fits.
pub(super) fn open(file: &Arc<dyn Disk>, header: &Header, secret: Option<&Passphrase>) -> Result<Crypt> {
    if header.encryption != ENCRYPTION_LUKS {
        return Ok(Crypt::None);
    }
    let (offset, len) = place(&**file, header)?;
    let Some(secret) = secret else { return Ok(Crypt::Locked) };
    let window = Window::new(file.clone(), offset, len)?;
    Ok(Crypt::Open(luks1::Header::read(&window)?.unlock(&window, secret)?))
}

impl Qcow2 {
    /// Whether data clusters are encrypted.
    pub(super) fn is_encrypted(&self) -> bool {
        self.header.encryption != 0
    }

    /// What data is encrypted with, if it is.
    pub(super) fn cipher(&self) -> Result<Option<&Cipher>> {
        match &self.crypt {
            Crypt::None => Ok(None),
            Crypt::Open(cipher) => Ok(Some(cipher)),
            Crypt::Locked => Err(Reason::NeedsPassphrase.into()),
        }
    }

    /// Reads encrypted data.
    pub(super) fn read_encrypted(&self, cipher: &Cipher, buf: &mut [u8], host: u64) -> Result<()> {
        let (skip, len) = (host % SECTOR, buf.len() as u64);
        if skip == 0 && len.is_multiple_of(SECTOR) {
            self.read_plain(buf, host)?;
            return Ok(cipher.decrypt(host / SECTOR, buf)?);
        }
        let mut sectors = vec![0; (skip + len).next_multiple_of(SECTOR) as usize];
        self.read_plain(&mut sectors, host - skip)?;
        cipher.decrypt((host - skip) / SECTOR, &mut sectors)?;
        buf.copy_from_slice(&sectors[skip as usize..][..buf.len()]);
        Ok(())
    }

    /// Encrypts and writes data. Parts of sectors are completed by what is there: nobody else may be writing it.
    pub(super) fn write_encrypted(&self, cipher: &Cipher, data: &[u8], host: u64) -> Result<()> {
        let (mut at, mut rest) = (host, data);
        while !rest.is_empty() {
            let skip = at % SECTOR;
            let whole = rest.len() - rest.len() % SECTOR as usize;
            let len = match skip == 0 && whole > 0 {
                true => whole.min(STEP),
                false => rest.len().min((SECTOR - skip) as usize),
            };
            let (now, later) = rest.split_at(len);
            let mut sectors = now.to_vec();
            if !sectors.len().is_multiple_of(SECTOR as usize) {
                sectors = vec![0; SECTOR as usize];
                self.read_encrypted(cipher, &mut sectors, at - skip)?;
                sectors[skip as usize..][..len].copy_from_slice(now);
            }
            cipher.encrypt((at - skip) / SECTOR, &mut sectors)?;
            self.write_plain(&sectors, at - skip)?;
            (at, rest) = (at + len as u64, later);
        }
        Ok(())
    }

    /// Writes encrypted zeros.
    pub(super) fn zero_encrypted(&self, cipher: &Cipher, host: u64, len: u64) -> Result<()> {
        let zeros = vec![0; len.min(STEP as u64) as usize];
        let mut done = 0;
        while done < len {
            let step = (len - done).min(STEP as u64);
            self.write_encrypted(cipher, &zeros[..step as usize], host + done)?;
            done += step;
        }
        Ok(())
    }
}
