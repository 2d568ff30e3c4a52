use std::sync::Arc;

use vmwright_disk::Disk;
use zerocopy::IntoBytes;

use super::layout::{LEGACY_BIOS_BOOTABLE, REVISION, RawEntry, RawHeader, SIGNATURE};
use super::{Copy, Gpt};
use crate::create::{NewTable, SECTOR};
use crate::{Error, PartitionType, Result};

/// How many entries a new table has, as those of other tools.
const ENTRIES: u32 = 128;

/// Writes a checked table, both copies and the protective MBR.
pub(crate) fn create(disk: &Arc<dyn Disk>, table: &NewTable) -> Result<()> {
    let mut entries: Vec<u8> =
        table.partitions.iter().flat_map(|new| entry(new).as_bytes().to_vec()).collect();
    entries.resize(ENTRIES as usize * size_of::<RawEntry>(), 0);
    let header = RawHeader {
        signature: SIGNATURE,
        revision: REVISION.into(),
        header_size: (size_of::<RawHeader>() as u32).into(),
        header_crc32: 0.into(),
        reserved: 0.into(),
        my_lba: 1.into(),
        alternate_lba: 0.into(),
        first_usable_lba: 34.into(),
        last_usable_lba: 0.into(),
        disk_guid: table.id.to_bytes_le(),
        partition_entry_lba: 2.into(),
        number_of_partition_entries: ENTRIES.into(),
        size_of_partition_entry: (size_of::<RawEntry>() as u32).into(),
        partition_entry_array_crc32: crc32fast::hash(&entries).into(),
    };
    // What an MBR says now must not be taken for a hybrid one.
    disk.zero_at(0, SECTOR).map_err(Error::disk("write"))?;
    let copy = Copy { header, tail: Vec::new(), entries };
    Gpt { sector_size: SECTOR, copy }.repair(disk, None)?;
    Ok(())
}

fn entry(new: &crate::NewPartition) -> RawEntry {
    let kind = match new.partition_type {
        PartitionType::Gpt(guid) => guid.to_bytes_le(),
        PartitionType::Mbr(_) => [0; 16],
    };
    let mut name = [0.into(); 36];
    for (unit, character) in name.iter_mut().zip(new.name.encode_utf16()) {
        *unit = character.into();
    }
    RawEntry {
        partition_type_guid: kind,
        unique_partition_guid: new.id.to_bytes_le(),
        starting_lba: (new.start / SECTOR).into(),
        ending_lba: ((new.start + new.len) / SECTOR - 1).into(),
        attributes: (if new.bootable { LEGACY_BIOS_BOOTABLE } else { 0 }).into(),
        partition_name: name,
    }
}
