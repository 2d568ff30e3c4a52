//! The region table: where the block allocation table and the metadata are.

use vmwright_disk::Disk;
use zerocopy::{FromBytes, IntoBytes};

use super::header::Header;
use super::layout::{
    Guid, MAX_TABLE_ENTRIES, MIB, REGION_BAT, REGION_METADATA, REGION_TABLES, RawRegion, RawRegionTable,
    TABLE_LEN, checksum,
};
use crate::error::Reason;
use crate::{Error, Result};

/// A place in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) offset: u64,
    pub(super) len: u64,
}

impl Place {
    pub(super) fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }

    pub(super) fn overlaps(&self, other: &Self) -> bool {
        self.offset < other.end() && other.offset < self.end()
    }
}

/// All regions, with what else is not for blocks.
#[derive(Debug, Clone)]
pub(super) struct Regions {
    pub(super) bat: Place,
    pub(super) metadata: Place,
    /// The header section, the log and every region, in the order of the file.
    pub(super) taken: Vec<Place>,
    /// Which copies of the table are sound.
    pub(super) sound: [bool; 2],
    /// The bytes of the table.
    table: Vec<u8>,
    bat_entry: usize,
}

impl Regions {
    /// Reads the table; `file` has had its log replayed.
    pub(super) fn read(file: &dyn Disk, header: &Header) -> Result<Self> {
        let tables = [read_table(file, 0)?, read_table(file, 1)?];
        let sound = [tables[0].is_some(), tables[1].is_some()];
        let [first, second] = tables;
        let (table, at) = match (first, second) {
            (Some(table), _) => (table, REGION_TABLES[0]),
            (None, Some(table)) => (table, REGION_TABLES[1]),
            (None, None) => {
                let at = REGION_TABLES[0];
                return Err(Error::corrupt("the region table", at, "one of two with a right checksum", 0));
            }
        };
        let mut regions = Self::parse(table, at, header)?;
        regions.sound = sound;
        for place in [regions.bat, regions.metadata] {
            if place.end() > file.len() {
                return Err(Error::corrupt("a region", place.offset, "a place within the file", place.len));
            }
        }
        Ok(regions)
    }

    fn parse(table: Vec<u8>, at: u64, header: &Header) -> Result<Self> {
        let count = RawRegionTable::read_from_prefix(&table).map_or(0, |(head, _)| head.entry_count.get());
        if count > MAX_TABLE_ENTRIES.into() {
            let what = "the number of regions";
            return Err(Error::corrupt(what, at + 8, "at most 2047", count.into()));
        }
        let (mut bat, mut metadata) = (None, None);
        let (log_offset, log_len) = header.log();
        let mut taken = vec![Place { offset: 0, len: MIB }, Place { offset: log_offset, len: log_len }];
        taken.retain(|place| place.len > 0);
        for index in 0..count as usize {
            let (entry, at) = (16 + index * 32, at + 16 + index as u64 * 32);
            let Ok((raw, _)) = RawRegion::read_from_prefix(&table[entry..]) else { break };
            let place = check_place(&raw, at)?;
            let known = match raw.guid {
                REGION_BAT => bat.replace((place, entry)).is_none(),
                REGION_METADATA => metadata.replace(place).is_none(),
                guid if raw.required.get() & 1 != 0 => {
                    let names = vec![format!("the region {}", uuid::Uuid::from_bytes_le(guid))];
                    return Err(Reason::UnknownFeatures { names }.into());
                }
                _ => true,
            };
            if !known {
                return Err(Error::corrupt("a region", at, "only one of its kind", place.offset));
            }
            taken.push(place);
        }
        taken.sort_by_key(|place| place.offset);
        if let Some(pair) = taken.windows(2).find(|pair| pair[0].overlaps(&pair[1])) {
            let what = "the place of a region or of the log";
            return Err(Error::corrupt(what, pair[1].offset, "one that nothing else has", pair[0].offset));
        }
        let missing = |what| Error::corrupt(what, at, "an entry in the region table", count.into());
        let (bat, bat_entry) = bat.ok_or_else(|| missing("the region of the block allocation table"))?;
        let metadata = metadata.ok_or_else(|| missing("the region of the metadata"))?;
        Ok(Self { bat, metadata, taken, sound: [true; 2], table, bat_entry })
    }

    /// Whether a place is free of the header section, the log and all regions.
    pub(super) fn leaves(&self, place: &Place) -> bool {
        let next = self.taken.partition_point(|taken| taken.end() <= place.offset);
        self.taken.get(next).is_none_or(|taken| !taken.overlaps(place))
    }

    /// Whether what the table says of the block allocation table stands in its first bytes.
    pub(super) fn names_bat_within(&self, len: usize) -> bool {
        self.bat_entry + 32 <= len
    }

    /// Where the last region ends.
    pub(super) fn end(&self) -> u64 {
        self.taken.last().map_or(MIB, Place::end)
    }

    /// The same with the block allocation table elsewhere.
    pub(super) fn with_bat(&self, bat: Place) -> Self {
        let mut new = self.clone();
        new.bat = bat;
        new.taken.retain(|place| *place != self.bat);
        new.taken.push(bat);
        new.taken.sort_by_key(|place| place.offset);
        let entry = RawRegion {
            guid: REGION_BAT,
            file_offset: bat.offset.into(),
            length: (bat.len as u32).into(),
            required: 1.into(),
        };
        new.table[self.bat_entry..self.bat_entry + 32].copy_from_slice(entry.as_bytes());
        seal(&mut new.table);
        new
    }

    /// The bytes of the table.
    pub(super) fn table(&self) -> &[u8] {
        &self.table
    }
}

fn seal(table: &mut [u8]) {
    let sum = checksum(table);
    table[4..8].copy_from_slice(&sum.to_le_bytes());
}

fn read_table(file: &dyn Disk, copy: usize) -> Result<Option<Vec<u8>>> {
    let mut table = vec![0; TABLE_LEN];
    if file.len() < REGION_TABLES[copy] + TABLE_LEN as u64 {
        return Ok(None);
    }
    file.read_at(&mut table, REGION_TABLES[copy])?;
    let sum = u32::from_le_bytes([table[4], table[5], table[6], table[7]]);
    Ok((table.starts_with(b"regi") && sum == checksum(&table)).then_some(table))
}

fn check_place(raw: &RawRegion, at: u64) -> Result<Place> {
    let (offset, len) = (raw.file_offset.get(), u64::from(raw.length.get()));
    if !offset.is_multiple_of(MIB) || offset < MIB || offset > i64::MAX as u64 {
        return Err(Error::corrupt("the offset of a region", at + 16, "a multiple of 1 MiB", offset));
    }
    if !len.is_multiple_of(MIB) || len == 0 {
        return Err(Error::corrupt("the length of a region", at + 24, "a multiple of 1 MiB", len));
    }
    Ok(Place { offset, len })
}

/// The bytes of a table with these regions.
pub(super) fn encode(regions: &[(Guid, Place)]) -> Vec<u8> {
    let mut table = vec![0; TABLE_LEN];
    let head = RawRegionTable {
        signature: *b"regi",
        checksum: 0.into(),
        entry_count: (regions.len() as u32).into(),
        reserved: 0.into(),
    };
    table[..16].copy_from_slice(head.as_bytes());
    for ((guid, place), entry) in regions.iter().zip(table[16..].chunks_exact_mut(32)) {
        let raw = RawRegion {
            guid: *guid,
            file_offset: place.offset.into(),
            length: (place.len as u32).into(),
            required: 1.into(),
        };
        entry.copy_from_slice(raw.as_bytes());
    }
    seal(&mut table);
    table
}
