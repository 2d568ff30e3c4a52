//! Whether the tables make sense, and repairing what has a sound copy.

use vmwright_disk::Disk;

use super::Vhdx;
use super::header::Header;
use super::layout::{MIB, REGION_TABLES, state as bat};
use super::map::host_of;
use super::region::{Place, Regions};
use super::state::State;
use crate::info::{CheckReport, Repair};
use crate::{Error, OpenOptions, Result};

/// The most bytes of a file whose places are counted.
const MAX_FILE: u64 = 1 << 48;
/// The most findings that are put into words.
const MAX_FINDINGS: usize = 100;

impl Vhdx {
    /// Checks the headers, the region tables, the log and every entry of the table, as they stand in the file.
    pub(super) fn check_tables(&self, repair: Repair) -> Result<CheckReport> {
        let mut report = CheckReport::default();
        if repair == Repair::All {
            self.repair(&mut report)?;
        }
        // What is cached may have changed, so nothing is read through it.
        let how = OpenOptions { read_only: true, lenient: self.lenient, ..OpenOptions::default() };
        let fresh = Self::open(self.file.clone(), how)?;
        let state = fresh.read_state();
        if !state.header.both {
            note(&mut report, "one of the two headers is damaged".into());
        }
        if state.regions.sound != [true; 2] {
            note(&mut report, "one of the two region tables is damaged".into());
        }
        if fresh.view.pending().is_some() {
            note(&mut report, "the log is not replayed".into());
        }
        fresh.check_blocks(&state, &mut report)?;
        Ok(report)
    }

    /// Replays the log, and writes the damaged one of two copies anew.
    fn repair(&self, report: &mut CheckReport) -> Result<()> {
        self.check_writable()?;
        let mut state = self.write_state();
        if state.writer.ready {
            self.write_tables(&mut state)?;
        }
        if state.header.log_guid().is_some() {
            self.settle_log(&mut state)?;
            report.corruptions_fixed += 1;
        }
        if !Header::read(self.view.file())?.both {
            state.header.write(self.view.file(), |_| {})?;
            self.barrier(&mut state.writer)?;
            report.corruptions_fixed += 1;
        }
        let sound = Regions::read(&self.view, &state.header)?.sound;
        for (at, _) in REGION_TABLES.into_iter().zip(sound).filter(|(_, sound)| !sound) {
            self.view.write_at(state.regions.table(), at)?;
            self.barrier(&mut state.writer)?;
            report.corruptions_fixed += 1;
        }
        Ok(())
    }

    fn check_blocks(&self, state: &State, report: &mut CheckReport) -> Result<()> {
        let len = self.view.len();
        if len > MAX_FILE {
            return Err(Error::unsupported("checking a file of more than 256 TiB"));
        }
        let mut places =
            Places { used: vec![0; (len / MIB / 64 + 1) as usize], len, end: state.regions.end() };
        let params = &state.params;
        let ratio = params.chunk_ratio();
        let (mut allocated, mut fragmented, mut last) = (0, 0, None);
        for block in 0..params.blocks() {
            if params.parent.is_some() && block % ratio == 0 {
                let index = params.bitmap_entry_of(block);
                let entry = self.raw_entry(state, index)?;
                match entry & bat::MASK {
                    bat::NOT_PRESENT => {}
                    bat::FULLY_PRESENT => {
                        places.take(state, Place { offset: host_of(entry), len: MIB }, MIB, index, report);
                    }
                    other => {
                        damage(report, index, &format!("state {other} is none of a sector bitmap block"))
                    }
                }
            }
            let index = params.entry_of(block);
            let entry = self.raw_entry(state, index)?;
            match entry & bat::MASK {
                bat::FULLY_PRESENT => {}
                bat::PARTIALLY_PRESENT if params.parent.is_some() => {
                    let bitmap = self.raw_entry(state, params.bitmap_entry_of(block))?;
                    if bitmap & bat::MASK != bat::FULLY_PRESENT {
                        damage(report, index, "the block is partially present without a sector bitmap block");
                    }
                }
                4 | bat::PARTIALLY_PRESENT => {
                    damage(report, index, "the state is none that this image can have");
                    continue;
                }
                _ => continue,
            }
            allocated += 1;
            fragmented += u64::from(last.is_some_and(|last| last != host_of(entry)));
            last = host_of(entry).checked_add(params.block_size);
            let place = Place { offset: host_of(entry), len: params.block_size };
            places.take(state, place, params.used_in(block), index, report);
        }
        report.total_clusters = Some(params.blocks());
        report.allocated_clusters = Some(allocated);
        report.fragmented_clusters = Some(fragmented);
        report.image_end_offset = Some(places.end.min(len));
        Ok(())
    }
}

/// Which MiB of the file blocks are in.
struct Places {
    used: Vec<u64>,
    len: u64,
    end: u64,
}

impl Places {
    fn take(&mut self, state: &State, place: Place, used: u64, index: u64, report: &mut CheckReport) {
        if !state.regions.leaves(&place) {
            return damage(report, index, "the block is where a header, the log or a region is");
        }
        if place.offset.checked_add(used).is_none_or(|end| end > self.len) {
            return damage(report, index, "the block ends past the end of the file");
        }
        self.end = self.end.max(place.end());
        let mut shared = false;
        for unit in place.offset / MIB..place.end().min(self.len).div_ceil(MIB) {
            let Some(word) = self.used.get_mut((unit / 64) as usize) else { continue };
            shared |= *word >> (unit % 64) & 1 == 1;
            *word |= 1 << (unit % 64);
        }
        if shared {
            damage(report, index, "the block is where another is");
        }
    }
}

fn damage(report: &mut CheckReport, index: u64, what: &str) {
    report.corruptions += 1;
    note(report, format!("entry {index} of the block allocation table: {what}"));
}

fn note(report: &mut CheckReport, text: String) {
    if report.findings.len() < MAX_FINDINGS {
        report.findings.push(text);
    }
}
