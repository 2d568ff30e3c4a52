use std::sync::Arc;

use vmwright_disk::Disk;
use zerocopy::{FromBytes, IntoBytes};

use super::layout::{REVISION, RawHeader, SIGNATURE};
use crate::{Error, Result};

/// The most that the entries of a table may take together, in bytes; the usual ones take 16 KiB.
const ARRAY_MAX: u64 = 1 << 20;

/// A header whose checksum and fields are right, with the entries that it describes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Copy {
    pub(crate) header: RawHeader,
    /// What a header longer than the specification's holds behind it.
    pub(crate) tail: Vec<u8>,
    pub(crate) entries: Vec<u8>,
}

impl Copy {
    /// Reads the copy whose header is in sector `lba`.
    pub(crate) fn read(disk: &Arc<dyn Disk>, sector_size: u64, lba: u64) -> Result<Self> {
        let at = lba * sector_size;
        let mut sector = vec![0; sector_size as usize];
        disk.read_at(&mut sector, at).map_err(Error::disk("read"))?;
        let (header, _) = RawHeader::read_from_prefix(&sector).expect("a sector is longer than a header");
        if header.signature != SIGNATURE {
            return Err(Error::structure(at, "there is no GPT signature"));
        }
        if header.revision.get() != REVISION {
            return Err(Error::field(at + 8, "revision", "0x10000", format!("{:#x}", header.revision.get())));
        }
        let size = header.header_size.get() as usize;
        if size < size_of::<RawHeader>() || size > sector.len() {
            return Err(Error::field(at + 12, "header size", format!("92 to {sector_size}"), size));
        }
        let tail = sector[size_of::<RawHeader>()..size].to_vec();
        let crc = checksum(&header, &tail);
        if crc != header.header_crc32.get() {
            let (expected, actual) = (format!("{crc:#010x}"), format!("{:#010x}", header.header_crc32.get()));
            return Err(Error::field(at + 16, "header checksum", expected, actual));
        }
        if header.my_lba.get() != lba {
            return Err(Error::field(at + 24, "own sector", lba, header.my_lba.get()));
        }
        let entries = read_entries(disk, sector_size, &header, at)?;
        Ok(Self { header, tail, entries })
    }

    /// How many sectors the entries take.
    pub(crate) fn array_sectors(&self, sector_size: u64) -> u64 {
        (self.entries.len() as u64).div_ceil(sector_size)
    }

    /// Whether both say the same of the disk, apart from where they themselves are.
    pub(crate) fn agrees_with(&self, other: &Self) -> bool {
        let essence = |copy: &Self| {
            let mut header = copy.header;
            header.header_crc32.set(0);
            header.my_lba.set(0);
            header.alternate_lba.set(0);
            header.partition_entry_lba.set(0);
            header
        };
        essence(self) == essence(other) && self.tail == other.tail && self.entries == other.entries
    }

    /// Puts the right checksum into the header and answers its sector.
    pub(crate) fn encode(&mut self, sector_size: u64) -> Vec<u8> {
        self.header.header_crc32.set(checksum(&self.header, &self.tail));
        let mut sector = [self.header.as_bytes(), &self.tail].concat();
        sector.resize(sector_size as usize, 0);
        sector
    }
}

fn read_entries(disk: &Arc<dyn Disk>, sector_size: u64, header: &RawHeader, at: u64) -> Result<Vec<u8>> {
    let (count, size) = (header.number_of_partition_entries.get(), header.size_of_partition_entry.get());
    if size < 128 || !size.is_power_of_two() {
        return Err(Error::field(at + 84, "entry size", "a power of two from 128 on", size));
    }
    let bytes = u64::from(count) * u64::from(size);
    if bytes > ARRAY_MAX {
        return Err(Error::too_large(at + 80, count, size));
    }
    let (first, last) = (header.first_usable_lba.get(), header.last_usable_lba.get());
    if first < 2 || first > last {
        return Err(Error::field(at + 40, "first usable sector", format!("2 to {last}"), first));
    }
    let lba = header.partition_entry_lba.get();
    let end = lba.checked_add(bytes.div_ceil(sector_size)).filter(|&end| end <= disk.len() / sector_size);
    let Some(end) = end.filter(|_| lba >= 2 || bytes == 0) else {
        return Err(Error::field(at + 72, "sector of the entries", "one on the disk", lba));
    };
    if bytes > 0 && lba <= last && end > first {
        return Err(Error::structure(at + 72, "the entries lie among the partitions"));
    }
    let mut entries = vec![0; bytes as usize];
    if bytes > 0 {
        disk.read_at(&mut entries, lba * sector_size).map_err(Error::disk("read"))?;
    }
    let crc = crc32fast::hash(&entries);
    let stored = header.partition_entry_array_crc32.get();
    if crc != stored {
        let (expected, actual) = (format!("{crc:#010x}"), format!("{stored:#010x}"));
        return Err(Error::field(at + 88, "checksum of the entries", expected, actual));
    }
    Ok(entries)
}

fn checksum(header: &RawHeader, tail: &[u8]) -> u32 {
    let mut header = *header;
    header.header_crc32.set(0);
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(header.as_bytes());
    hasher.update(tail);
    hasher.finalize()
}
