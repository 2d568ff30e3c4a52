use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use vmwright_disk::{Disk, Extent, ExtentKind, check_range};
use zeroize::Zeroizing;

use crate::{Cipher, Error, Payload, Result, SECTOR};

/// So many bytes are read or written at a time: they stay in the processor's cache.
const STEP: usize = 256 << 10;

/// The content of an encrypted disk.
///
/// A sector that was never written holds whatever its bytes decrypt to, not zeros: [`Disk::zero_at`] and a growing
/// [`Disk::set_len`] write encrypted zeros, and [`Disk::discard`] does nothing.
pub struct CryptDisk {
    file: Arc<dyn Disk>,
    cipher: Cipher,
    payload: Payload,
    read_only: bool,
    /// Written by whoever changes a part of a sector, which is read, changed and written back whole.
    sectors: RwLock<()>,
}

impl CryptDisk {
    /// Shows the content that `payload` of `file` holds.
    pub fn new(file: Arc<dyn Disk>, payload: Payload, cipher: Cipher, read_only: bool) -> Result<Self> {
        payload.check(&*file)?;
        let read_only = read_only || file.is_read_only();
        Ok(Self { file, cipher, payload, read_only, sectors: RwLock::new(()) })
    }

    fn check_writable(&self) -> vmwright_disk::Result<()> {
        match self.read_only {
            true => Err(vmwright_disk::Error::read_only("the encrypted disk")),
            false => Ok(()),
        }
    }

    fn size(&self) -> u64 {
        self.cipher.sector_size()
    }

    fn shared(&self) -> RwLockReadGuard<'_, ()> {
        self.sectors.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn alone(&self) -> RwLockWriteGuard<'_, ()> {
        self.sectors.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number that the sector at an offset is encrypted with.
    fn number(&self, offset: u64) -> u64 {
        self.payload.first_sector.wrapping_add(offset / SECTOR)
    }

    /// Reads whole sectors.
    fn read_sectors(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        for (index, part) in buf.chunks_mut(STEP).enumerate() {
            let at = offset + (index * STEP) as u64;
            self.file.read_at(part, self.payload.offset + at)?;
            self.cipher.decrypt(self.number(at), part)?;
        }
        Ok(())
    }

    /// Writes whole sectors, `fill` putting the content of each part into a buffer.
    fn write_sectors(&self, offset: u64, len: u64, fill: &dyn Fn(&mut [u8], usize)) -> Result<()> {
        let mut buffer = vec![0; len.min(STEP as u64) as usize];
        let mut done = 0;
        while done < len {
            let part = &mut buffer[..(len - done).min(STEP as u64) as usize];
            fill(part, done as usize);
            self.cipher.encrypt(self.number(offset + done), part)?;
            self.file.write_at(part, self.payload.offset + offset + done)?;
            done += part.len() as u64;
        }
        Ok(())
    }

    /// Changes a part of one sector.
    fn change_sector(&self, offset: u64, change: &dyn Fn(&mut [u8])) -> Result<()> {
        let size = self.size();
        let start = offset - offset % size;
        let mut sector = Zeroizing::new(vec![0; size as usize]);
        let _alone = self.alone();
        self.read_sectors(&mut sector, start)?;
        change(&mut sector[(offset - start) as usize..]);
        self.cipher.encrypt(self.number(start), &mut sector)?;
        Ok(self.file.write_at(&sector, self.payload.offset + start)?)
    }

    /// Reads the first and the last sector whole where only a part of them is wanted.
    fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let [head, body, tail] = split(offset, buf.len() as u64, self.size());
        let _shared = self.shared();
        for part in [head, tail].into_iter().filter(|part| part.len > 0) {
            let start = part.start - part.start % self.size();
            let mut sector = Zeroizing::new(vec![0; self.size() as usize]);
            self.read_sectors(&mut sector, start)?;
            let wanted = &sector[(part.start - start) as usize..][..part.len as usize];
            buf[(part.start - offset) as usize..][..part.len as usize].copy_from_slice(wanted);
        }
        let at = (body.start - offset) as usize;
        self.read_sectors(&mut buf[at..at + body.len as usize], body.start)
    }

    /// Writes a range; `fill` answers its bytes from an index on.
    fn change(&self, offset: u64, len: u64, fill: &dyn Fn(&mut [u8], usize)) -> Result<()> {
        let [head, body, tail] = split(offset, len, self.size());
        if body.len > 0 {
            let _shared = self.shared();
            let at = (body.start - offset) as usize;
            self.write_sectors(body.start, body.len, &|part, index| fill(part, at + index))?;
        }
        for part in [head, tail].into_iter().filter(|part| part.len > 0) {
            let at = (part.start - offset) as usize;
            self.change_sector(part.start, &|sector| fill(&mut sector[..part.len as usize], at))?;
        }
        Ok(())
    }

    fn resize(&self, len: u64) -> Result<()> {
        if self.payload.len.is_some() {
            return Err(
                vmwright_disk::Error::fixed_size("an encrypted disk whose header says its size").into()
            );
        }
        if !len.is_multiple_of(self.size()) {
            return Err(Error::invalid("the size of an encrypted disk", "it must be whole sectors"));
        }
        let (old, old_file) = (self.len(), self.file.len());
        let end = len.checked_add(self.payload.offset);
        let end = end.ok_or_else(|| Error::invalid("the size of an encrypted disk", "it is too large"))?;
        self.file.set_len(end)?;
        if len > old {
            let zeroed = self.change(old, len - old, &|part, _| part.fill(0));
            if let Err(error) = zeroed {
                // What was not written would read as garbage.
                let _ = self.file.set_len(old_file);
                return Err(error);
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for CryptDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CryptDisk").field("payload", &self.payload).field("cipher", &self.cipher).finish()
    }
}

/// A range of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    start: u64,
    len: u64,
}

/// Splits a range into a part of a sector, whole sectors, and a part of another sector.
fn split(offset: u64, len: u64, size: u64) -> [Part; 3] {
    let end = offset + len;
    let (first, last) = (offset.next_multiple_of(size).min(end), end - end % size);
    if first > last || len == 0 {
        // It lies within one sector.
        let nothing = Part { start: end, len: 0 };
        return [Part { start: offset, len }, nothing, nothing];
    }
    [
        Part { start: offset, len: first - offset },
        Part { start: first, len: last - first },
        Part { start: last, len: end - last },
    ]
}

impl Disk for CryptDisk {
    fn len(&self) -> u64 {
        self.payload.len_in(self.file.len())
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> vmwright_disk::Result<()> {
        check_range(offset, buf.len() as u64, self.len())?;
        Ok(self.read(buf, offset)?)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> vmwright_disk::Result<()> {
        self.check_writable()?;
        check_range(offset, data.len() as u64, self.len())?;
        let fill = |part: &mut [u8], index: usize| part.copy_from_slice(&data[index..index + part.len()]);
        Ok(self.change(offset, data.len() as u64, &fill)?)
    }

    fn zero_at(&self, offset: u64, len: u64) -> vmwright_disk::Result<()> {
        self.check_writable()?;
        check_range(offset, len, self.len())?;
        Ok(self.change(offset, len, &|part, _| part.fill(0))?)
    }

    fn discard(&self, offset: u64, len: u64) -> vmwright_disk::Result<()> {
        // A hole would decrypt to garbage.
        self.check_writable()?;
        check_range(offset, len, self.len())
    }

    fn set_len(&self, len: u64) -> vmwright_disk::Result<()> {
        self.check_writable()?;
        Ok(self.resize(len)?)
    }

    fn flush(&self) -> vmwright_disk::Result<()> {
        self.file.flush()
    }

    fn extent_at(&self, offset: u64) -> vmwright_disk::Result<Extent> {
        check_range(offset, 1, self.len())?;
        Ok(Extent { start: offset, len: self.len() - offset, kind: ExtentKind::Opaque, depth: 0 })
    }
}

#[cfg(test)]
mod tests {
    use vmwright_disk::conformance::{Features, check, check_read_only};
    use vmwright_disk::{ErrorKind, MemDisk};

    use super::*;
    use crate::Mode;

    fn cipher(sector_size: u32) -> Cipher {
        Cipher::new(Mode::XtsPlain64, &[5; 64], sector_size).unwrap()
    }

    fn zeroed(len: u64, sector_size: u32, payload: Payload) -> CryptDisk {
        let file = Arc::new(MemDisk::new((payload.offset + len) as usize));
        let disk = CryptDisk::new(file, payload, cipher(sector_size), false).unwrap();
        disk.zero_at(0, len).unwrap();
        disk
    }

    #[test]
    fn encrypted_disks_conform() {
        for (sector_size, first_sector) in [(512, 0), (4096, u64::MAX - 20)] {
            let payload = Payload { offset: 8192, len: None, first_sector, sector_size: sector_size.into() };
            let features = Features { granularity: sector_size.into(), resizable: true, operations: 100 };
            check(&|len| Arc::new(zeroed(len, sector_size, payload)), features);
        }
        let payload = |len| Payload { offset: 512, len: Some(len), first_sector: 0, sector_size: 512 };
        let features = Features { granularity: 512, resizable: false, operations: 50 };
        check(&|len| Arc::new(zeroed(len, 512, payload(len))), features);
    }

    #[test]
    fn encrypted_disks_opened_for_reading_conform() {
        let payload = Payload { offset: 4096, len: None, first_sector: 0, sector_size: 512 };
        let disk = zeroed(8192, 512, payload);
        disk.write_at(&[9; 1000], 700).unwrap();
        let mut content = vec![0; 8192];
        disk.read_at(&mut content, 0).unwrap();
        let reader = CryptDisk::new(disk.file.clone(), payload, cipher(512), true).unwrap();
        check_read_only(&reader, &content);
    }

    #[test]
    fn writers_of_parts_of_one_sector_do_not_lose_one_anothers_bytes() {
        let payload = Payload { offset: 0, len: None, first_sector: 0, sector_size: 4096 };
        let disk = zeroed(4096, 4096, payload);
        std::thread::scope(|scope| {
            for part in 0..4u64 {
                let disk = &disk;
                scope.spawn(move || {
                    for round in 1..100u8 {
                        disk.write_at(&[round; 512], part * 1024 + 100).unwrap();
                        let mut now = [0; 512];
                        disk.read_at(&mut now, part * 1024 + 100).unwrap();
                        assert_eq!(now, [round; 512]);
                    }
                });
            }
        });
    }

    #[test]
    fn nothing_of_the_content_stands_in_the_file() {
        let file = Arc::new(MemDisk::new(65536));
        let payload = Payload { offset: 4096, len: None, first_sector: 0, sector_size: 512 };
        let disk = CryptDisk::new(file.clone(), payload, cipher(512), false).unwrap();
        disk.write_at(&[b'A'; 30_000], 1234).unwrap();
        let bytes = file.to_bytes();
        assert!(!bytes.windows(4).any(|window| window == b"AAAA"));
        assert!(bytes[..4096].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_file_too_short_for_its_content_and_odd_lengths_are_refused() {
        let file = Arc::new(MemDisk::new(4096));
        let payload = Payload { offset: 8192, len: None, first_sector: 0, sector_size: 512 };
        let error = CryptDisk::new(file.clone(), payload, cipher(512), false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        let fixed = Payload { offset: 0, len: Some(8192), ..payload };
        assert_eq!(CryptDisk::new(file, fixed, cipher(512), false).unwrap_err().kind(), ErrorKind::Corrupt);
        let disk = zeroed(4096, 512, Payload { offset: 1024, ..payload });
        assert_eq!(disk.set_len(1000).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(disk.set_len(u64::MAX - 511).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}
