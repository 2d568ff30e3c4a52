use std::sync::Arc;

use uuid::Uuid;
use vmwright_disk::Disk;
use zerocopy::FromBytes;

use crate::mbr::BootSector;
use crate::table::check_partitions;
use crate::{Damage, Error, Partition, PartitionTable, PartitionType, Result, Scheme};

mod create;
mod header;
pub(crate) mod layout;
mod repair;

pub(crate) use create::create;
use header::Copy;
use layout::{LEGACY_BIOS_BOOTABLE, RawEntry};

/// What is kept of a table to write it anew.
pub(crate) struct Gpt {
    sector_size: u64,
    copy: Copy,
}

/// Reads the table of a disk; `None` where it has no GPT.
pub(crate) fn read(disk: &Arc<dyn Disk>, boot: &BootSector) -> Result<Option<PartitionTable>> {
    let protected = boot.protective().is_some();
    if !protected && (boot.has_partitions() || boot.is_volume()) {
        // Somebody has made something else since; what is left of a GPT no longer counts, as in Linux.
        return Ok(None);
    }
    let Some(Found { sector_size, copy, mut damage }) = find(disk, protected)? else { return Ok(None) };
    let partitions = partitions(&copy, sector_size)?;
    check_partitions(partitions.iter(), disk.len() / sector_size * sector_size)?;
    if !repair::protects(boot, disk.len() / sector_size) {
        damage.push(Damage::ProtectiveMbr);
    }
    Ok(Some(PartitionTable {
        disk: disk.clone(),
        scheme: Scheme::Gpt,
        id: Some(Uuid::from_bytes_le(copy.header.disk_guid).to_string()),
        sector_size: sector_size as u32,
        partitions,
        damage,
        hybrid: protected && boot.has_partitions(),
        gpt: Some(Gpt { sector_size, copy }),
    }))
}

struct Found {
    sector_size: u64,
    copy: Copy,
    damage: Vec<Damage>,
}

/// Finds a whole copy, and says what is wrong with the other.
///
/// The backup alone counts only on a disk that is marked as one with a GPT: otherwise it may be what a
/// filesystem made over the whole disk has left.
fn find(disk: &Arc<dyn Disk>, protected: bool) -> Result<Option<Found>> {
    let mut why = None;
    for sector_size in [512, 4096].into_iter().filter(|size| disk.len() >= 3 * size) {
        match Copy::read(disk, sector_size, 1) {
            Ok(copy) => {
                let damage = examine_backup(disk, sector_size, &copy)?;
                return Ok(Some(Found { sector_size, copy, damage }));
            }
            Err(error) if !error.is_about_the_bytes() => return Err(error),
            Err(error) => why = why.or(Some(error)),
        }
    }
    let Some(primary) = why.filter(|_| protected) else { return Ok(None) };
    let mut why = None;
    for sector_size in [512, 4096].into_iter().filter(|size| disk.len() >= 3 * size) {
        match Copy::read(disk, sector_size, disk.len() / sector_size - 1) {
            Ok(copy) => {
                let damage = vec![Damage::Primary { reason: primary.to_string() }];
                return Ok(Some(Found { sector_size, copy, damage }));
            }
            Err(error) if !error.is_about_the_bytes() => return Err(error),
            Err(error) => why = why.or(Some(error)),
        }
    }
    match why {
        Some(backup) => Err(Error::both(primary, backup)),
        None => Err(primary),
    }
}

fn examine_backup(disk: &Arc<dyn Disk>, sector_size: u64, primary: &Copy) -> Result<Vec<Damage>> {
    let last = disk.len() / sector_size - 1;
    let alternate = primary.header.alternate_lba.get();
    if alternate != last {
        let at = alternate.saturating_mul(sector_size);
        return Ok(vec![Damage::MisplacedBackup { at, expected: last * sector_size }]);
    }
    match Copy::read(disk, sector_size, last) {
        Ok(backup) if backup.agrees_with(primary) && backup.header.alternate_lba.get() == 1 => Ok(Vec::new()),
        Ok(_) => Ok(vec![Damage::StaleBackup]),
        Err(error) if error.is_about_the_bytes() => Ok(vec![Damage::Backup { reason: error.to_string() }]),
        Err(error) => Err(error),
    }
}

fn partitions(copy: &Copy, sector_size: u64) -> Result<Vec<Partition>> {
    let usable = copy.header.first_usable_lba.get()..=copy.header.last_usable_lba.get();
    let entry_size = copy.header.size_of_partition_entry.get() as usize;
    let mut found = Vec::new();
    for (number, bytes) in (1..).zip(copy.entries.chunks_exact(entry_size)) {
        let (entry, _) = RawEntry::read_from_prefix(bytes).expect("entries have at least 128 bytes");
        if entry.partition_type_guid == [0; 16] {
            continue;
        }
        let (first, last) = (entry.starting_lba.get(), entry.ending_lba.get());
        if first > last {
            return Err(Error::partition(number, "it ends before it begins"));
        }
        if !usable.contains(&first) || !usable.contains(&last) {
            return Err(Error::partition(number, "it lies outside of the usable range"));
        }
        let (Some(start), Some(end)) = (
            first.checked_mul(sector_size),
            last.checked_add(1).and_then(|end| end.checked_mul(sector_size)),
        ) else {
            return Err(Error::partition(number, "it lies past the end of any disk"));
        };
        let name: Vec<u16> =
            entry.partition_name.iter().map(|unit| unit.get()).take_while(|&c| c != 0).collect();
        found.push(Partition {
            number,
            start,
            len: end - start,
            partition_type: PartitionType::Gpt(Uuid::from_bytes_le(entry.partition_type_guid)),
            id: Some(Uuid::from_bytes_le(entry.unique_partition_guid).to_string()),
            name: String::from_utf16_lossy(&name),
            flags: entry.attributes.get(),
            bootable: entry.attributes.get() & LEGACY_BIOS_BOOTABLE != 0,
        });
    }
    Ok(found)
}
