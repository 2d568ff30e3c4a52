//! What of a disk its filesystems do not need.

use std::ops::Range;
use std::sync::Arc;

use serde::Serialize;
use vmwright_disk::{Disk, FreeMap};
use vmwright_vfs::FileSystem;

use crate::detect::detect;
use crate::volume::{OpenVolume, volumes_of};
use crate::{Result, Volume};

/// Where a disk is free: the free space of each filesystem on it whose free space is known for certain.
///
/// Everything else counts as needed: gaps between partitions, swap, what is encrypted or unknown.
pub struct FreeSpace {
    maps: Vec<(u64, Box<dyn FileSystem>)>,
    /// The volumes whose free space it knows.
    pub known: Vec<Volume>,
    /// The volumes whose free space it does not know, with the reason.
    pub unknown: Vec<Unknown>,
}

/// A volume whose free space is not known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Unknown {
    /// The volume.
    pub volume: Volume,
    /// Why.
    pub reason: String,
}

impl FreeSpace {
    /// Finds the filesystems of a disk. Nothing is written; a journal with pending changes is followed in memory.
    ///
    /// The disk must not change while this is used: what is free now may hold a file later.
    pub fn of(disk: &Arc<dyn Disk>) -> Result<Self> {
        let (table, volumes) = volumes_of(0, disk)?;
        let mut space = Self { maps: Vec::new(), known: Vec::new(), unknown: Vec::new() };
        let places: Vec<Range<u64>> = volumes
            .iter()
            .map(|open| {
                let mut partitions = table.iter().flat_map(|table| table.partitions());
                let own = partitions.find(|partition| Some(partition.number) == open.volume.partition);
                own.map_or(0..disk.len(), |own| own.start..own.end())
            })
            .collect();
        for (index, open) in volumes.into_iter().enumerate() {
            let place = &places[index];
            let overlaps = |(other, range): (usize, &Range<u64>)| {
                other != index && range.start < place.end && place.start < range.end
            };
            let shared = places.iter().enumerate().any(overlaps);
            match filesystem(&open, shared) {
                Ok(filesystem) => {
                    space.maps.push((place.start, filesystem));
                    space.known.push(open.volume);
                }
                Err(reason) => space.unknown.push(Unknown { volume: open.volume, reason }),
            }
        }
        Ok(space)
    }
}

/// How much metadata is kept in memory, in bytes.
const CACHE: usize = 8 << 20;

/// Why a volume did not open, without its name, which is told beside it.
fn reason(error: &crate::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// The filesystem on a volume, or why its free space is not known.
fn filesystem(open: &OpenVolume, shared: bool) -> std::result::Result<Box<dyn FileSystem>, String> {
    if shared {
        return Err("its partition overlaps another".to_owned());
    }
    let unknown = || "its free space is not known here".to_owned();
    if !open.volume.holds_ext() {
        return Err(unknown());
    }
    // What is left of an old filesystem must not give away what lies over it.
    match detect(&*open.disk) {
        Ok(None) => {}
        Ok(Some(other)) => return Err(format!("it has the marks of {} too", other.kind)),
        Err(error) => return Err(error.to_string()),
    }
    let filesystem = open.filesystem(false, CACHE).map_err(|error| reason(&error))?;
    // All of it is looked at once, so that what cannot be trusted is known before anything is done.
    let map = filesystem.free_map().ok_or_else(unknown)?;
    map.free_ranges(&mut |_| Ok(())).map_err(|error| error.to_string())?;
    Ok(filesystem)
}

impl FreeMap for FreeSpace {
    fn free_ranges(
        &self,
        each: &mut dyn FnMut(Range<u64>) -> vmwright_disk::Result<()>,
    ) -> vmwright_disk::Result<()> {
        let mut maps: Vec<_> = self.maps.iter().collect();
        maps.sort_unstable_by_key(|(start, _)| *start);
        for (start, filesystem) in maps {
            let Some(map) = filesystem.free_map() else { continue };
            map.free_ranges(&mut |range| each(start + range.start..start + range.end))?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for FreeSpace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FreeSpace")
            .field("known", &self.known)
            .field("unknown", &self.unknown)
            .finish_non_exhaustive()
    }
}
