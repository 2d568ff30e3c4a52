//! The metadata region: what the disk is.

use vmwright_disk::Disk;
use zerocopy::{FromBytes, IntoBytes};

use super::layout::{
    BLOCK_SIZES, Guid, HAS_PARENT, ITEM_FILE_PARAMETERS, ITEM_IS_REQUIRED, ITEM_IS_USER,
    ITEM_IS_VIRTUAL_DISK, ITEM_LOGICAL_SECTOR_SIZE, ITEM_PARENT_LOCATOR, ITEM_PHYSICAL_SECTOR_SIZE,
    ITEM_VIRTUAL_DISK_ID, ITEM_VIRTUAL_DISK_SIZE, LEAVE_BLOCKS_ALLOCATED, MAX_SIZE, MAX_TABLE_ENTRIES, MIB,
    RawItem, RawMetadataTable, SECTORS_PER_BITMAP, TABLE_LEN,
};
use super::locator::Locator;
use super::region::Place;
use crate::error::Reason;
use crate::{Error, Result};

/// What the metadata says of the disk.
#[derive(Debug, Clone)]
pub(super) struct Params {
    /// The length of a block in bytes.
    pub(super) block_size: u64,
    /// Whether blocks keep their place: the image is fixed.
    pub(super) fixed: bool,
    /// The size of the disk in bytes.
    pub(super) size: u64,
    /// Where the size stands in the file.
    pub(super) size_at: u64,
    /// The logical sector size in bytes.
    pub(super) sector: u64,
    /// The physical sector size in bytes.
    pub(super) physical_sector: u32,
    /// The identity of the disk.
    pub(super) disk_id: Guid,
    /// Where the parent is, if there is one.
    pub(super) parent: Option<Locator>,
}

impl Params {
    /// Reads the metadata; `file` has had its log replayed.
    pub(super) fn read(file: &dyn Disk, region: Place) -> Result<Self> {
        let items = Items::read(file, region)?;
        let (at, parameters) = items.fixed::<8>(file, ITEM_FILE_PARAMETERS, "the file parameters")?;
        let [b0, b1, b2, b3, f0, f1, f2, f3] = parameters;
        let block_size = u32::from_le_bytes([b0, b1, b2, b3]);
        let flags = u32::from_le_bytes([f0, f1, f2, f3]);
        if !block_size.is_power_of_two() || !BLOCK_SIZES.contains(&block_size) {
            let expected = "a power of two from 1 MiB to 256 MiB";
            return Err(Error::corrupt("the block size", at, expected, block_size.into()));
        }
        let sector = items.sector_size(file, ITEM_LOGICAL_SECTOR_SIZE, "the logical sector size")?;
        let physical = items.sector_size(file, ITEM_PHYSICAL_SECTOR_SIZE, "the physical sector size")?;
        let (_, disk_id) = items.fixed::<16>(file, ITEM_VIRTUAL_DISK_ID, "the id of the disk")?;
        let (size_at, size) = items.fixed::<8>(file, ITEM_VIRTUAL_DISK_SIZE, "the size of the disk")?;
        let size = u64::from_le_bytes(size);
        if size > MAX_SIZE || !size.is_multiple_of(sector) {
            let expected = "a multiple of the sector size of at most 64 TiB";
            return Err(Error::corrupt("the size of the disk", size_at, expected, size));
        }
        let parent = match flags & HAS_PARENT {
            0 => None,
            _ => Some(items.locator(file)?),
        };
        let fixed = flags & LEAVE_BLOCKS_ALLOCATED != 0;
        let (block_size, physical_sector) = (block_size.into(), physical as u32);
        Ok(Self { block_size, fixed, size, size_at, sector, physical_sector, disk_id, parent })
    }

    /// How many payload blocks a disk of `size` bytes has.
    pub(super) fn blocks_for(&self, size: u64) -> u64 {
        size.div_ceil(self.block_size)
    }

    /// How many payload blocks the disk has.
    pub(super) fn blocks(&self) -> u64 {
        self.blocks_for(self.size)
    }

    /// How many payload blocks one sector bitmap block covers.
    pub(super) fn chunk_ratio(&self) -> u64 {
        SECTORS_PER_BITMAP * self.sector / self.block_size
    }

    /// Which entry of the block allocation table is that of a payload block.
    pub(super) fn entry_of(&self, block: u64) -> u64 {
        block + block / self.chunk_ratio()
    }

    /// Which entry is that of the sector bitmap block that covers a payload block.
    pub(super) fn bitmap_entry_of(&self, block: u64) -> u64 {
        let ratio = self.chunk_ratio();
        block / ratio * (ratio + 1) + ratio
    }

    /// How many entries the table needs for a disk of `size` bytes.
    pub(super) fn entries_for(&self, size: u64) -> u64 {
        match (self.blocks_for(size), &self.parent) {
            (0, _) => 0,
            (blocks, None) => self.entry_of(blocks - 1) + 1,
            (blocks, Some(_)) => self.bitmap_entry_of(blocks - 1) + 1,
        }
    }

    /// How many bytes of a payload block belong to the disk.
    pub(super) fn used_in(&self, block: u64) -> u64 {
        self.size.saturating_sub(block * self.block_size).min(self.block_size)
    }
}

/// The items by their ids, those that users made left out.
struct Items {
    region: Place,
    items: Vec<(Guid, Place)>,
}

impl Items {
    fn read(file: &dyn Disk, region: Place) -> Result<Self> {
        let mut table = vec![0; TABLE_LEN];
        file.read_at(&mut table, region.offset)?;
        let count = match RawMetadataTable::read_from_prefix(&table) {
            Ok((head, _)) if head.signature == *b"metadata" => head.entry_count.get(),
            _ => {
                let found = super::layout::read_u64(&table, 0);
                return Err(Error::corrupt("the metadata table", region.offset, "its signature", found));
            }
        };
        if count > MAX_TABLE_ENTRIES {
            let what = "the number of metadata items";
            return Err(Error::corrupt(what, region.offset + 10, "at most 2047", count.into()));
        }
        let (mut items, mut places) = (Vec::new(), Vec::new());
        for index in 0..usize::from(count) {
            let at = region.offset + 32 + index as u64 * 32;
            let Ok((raw, _)) = RawItem::read_from_prefix(&table[32 + index * 32..]) else { break };
            let place = check_item(&raw, at, region)?;
            if place.len > 0 {
                places.push(place);
            }
            if raw.flags.get() & ITEM_IS_USER == 0 && is_known(&raw.item_id) {
                if items.iter().any(|(id, _)| *id == raw.item_id) {
                    return Err(Error::corrupt("a metadata item", at, "only one of its kind", index as u64));
                }
                items.push((raw.item_id, place));
            } else if raw.flags.get() & ITEM_IS_REQUIRED != 0 {
                let names = vec![format!("the metadata item {}", uuid::Uuid::from_bytes_le(raw.item_id))];
                return Err(Reason::UnknownFeatures { names }.into());
            }
        }
        places.sort_by_key(|place| place.offset);
        if let Some(pair) = places.windows(2).find(|pair| pair[0].overlaps(&pair[1])) {
            let expected = "one that no other item has";
            return Err(Error::corrupt(
                "the place of a metadata item",
                pair[1].offset,
                expected,
                pair[0].offset,
            ));
        }
        Ok(Self { region, items })
    }

    fn find(&self, id: Guid, what: &'static str) -> Result<Place> {
        let found = self.items.iter().find(|(found, _)| *found == id);
        let missing = || Error::corrupt(what, self.region.offset, "an item in the metadata table", 0);
        Ok(found.ok_or_else(missing)?.1)
    }

    /// An item of `N` bytes, with its place in the file.
    fn fixed<const N: usize>(&self, file: &dyn Disk, id: Guid, what: &'static str) -> Result<(u64, [u8; N])> {
        let place = self.find(id, what)?;
        if place.len < N as u64 {
            return Err(Error::corrupt(what, place.offset, "a longer item", place.len));
        }
        let mut bytes = [0; N];
        file.read_at(&mut bytes, place.offset)?;
        Ok((place.offset, bytes))
    }

    fn sector_size(&self, file: &dyn Disk, id: Guid, what: &'static str) -> Result<u64> {
        let (at, bytes) = self.fixed::<4>(file, id, what)?;
        match u32::from_le_bytes(bytes) {
            size @ (512 | 4096) => Ok(size.into()),
            other => Err(Error::corrupt(what, at, "512 or 4096", other.into())),
        }
    }

    fn locator(&self, file: &dyn Disk) -> Result<Locator> {
        let place = self.find(ITEM_PARENT_LOCATOR, "the parent locator")?;
        let mut bytes = vec![0; place.len as usize];
        file.read_at(&mut bytes, place.offset)?;
        Locator::parse(&bytes, place.offset)
    }
}

fn is_known(id: &Guid) -> bool {
    [
        ITEM_FILE_PARAMETERS,
        ITEM_VIRTUAL_DISK_SIZE,
        ITEM_VIRTUAL_DISK_ID,
        ITEM_LOGICAL_SECTOR_SIZE,
        ITEM_PHYSICAL_SECTOR_SIZE,
        ITEM_PARENT_LOCATOR,
    ]
    .contains(id)
}

fn check_item(raw: &RawItem, at: u64, region: Place) -> Result<Place> {
    let (offset, len) = (u64::from(raw.offset.get()), u64::from(raw.length.get()));
    if len == 0 {
        return Ok(Place { offset: region.offset, len });
    }
    if len > MIB || offset < TABLE_LEN as u64 || offset + len > region.len {
        let expected = "a place within the region, behind the table, of at most 1 MiB";
        return Err(Error::corrupt("a metadata item", at + 16, expected, offset));
    }
    Ok(Place { offset: region.offset + offset, len })
}

/// The metadata of a new image.
pub(super) struct NewMetadata {
    pub(super) block_size: u32,
    pub(super) fixed: bool,
    pub(super) size: u64,
    pub(super) disk_id: Guid,
    pub(super) logical_sector: u32,
    pub(super) physical_sector: u32,
    pub(super) parent: Option<Vec<u8>>,
}

impl NewMetadata {
    /// The first bytes of the region, as many as there are.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut flags = if self.fixed { LEAVE_BLOCKS_ALLOCATED } else { 0 };
        flags |= if self.parent.is_some() { HAS_PARENT } else { 0 };
        let parameters = [self.block_size.to_le_bytes(), flags.to_le_bytes()].concat();
        let disk = ITEM_IS_VIRTUAL_DISK | ITEM_IS_REQUIRED;
        let mut items = vec![
            (ITEM_FILE_PARAMETERS, ITEM_IS_REQUIRED, parameters),
            (ITEM_VIRTUAL_DISK_SIZE, disk, self.size.to_le_bytes().to_vec()),
            (ITEM_VIRTUAL_DISK_ID, disk, self.disk_id.to_vec()),
            (ITEM_LOGICAL_SECTOR_SIZE, disk, self.logical_sector.to_le_bytes().to_vec()),
            (ITEM_PHYSICAL_SECTOR_SIZE, disk, self.physical_sector.to_le_bytes().to_vec()),
        ];
        items.extend(self.parent.clone().map(|bytes| (ITEM_PARENT_LOCATOR, ITEM_IS_REQUIRED, bytes)));
        let mut bytes = vec![0; TABLE_LEN];
        let head = RawMetadataTable {
            signature: *b"metadata",
            reserved: 0.into(),
            entry_count: (items.len() as u16).into(),
            reserved2: [0; 20],
        };
        bytes[..32].copy_from_slice(head.as_bytes());
        for (index, (item_id, flags, content)) in items.into_iter().enumerate() {
            let raw = RawItem {
                item_id,
                offset: (bytes.len() as u32).into(),
                length: (content.len() as u32).into(),
                flags: flags.into(),
                reserved: 0.into(),
            };
            bytes[32 + index * 32..][..32].copy_from_slice(raw.as_bytes());
            bytes.extend(content);
        }
        bytes
    }
}
