use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Loss;
use crate::{Disk, Error, Extent, ExtentKind, Result, check_range};

const SECTOR: usize = 512;

/// Bytes behind a volatile write cache.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cached {
    live: Vec<u8>,
    durable: Vec<u8>,
    /// What happened since the last sync, in order.
    pending: Vec<Pending>,
}

#[derive(Debug, Clone)]
enum Pending {
    Sector { start: usize, bytes: Vec<u8> },
    Len(usize),
}

impl Cached {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        Self { live: bytes.clone(), durable: bytes, pending: Vec::new() }
    }

    pub(crate) fn live(&self) -> &[u8] {
        &self.live
    }

    pub(crate) fn write(&mut self, data: &[u8], offset: usize) {
        let end = offset + data.len();
        if end > self.live.len() {
            self.resize(end);
        }
        self.live[offset..end].copy_from_slice(data);
        let mut start = offset - offset % SECTOR;
        while start < end {
            let stop = (start + SECTOR).min(self.live.len());
            self.pending.push(Pending::Sector { start, bytes: self.live[start..stop].to_vec() });
            start += SECTOR;
        }
    }

    pub(crate) fn resize(&mut self, len: usize) {
        self.live.resize(len, 0);
        self.pending.push(Pending::Len(len));
    }

    pub(crate) fn sync(&mut self) {
        self.durable = self.after_crash(Loss::Nothing, 0);
        self.pending.clear();
    }

    /// A sync that failed: as in Linux, what it should have written counts as written but never will be.
    pub(crate) fn fail_sync(&mut self) {
        self.pending.clear();
    }

    pub(crate) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// What the medium holds after power was lost. Things are numbered from `first` on.
    pub(crate) fn after_crash(&self, loss: Loss, first: usize) -> Vec<u8> {
        let mut len = self.durable.len();
        let mut bytes = self.durable.clone();
        // Sectors past the durable end survive only where a length that covers them does.
        bytes.resize(self.live.len().max(len), 0);
        for (index, pending) in self.pending.iter().enumerate() {
            match pending {
                _ if loss.loses(first + index) => {}
                Pending::Len(new) => {
                    bytes.resize(bytes.len().max(*new), 0);
                    bytes[*new..].fill(0);
                    len = *new;
                }
                Pending::Sector { start, bytes: sector } => {
                    bytes.resize(bytes.len().max(start + sector.len()), 0);
                    bytes[*start..start + sector.len()].copy_from_slice(sector);
                }
            }
        }
        bytes.truncate(len);
        bytes
    }
}

/// A disk in memory behind a volatile write cache: what was not flushed may be lost, sector by sector.
///
/// ```
/// use vmwright_disk::{Disk, fault::{Loss, VolatileDisk}};
///
/// let disk = VolatileDisk::new(vec![0; 1024]);
/// disk.write_at(&[1; 1024], 0)?;
/// assert_eq!(disk.after_crash(Loss::Only(0))[..513], [[0; 512].as_slice(), &[1]].concat());
/// disk.flush()?;
/// assert_eq!(disk.after_crash(Loss::Everything), [1; 1024]);
/// # Ok::<(), vmwright_disk::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct VolatileDisk {
    cached: Mutex<Cached>,
}

impl VolatileDisk {
    /// Makes a disk that holds `bytes`, all durable.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { cached: Mutex::new(Cached::new(bytes)) }
    }

    /// How many sector writes and changes of length happened since the last flush.
    pub fn pending(&self) -> usize {
        self.lock().pending()
    }

    /// What would be left if power were lost now.
    pub fn after_crash(&self, loss: Loss) -> Vec<u8> {
        self.lock().after_crash(loss, 0)
    }

    /// A copy of the whole content as it reads now.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.lock().live().to_vec()
    }

    fn lock(&self) -> MutexGuard<'_, Cached> {
        self.cached.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk for VolatileDisk {
    fn len(&self) -> u64 {
        self.lock().live().len() as u64
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let cached = self.lock();
        check_range(offset, buf.len() as u64, cached.live().len() as u64)?;
        buf.copy_from_slice(&cached.live()[offset as usize..][..buf.len()]);
        Ok(())
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        let mut cached = self.lock();
        check_range(offset, data.len() as u64, cached.live().len() as u64)?;
        cached.write(data, offset as usize);
        Ok(())
    }

    fn zero_at(&self, offset: u64, len: u64) -> Result<()> {
        let mut cached = self.lock();
        check_range(offset, len, cached.live().len() as u64)?;
        cached.write(&vec![0; len as usize], offset as usize);
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.zero_at(offset, len)
    }

    fn set_len(&self, len: u64) -> Result<()> {
        let len = usize::try_from(len).map_err(|_| Error::fixed_size("memory of this size"))?;
        self.lock().resize(len);
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.lock().sync();
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        let len = self.len();
        check_range(offset, 1, len)?;
        Ok(Extent { start: offset, len: len - offset, kind: ExtentKind::Opaque, depth: 0 })
    }
}
