use serde::Serialize;
use vmwright_disk::{Disk, Extent, ExtentKind};

use crate::Result;

/// A range of a disk, as `qemu-img map --output=json` describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MapEntry {
    /// Where it begins, in bytes.
    pub start: u64,
    /// Its length in bytes.
    pub length: u64,
    /// How many backing files down it was found.
    pub depth: u32,
    /// Whether any image of the chain records it.
    pub present: bool,
    /// Whether it is known to read as zeros.
    pub zero: bool,
    /// Whether it is stored.
    pub data: bool,
    /// Whether it is compressed.
    pub compressed: bool,
    /// Where it is in its host file, if its bytes are there plainly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
}

/// The whole map of a disk, neighbours merged.
pub fn map(disk: &dyn Disk) -> Result<Vec<MapEntry>> {
    let mut merged: Vec<Extent> = Vec::new();
    let mut at = 0;
    while at < disk.len() {
        let extent = disk.extent_at(at)?;
        at = extent.end();
        if !merged.last_mut().is_some_and(|last| last.merge(&extent)) {
            merged.push(extent);
        }
    }
    Ok(merged.iter().map(entry).collect())
}

fn entry(extent: &Extent) -> MapEntry {
    let Extent { start, len, kind, depth } = *extent;
    MapEntry {
        start,
        length: len,
        depth,
        present: kind != ExtentKind::Unallocated,
        zero: extent.is_zero(),
        data: !extent.is_zero(),
        compressed: kind == ExtentKind::Compressed,
        offset: match kind {
            ExtentKind::Data { offset, .. } => Some(offset),
            _ => None,
        },
    }
}
