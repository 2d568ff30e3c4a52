//! Checking the tables, and repairing one copy of them from the other.

use super::layout::{SECTOR, parse_marker};
use super::sparse::{Entry, Layout, Sparse, State, TableAt};
use super::{Store, Vmdk, open, packed};
use crate::info::{CheckReport, Repair};
use crate::{Error, Result};

const MAX_FINDINGS: usize = 100;

impl Vmdk {
    pub(super) fn check_tables(&self, repair: Repair) -> Result<CheckReport> {
        if repair != Repair::Nothing {
            self.check_writable()?;
        }
        let mut report = CheckReport::default();
        for extent in &self.extents {
            match &extent.store {
                Store::NotOpened => return Err(open::not_opened(extent)),
                Store::Sparse(sparse) => {
                    let mut state = sparse.write_state();
                    sparse.check(&mut state, repair, &mut report)?;
                }
                _ => {}
            }
        }
        Ok(report)
    }
}

/// Which parts of a file grains use.
struct Users {
    grain: u64,
    /// A bit for each grain at a multiple of its length.
    whole: Vec<u64>,
    /// The first sector and the number of sectors of all others.
    others: Vec<(u64, u64)>,
    /// No more others than this fit into the file.
    limit: usize,
}

impl Users {
    fn new(sparse: &Sparse) -> Self {
        let (grain, file) = (sparse.grain, sparse.file.len());
        let whole = if sparse.packed.is_some() { 0 } else { (file / grain / 64 + 1) as usize };
        Self { grain, whole: vec![0; whole], others: Vec::new(), limit: (file / SECTOR + 1) as usize }
    }

    /// Notes a grain; answers whether that is the first to use its place, as far as known until [`Users::overlaps`].
    fn add(&mut self, host: u64, len: u64) -> bool {
        let bit = host / self.grain;
        if len == self.grain
            && host.is_multiple_of(self.grain)
            && let Some(word) = self.whole.get_mut((bit / 64) as usize)
        {
            let mask = 1 << (bit % 64);
            return std::mem::replace(word, *word | mask) & mask == 0;
        }
        if self.others.len() >= self.limit {
            return false;
        }
        self.others.push((host / SECTOR, len.div_ceil(SECTOR)));
        true
    }

    /// How many grains lie over others.
    fn overlaps(&mut self) -> u64 {
        self.others.sort_unstable();
        let among = self.others.windows(2).filter(|pair| pair[0].0 + pair[0].1 > pair[1].0).count();
        let with_whole = self.others.iter().filter(|(start, len)| self.touches(*start, *len)).count();
        (among + with_whole) as u64
    }

    fn touches(&self, start: u64, len: u64) -> bool {
        let unit = self.grain / SECTOR;
        let mut bits = start / unit..=(start + len - 1) / unit;
        bits.any(|bit| self.whole.get((bit / 64) as usize).is_some_and(|word| word >> (bit % 64) & 1 != 0))
    }

    /// Whether a grain at `host` is used.
    fn has(&self, host: u64) -> bool {
        let (start, len) = (host / SECTOR, self.grain / SECTOR);
        self.touches(start, len)
            || self.others.iter().any(|(at, count)| *at < start + len && start < at + count)
    }
}

/// What a table looks like.
struct Seen {
    /// How many of its entries are wrong.
    wrong: u64,
}

impl Sparse {
    /// Whether no two entries share a grain, and none has one of these.
    pub(super) fn has_single_users(&self, state: &State, freed: &[u64]) -> Result<bool> {
        let mut report = CheckReport::default();
        let mut users = Users::new(self);
        self.scan(state, &mut users, &mut report)?;
        let mut distinct = freed.to_vec();
        distinct.sort_unstable();
        let overlapping = distinct.windows(2).any(|pair| pair[0] + self.grain > pair[1]);
        Ok(report.corruptions == 0 && !overlapping && !freed.iter().any(|host| users.has(*host)))
    }

    fn check(&self, state: &mut State, repair: Repair, report: &mut CheckReport) -> Result<()> {
        if let Some((at, rgd)) = &state.rgd
            && rgd.len() != state.gd.len()
        {
            report.damage(format!("the redundant grain directory at {at:#x} does not lie within the file"));
        }
        if repair != Repair::Nothing && !state.writer.ready {
            self.repair(state, repair, report)?;
        }
        let mut users = Users::new(self);
        self.scan(state, &mut users, report)?;
        self.compare_copies(state, report)
    }

    /// Looks at every table once, in the order of the file.
    fn scan(&self, state: &State, users: &mut Users, report: &mut CheckReport) -> Result<()> {
        let mut tables: Vec<(u64, usize)> = Vec::new();
        for index in 0..state.gd.len() {
            match self.table_at(state, index) {
                Ok(TableAt::At(at)) => tables.push((at, index)),
                Ok(_) => {}
                Err(error) if error.kind() == vmwright_disk::ErrorKind::Corrupt => {
                    report.damage(error.to_string())
                }
                Err(error) => return Err(error),
            }
        }
        tables.sort_unstable();
        let mut end = 0;
        let mut ranges = vec![(state.gd_at, state.gd_at + state.gd.len() as u64 * self.entry_len())];
        for (at, index) in tables {
            if at < end {
                // Once is enough: one table named by many entries must not be read as often.
                report.damage(format!("the grain table {index} at {at:#x} lies over another"));
                continue;
            }
            end = at + self.table_len();
            match ranges.last_mut() {
                Some(last) if last.1 == at => last.1 = end,
                _ => ranges.push((at, end)),
            }
            let bytes = self.read_table(at)?;
            self.scan_table(state, index, at, &bytes, users, report)?;
        }
        report.corrupt_by(users.overlaps(), "a grain lies over another");
        ranges.sort_unstable();
        let over_table = ranges.iter().filter(|(start, end)| {
            (start / self.grain..end.div_ceil(self.grain)).any(|unit| {
                let word = users.whole.get((unit / 64) as usize);
                word.is_some_and(|word| word >> (unit % 64) & 1 != 0)
            })
        });
        report.corrupt_by(over_table.count() as u64, "a grain lies over a table");
        report.total_clusters = Some(report.total_clusters.unwrap_or(0) + state.len.div_ceil(self.grain));
        Ok(())
    }

    fn read_table(&self, at: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.table_len() as usize];
        self.file.read_at(&mut bytes, at)?;
        Ok(bytes)
    }

    /// The entries of a table that are about grains of the disk.
    fn used_entries(&self, state: &State, index: usize) -> usize {
        let start = index as u64 * self.coverage();
        state.len.saturating_sub(start).div_ceil(self.grain).min(self.entries) as usize
    }

    fn scan_table(
        &self,
        state: &State,
        index: usize,
        at: u64,
        bytes: &[u8],
        users: &mut Users,
        report: &mut CheckReport,
    ) -> Result<()> {
        let mut before = None;
        for number in 0..self.used_entries(state, index) {
            let host = match self.parse_entry(bytes, number, at) {
                Ok(Entry::At(host)) => host,
                Ok(_) => continue,
                Err(error) => {
                    report.damage(error.to_string());
                    continue;
                }
            };
            let offset = index as u64 * self.coverage() + number as u64 * self.grain;
            let len = match self.packed {
                Some(true) => match self.check_marker(host, offset)? {
                    Ok(len) => len,
                    Err(finding) => {
                        report.damage(finding);
                        continue;
                    }
                },
                Some(false) => SECTOR,
                None => self.grain,
            };
            if !users.add(host, len) {
                report.damage(format!("the grain at {host:#x}, of offset {offset:#x}, is used twice"));
            }
            let count = |count: &mut Option<u64>, more: u64| *count = Some(count.unwrap_or(0) + more);
            count(&mut report.allocated_clusters, 1);
            count(&mut report.compressed_clusters, u64::from(self.packed.is_some()));
            count(&mut report.fragmented_clusters, u64::from(before.is_some_and(|before| before != host)));
            before = Some(host + len.next_multiple_of(SECTOR));
            let end = (host + len).min(self.file.len());
            report.image_end_offset = Some(report.image_end_offset.unwrap_or(0).max(end));
        }
        Ok(())
    }

    /// The length of a compressed grain with its marker, or what is wrong with that.
    fn check_marker(&self, host: u64, offset: u64) -> Result<Result<u64, String>> {
        let len = match packed::packed_len(&*self.file, host, self.grain) {
            Ok(len) => len,
            Err(error) if error.kind() == vmwright_disk::ErrorKind::Corrupt => {
                return Ok(Err(error.to_string()));
            }
            Err(error) => return Err(error),
        };
        let mut head = [0; 16];
        self.file.read_at(&mut head[..12], host)?;
        let sector = parse_marker(&head).map_or(0, |(sector, ..)| sector);
        Ok(match sector == offset / SECTOR {
            true => Ok(len),
            false => Err(format!(
                "the grain at {host:#x} is marked as that of sector {sector}, not {}",
                offset / SECTOR
            )),
        })
    }

    /// Compares the redundant tables with the others.
    fn compare_copies(&self, state: &State, report: &mut CheckReport) -> Result<()> {
        let Some((rgd_at, rgd)) = &state.rgd else { return Ok(()) };
        for (index, copy) in rgd.iter().enumerate() {
            let Ok(table) = self.table_at(state, index) else { continue };
            let copy_at = u64::from(*copy) * SECTOR;
            match table {
                TableAt::At(at) if *copy > 1 && copy_at + self.table_len() <= self.file.len() => {
                    let is_same = self.read_table(at)? == self.read_table(copy_at)?;
                    if !is_same {
                        // What was written last before a crash may be in one copy alone; nothing depends on it.
                        report.leak(format!(
                            "the redundant grain table {index} differs from the one at {at:#x}"
                        ));
                    }
                }
                TableAt::At(_) => {
                    let at = rgd_at + index as u64 * 4;
                    report.damage(format!("the redundant grain directory at {at:#x} has no grain table"));
                }
                _ if *copy > 1 => {
                    report.leak(format!("the grain table {index} is in the redundant directory alone"))
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn inspect(&self, state: &State, index: usize, at: u64) -> Result<Seen> {
        let bytes = self.read_table(at)?;
        let entries = 0..self.used_entries(state, index);
        let wrong = entries.filter(|number| self.parse_entry(&bytes, *number, at).is_err()).count() as u64;
        Ok(Seen { wrong })
    }

    /// Makes both copies of each table the same where one of them is sound.
    fn repair(&self, state: &mut State, repair: Repair, report: &mut CheckReport) -> Result<()> {
        if !matches!(self.layout, Layout::Hosted)
            || state.rgd.as_ref().is_none_or(|(_, rgd)| rgd.len() != state.gd.len())
        {
            return Ok(());
        }
        for index in 0..state.gd.len() {
            self.repair_table(state, index, repair, report)?;
        }
        self.barrier(state)
    }

    fn repair_table(
        &self,
        state: &mut State,
        index: usize,
        repair: Repair,
        report: &mut CheckReport,
    ) -> Result<()> {
        let Some((rgd_at, rgd)) = &state.rgd else { return Ok(()) };
        let rgd_at = *rgd_at;
        let copy = Some(u64::from(rgd[index]) * SECTOR);
        let copy = copy.filter(|at| *at > SECTOR && at + self.table_len() <= self.file.len());
        let table = match self.table_at(state, index) {
            Ok(TableAt::At(at)) => Some(at),
            Ok(_) => return Ok(()),
            Err(_) => None,
        };
        let wrong = |at: Option<u64>| match at {
            Some(at) => self.inspect(state, index, at).map(|seen| Some(seen.wrong)),
            None => Ok(None),
        };
        let (table_wrong, copy_wrong) = (wrong(table)?, wrong(copy)?);
        match (table, copy) {
            (Some(at), Some(copy)) => {
                if self.read_table(at)? == self.read_table(copy)? {
                    return Ok(());
                }
                if table_wrong == Some(0) {
                    self.file.write_at(&self.read_table(at)?, copy)?;
                    report.leaks_fixed += 1;
                } else if repair == Repair::All && copy_wrong < table_wrong {
                    self.file.write_at(&self.read_table(copy)?, at)?;
                    report.corruptions_fixed += 1;
                }
            }
            (Some(at), None) if repair == Repair::All => {
                let sector = self.new_copy(state, at)?;
                self.file.write_at(&sector.to_le_bytes(), rgd_at + index as u64 * 4)?;
                if let Some((_, rgd)) = &mut state.rgd {
                    rgd[index] = sector;
                }
                report.corruptions_fixed += 1;
            }
            (None, Some(copy)) if repair == Repair::All => {
                let sector = self.new_copy(state, copy)?;
                self.file.write_at(&sector.to_le_bytes(), state.gd_at + index as u64 * 4)?;
                state.gd[index] = sector;
                report.corruptions_fixed += 1;
            }
            _ => {}
        }
        // What the cache has may be what was wrong.
        table.into_iter().for_each(|at| self.cache.forget(at, self.table_len()));
        Ok(())
    }

    /// Copies a table behind all else, durably; answers its sector.
    fn new_copy(&self, state: &mut State, from: u64) -> Result<u32> {
        let at = self.file.len().next_multiple_of(SECTOR);
        let sector = u32::try_from(at / SECTOR).map_err(|_| Error::from(crate::error::Reason::Full))?;
        self.file.set_len(at + self.table_len().next_multiple_of(SECTOR))?;
        self.file.write_at(&self.read_table(from)?, at)?;
        self.barrier(state)?;
        Ok(sector)
    }
}

impl CheckReport {
    fn damage(&mut self, finding: String) {
        self.corruptions += 1;
        self.find(finding);
    }

    fn leak(&mut self, finding: String) {
        self.leaks += 1;
        self.find(finding);
    }

    fn corrupt_by(&mut self, count: u64, finding: &str) {
        self.corruptions += count;
        if count > 0 {
            self.find(format!("{finding}, {count} times"));
        }
    }

    fn find(&mut self, finding: String) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(finding);
        }
    }
}
