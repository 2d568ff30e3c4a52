//! Looking over a whole table: blocks past the end, on one another, on tables, and gaps between them.

use vmwright_disk::Disk;

use super::{Map, Shape};
use crate::Error;

/// What a look over the table found.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    /// How many blocks are stored.
    pub(crate) allocated: u64,
    /// How many of them do not follow the one before.
    pub(crate) fragmented: u64,
    /// How many are damaged.
    pub(crate) damages: u64,
    /// The first damage.
    pub(crate) damage: Option<Error>,
    /// What is damaged, a line each.
    pub(crate) findings: Vec<String>,
    /// Numbers between those in use that no block has, where numbers count strides.
    pub(crate) gaps: Vec<u32>,
}

const MAX_FINDINGS: usize = 100;
/// So far past the number of blocks a number may be.
const SLACK: usize = 65536;

impl Scan {
    fn found(&mut self, at: u64, expected: &'static str, actual: u64) {
        let error = Error::corrupt("an entry of the block table", at, expected, actual);
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(error.to_string());
        }
        self.damage.get_or_insert(error);
        self.damages += 1;
    }
}

/// Looks over a table.
pub(crate) fn scan(file: &dyn Disk, shape: &Shape, map: &Map) -> Scan {
    let mut found = Scan::default();
    // With where each is: blocks at one place are named by their entries.
    let mut places: Vec<(u32, u32)> = Vec::new();
    let mut last = None;
    for (block, &raw) in map.table.iter().enumerate().filter(|(_, raw)| shape.is_place(**raw)) {
        let start = map.place(shape.unit, raw);
        let end = start.saturating_add(shape.stride());
        let entry_at = map.table_at + block as u64 * 4;
        if shape.unit == shape.block_size && raw as usize >= map.table.len().saturating_add(SLACK) {
            // Others refuse numbers past the last block, which are there only while a table is made longer; and gaps
            // are not much more than blocks.
            found.found(entry_at, "the number of a block", raw.into());
        } else if map.reserved.iter().any(|other| start < other.end && other.start < end) {
            found.found(entry_at, "a block that does not lie on tables", raw.into());
        } else if end > file.len() {
            found.found(entry_at, "a block within the file", raw.into());
        } else {
            places.push((raw, block as u32));
        }
        found.allocated += 1;
        found.fragmented += u64::from(last.is_some_and(|end| end != start));
        last = Some(end);
    }
    places.sort_unstable();
    let mut next = 0;
    for (index, &(raw, block)) in places.iter().enumerate() {
        if let Some(&(before, _)) = index.checked_sub(1).and_then(|index| places.get(index))
            && u64::from(raw - before) * shape.unit < shape.stride()
        {
            let entry_at = map.table_at + u64::from(block) * 4;
            found.found(entry_at, "a place of its own", raw.into());
        }
        if shape.unit == shape.block_size {
            found.gaps.extend(next..raw);
            next = raw.saturating_add(1);
        }
    }
    found
}
