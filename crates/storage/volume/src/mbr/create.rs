use std::sync::Arc;

use vmwright_disk::Disk;
use zerocopy::{FromZeros, IntoBytes};

use super::layout::{Entry, SIGNATURE, Sector};
use crate::create::{NewTable, SECTOR};
use crate::{Error, PartitionType, Result};

/// What stands for a place beyond the reach of cylinders, heads and sectors.
const BEYOND: [u8; 3] = [0xfe, 0xff, 0xff];

/// Writes a checked table.
pub(crate) fn create(disk: &Arc<dyn Disk>, table: &NewTable) -> Result<()> {
    let mut sector = Sector::new_zeroed();
    let [a, b, c, d, ..] = *table.id.as_bytes();
    sector.unique_mbr_signature.set(u32::from_be_bytes([a, b, c, d]));
    for (entry, new) in sector.entries.iter_mut().zip(&table.partitions) {
        let PartitionType::Mbr(os_type) = new.partition_type else { continue };
        *entry = Entry {
            boot_indicator: if new.bootable { 0x80 } else { 0 },
            starting_chs: place(new.start / SECTOR),
            os_type,
            ending_chs: place((new.start + new.len) / SECTOR - 1),
            // Checked to have 32 bits.
            starting_lba: ((new.start / SECTOR) as u32).into(),
            size_in_lba: ((new.len / SECTOR) as u32).into(),
        };
    }
    sector.signature.set(SIGNATURE);
    // A GPT would count more.
    for at in [SECTOR, disk.len() / SECTOR * SECTOR - SECTOR] {
        if at > 0 && at + SECTOR <= disk.len() {
            disk.zero_at(at, SECTOR).map_err(Error::disk("write"))?;
        }
    }
    disk.write_at(sector.as_bytes(), 0).map_err(Error::disk("write"))?;
    disk.flush().map_err(Error::disk("flush"))
}

/// Cylinder, head and sector of a disk with 255 heads and 63 sectors, as everybody pretends.
fn place(lba: u64) -> [u8; 3] {
    let (cylinder, rest) = (lba / (255 * 63), lba % (255 * 63));
    if cylinder > 1023 {
        return BEYOND;
    }
    let (head, sector) = (rest / 63, rest % 63 + 1);
    [head as u8, sector as u8 | ((cylinder >> 8) as u8) << 6, cylinder as u8]
}
