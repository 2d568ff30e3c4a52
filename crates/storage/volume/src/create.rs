//! A new table on a disk.

use std::sync::Arc;

use uuid::Uuid;
use vmwright_disk::Disk;

use crate::table::check_partitions;
use crate::{Error, Partition, PartitionTable, PartitionType, Result, Scheme, gpt, mbr};

/// Sectors that tables are made for.
pub(crate) const SECTOR: u64 = 512;

/// A table to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTable {
    /// Its kind.
    pub scheme: Scheme,
    /// The disk's GUID; of an MBR the first four bytes are the signature.
    pub id: Uuid,
    /// Its partitions, numbered from one on: up to 128 of GPT, 4 of MBR.
    pub partitions: Vec<NewPartition>,
}

/// A partition to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewPartition {
    /// Where it begins, in bytes: a multiple of 512.
    pub start: u64,
    /// Its length in bytes, a multiple of 512.
    pub len: u64,
    /// What it is for, in the scheme of the table.
    pub partition_type: PartitionType,
    /// What `PARTUUID=` names; not used by MBR.
    pub id: Uuid,
    /// What `PARTLABEL=` names, at most 36 units of UTF-16; not used by MBR.
    pub name: String,
    /// Whether it is marked as the one that a BIOS boots.
    pub bootable: bool,
}

impl NewTable {
    /// How many bytes at the beginning of a disk a table keeps free, and how many at its end. Partitions begin on a mebibyte,
    /// as those of other tools.
    pub fn margins(scheme: Scheme) -> (u64, u64) {
        match scheme {
            Scheme::Gpt => (1 << 20, 33 * SECTOR),
            Scheme::Mbr => (1 << 20, 0),
        }
    }
}

impl PartitionTable {
    /// Writes a table to a disk; what a table there said before is gone, and so is the boot code in its first sector.
    ///
    /// # Errors
    ///
    /// Kind `InvalidInput` where partitions do not fit, overlap or have a type of the other scheme.
    pub fn create(disk: &Arc<dyn Disk>, table: &NewTable) -> Result<Self> {
        let (_, after) = NewTable::margins(table.scheme);
        let least = match table.scheme {
            Scheme::Gpt => 34 * SECTOR,
            Scheme::Mbr => SECTOR,
        };
        let end = disk.len() / SECTOR * SECTOR;
        let most = if table.scheme == Scheme::Gpt { 128 } else { 4 };
        if end < least + after || table.partitions.len() > most {
            return Err(Error::invalid("the disk or the table has no room for so much"));
        }
        let mut shown = Vec::new();
        for (number, new) in (1..).zip(&table.partitions) {
            shown.push(check(number, new, table.scheme, least)?);
        }
        check_partitions(shown.iter(), end - after)
            .map_err(|_| Error::invalid("partitions overlap or reach past the end of the disk"))?;
        match table.scheme {
            Scheme::Gpt => gpt::create(disk, table)?,
            Scheme::Mbr => mbr::create(disk, table)?,
        }
        Self::read(disk)?.ok_or_else(|| Error::invalid("the disk took no table"))
    }
}

fn check(number: u32, new: &NewPartition, scheme: Scheme, least: u64) -> Result<Partition> {
    let aligned = new.start.is_multiple_of(SECTOR) && new.len.is_multiple_of(SECTOR) && new.len > 0;
    if !aligned || new.start < least || new.start.checked_add(new.len).is_none() {
        return Err(Error::invalid("a partition is not of whole sectors behind the table"));
    }
    let fits = match (scheme, new.partition_type) {
        (Scheme::Gpt, PartitionType::Gpt(guid)) => !guid.is_nil() && new.name.encode_utf16().count() <= 36,
        (Scheme::Mbr, PartitionType::Mbr(id)) => {
            let last = (new.start + new.len) / SECTOR;
            id != 0 && !new.partition_type.is_container() && u32::try_from(last).is_ok()
        }
        _ => false,
    };
    let beyond = (new.start + new.len) / SECTOR > u64::from(u32::MAX);
    if scheme == Scheme::Mbr && beyond {
        return Err(Error::invalid("an MBR has no room for partitions beyond 2 TiB: GPT has"));
    }
    if !fits {
        return Err(Error::invalid("a partition is none that the table can hold"));
    }
    Ok(Partition {
        number,
        start: new.start,
        len: new.len,
        partition_type: new.partition_type,
        id: None,
        name: String::new(),
        flags: 0,
        bootable: false,
    })
}
