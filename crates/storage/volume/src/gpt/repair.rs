use std::sync::Arc;

use vmwright_disk::Disk;
use zerocopy::IntoBytes;

use super::{Copy, Gpt};
use crate::mbr::BootSector;
use crate::mbr::layout::{Entry, PROTECTIVE, SIGNATURE};
use crate::{Error, Partition, Result};

impl Gpt {
    /// Writes both copies and the protective MBR; answers what is then on the disk.
    pub(crate) fn repair(&self, disk: &Arc<dyn Disk>, last: Option<&Partition>) -> Result<Self> {
        let size = self.sector_size;
        let end = disk.len() / size;
        let array = self.copy.array_sectors(size);
        // One sector for the backup's header, and one at least must stay usable.
        let usable_end = end.saturating_sub(1 + array);
        if let Some(partition) = last.filter(|partition| partition.end() > usable_end * size) {
            return Err(Error::no_room(partition.number));
        }
        let mut primary = self.copy.clone();
        let header = &mut primary.header;
        if header.my_lba.get() != 1 {
            // Read from the backup: the primary's entries go where they are by default.
            header.partition_entry_lba.set(2);
        }
        let array_end = header.partition_entry_lba.get() + array;
        if header.first_usable_lba.get() < array_end || usable_end <= header.first_usable_lba.get() {
            return Err(Error::structure(size, "there is no room for the entries before the partitions"));
        }
        header.my_lba.set(1);
        header.alternate_lba.set(end - 1);
        header.last_usable_lba.set(usable_end - 1);
        let mut backup = primary.clone();
        backup.header.my_lba.set(end - 1);
        backup.header.alternate_lba.set(1);
        backup.header.partition_entry_lba.set(usable_end);
        for copy in [&mut backup, &mut primary] {
            write_copy(disk, size, copy)?;
        }
        write_protective(disk, end)?;
        Ok(Self { sector_size: size, copy: primary })
    }
}

fn write_copy(disk: &Arc<dyn Disk>, sector_size: u64, copy: &mut Copy) -> Result<()> {
    write_changed(disk, &copy.entries, copy.header.partition_entry_lba.get() * sector_size)?;
    let sector = copy.encode(sector_size);
    write_changed(disk, &sector, copy.header.my_lba.get() * sector_size)
}

/// Writes and flushes, unless that is what is there.
fn write_changed(disk: &Arc<dyn Disk>, data: &[u8], at: u64) -> Result<()> {
    let mut old = vec![0; data.len()];
    disk.read_at(&mut old, at).map_err(Error::disk("read"))?;
    if old != data {
        disk.write_at(data, at).map_err(Error::disk("write"))?;
        disk.flush().map_err(Error::disk("flush"))?;
    }
    Ok(())
}

/// How many sectors a protective entry covers on a disk of `sectors`.
fn protected_len(sectors: u64) -> u32 {
    u32::try_from(sectors - 1).unwrap_or(u32::MAX)
}

/// Whether the first sector marks the whole disk as one with a GPT. A hybrid one may cover less.
pub(super) fn protects(boot: &BootSector, sectors: u64) -> bool {
    let Some(entry) = boot.protective() else { return false };
    let len = entry.size_in_lba.get();
    // Several tools always write the longest length there is.
    entry.starting_lba.get() == 1 && (len == protected_len(sectors) || len == u32::MAX)
        || boot.has_partitions()
}

fn write_protective(disk: &Arc<dyn Disk>, sectors: u64) -> Result<()> {
    let Some(boot) = BootSector::read(disk)? else { return Ok(()) };
    if protects(&boot, sectors) {
        return Ok(());
    }
    let mut sector = *boot.sector();
    let entry = Entry {
        boot_indicator: 0,
        starting_chs: [0x00, 0x02, 0x00],
        os_type: PROTECTIVE,
        ending_chs: [0xff; 3],
        starting_lba: 1.into(),
        size_in_lba: protected_len(sectors).into(),
    };
    let nothing = Entry { os_type: 0, size_in_lba: 0.into(), starting_lba: 0.into(), ..entry };
    let nothing = Entry { starting_chs: [0; 3], ending_chs: [0; 3], ..nothing };
    sector.entries = [entry, nothing, nothing, nothing];
    sector.signature.set(SIGNATURE);
    write_changed(disk, sector.as_bytes(), 0)
}
