use std::collections::HashSet;
use std::sync::Arc;

use vmwright_disk::Disk;
use zerocopy::FromBytes;

use crate::table::check_partitions;
use crate::{Error, Partition, PartitionTable, PartitionType, Result, Scheme};

mod create;
pub(crate) mod layout;

pub(crate) use create::create;
use layout::{Entry, PROTECTIVE, SIGNATURE, Sector};

/// MBR says nothing of its sector size; disks with one count in sectors of 512 bytes.
const SECTOR: u64 = 512;

/// The most logical partitions that are followed; Linux itself names no more than 60.
const LOGICAL_MAX: usize = 128;

/// The first sector of a disk.
pub(crate) struct BootSector(Sector);

impl BootSector {
    /// Reads the first sector; `None` where the disk is shorter than one.
    pub(crate) fn read(disk: &Arc<dyn Disk>) -> Result<Option<Self>> {
        if disk.len() < SECTOR {
            return Ok(None);
        }
        read_sector(disk, 0).map(|sector| Some(Self(sector)))
    }

    pub(crate) fn is_signed(&self) -> bool {
        self.0.signature.get() == SIGNATURE
    }

    /// The entry that covers a disk with a GPT.
    pub(crate) fn protective(&self) -> Option<&Entry> {
        let mut entries = self.0.entries.iter().filter(|_| self.is_signed());
        entries.find(|entry| entry.os_type == PROTECTIVE)
    }

    /// Whether it names partitions of its own.
    pub(crate) fn has_partitions(&self) -> bool {
        let mut entries = self.0.entries.iter();
        self.is_signed() && entries.any(|entry| !entry.is_empty() && entry.os_type != PROTECTIVE)
    }

    /// Whether it begins a FAT, exFAT or NTFS volume, whose code lies where a table would be.
    pub(crate) fn is_volume(&self) -> bool {
        let code = &self.0.boot_code;
        let jumps = matches!(code[0], 0xeb | 0xe9);
        let named = |at: usize, name: &[u8]| code[at..].starts_with(name);
        let fat = named(54, b"FAT1") || named(82, b"FAT32");
        jumps && (fat || named(3, b"NTFS    ") || named(3, b"EXFAT   "))
    }

    fn is_table(&self) -> bool {
        let plain = |entry: &Entry| matches!(entry.boot_indicator, 0 | 0x80);
        self.is_signed() && !self.is_volume() && self.0.entries.iter().all(plain)
    }

    pub(crate) fn sector(&self) -> &Sector {
        &self.0
    }
}

/// Reads the table of a disk that has no GPT.
pub(crate) fn read(disk: &Arc<dyn Disk>, boot: &BootSector) -> Result<Option<PartitionTable>> {
    if !boot.is_table() {
        return Ok(None);
    }
    let signature = Some(boot.0.unique_mbr_signature.get()).filter(|&signature| signature != 0);
    let mut partitions = Vec::new();
    for (number, entry) in (1..).zip(&boot.0.entries) {
        if !entry.is_empty() {
            partitions.push(partition(number, entry, 0, signature));
        }
    }
    if partitions.iter().any(|partition| partition.start == 0) {
        return Err(Error::structure(446, "a partition begins where the table itself is"));
    }
    check_partitions(partitions.iter(), disk.len())?;
    let mut extended = partitions.iter().filter(|partition| partition.partition_type.is_container());
    let (first, second) = (extended.next().cloned(), extended.next());
    if second.is_some() {
        return Err(Error::structure(446, "there are two extended partitions"));
    }
    if let Some(container) = first {
        partitions.extend(logical(disk, &container, signature)?);
    }
    Ok(Some(PartitionTable {
        disk: disk.clone(),
        scheme: Scheme::Mbr,
        id: signature.map(|signature| format!("{signature:08x}")),
        sector_size: SECTOR as u32,
        partitions,
        damage: Vec::new(),
        hybrid: false,
        gpt: None,
    }))
}

/// Follows the chain of an extended partition: each link holds one partition and the place of the next link.
fn logical(disk: &Arc<dyn Disk>, container: &Partition, signature: Option<u32>) -> Result<Vec<Partition>> {
    let mut found = Vec::new();
    let mut links = Vec::new();
    let mut met = HashSet::new();
    let mut at = container.start;
    loop {
        if !met.insert(at) || met.len() > LOGICAL_MAX {
            return Err(Error::structure(at, "the chain of logical partitions does not end"));
        }
        let link = read_sector(disk, at)?;
        if link.signature.get() != SIGNATURE {
            // Tools leave the inside of an extended partition alone until the first partition is made.
            if at == container.start {
                return Ok(found);
            }
            return Err(Error::field(at, "signature", "0xaa55", format!("{:#x}", link.signature.get())));
        }
        let number = 5 + found.len() as u32;
        links.push(Partition { number, start: at, len: SECTOR, ..container.clone() });
        let entries = &link.entries[..2];
        if let Some(entry) = entries.iter().find(|entry| !entry.is_empty() && !entry.is_extended()) {
            found.push(partition(number, entry, at, signature));
        }
        let Some(next) = entries.iter().find(|entry| !entry.is_empty() && entry.is_extended()) else { break };
        at = container.start + u64::from(next.starting_lba.get()) * SECTOR;
        if at >= container.end() {
            return Err(Error::structure(at, "a logical partition lies outside of the extended one"));
        }
    }
    check_partitions(found.iter().chain(&links), container.end())?;
    Ok(found)
}

fn partition(number: u32, entry: &Entry, base: u64, signature: Option<u32>) -> Partition {
    Partition {
        number,
        start: base + u64::from(entry.starting_lba.get()) * SECTOR,
        len: u64::from(entry.size_in_lba.get()) * SECTOR,
        partition_type: PartitionType::Mbr(entry.os_type),
        id: signature.map(|signature| format!("{signature:08x}-{number:02x}")),
        name: String::new(),
        flags: entry.boot_indicator.into(),
        bootable: entry.boot_indicator == 0x80,
    }
}

fn read_sector(disk: &Arc<dyn Disk>, at: u64) -> Result<Sector> {
    let mut bytes = [0; SECTOR as usize];
    disk.read_at(&mut bytes, at).map_err(Error::disk("read"))?;
    Ok(Sector::read_from_bytes(&bytes).expect("a sector has 512 bytes"))
}
