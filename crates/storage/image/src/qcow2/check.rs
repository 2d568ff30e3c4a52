//! Comparing what is recorded with what is used, and repairing it.
//!
//! ```text
//! walk all tables ─ compare counts ─ [repair counts] ─ compare flags ─ [repair flags] ─ [clear the bits]
//! ```

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use vmwright_disk::Disk;

use super::inspect::Inspection;
use super::layout::{
    COMPRESSED, COPIED, Header, INCOMPATIBLE_DATA_FILE, INCOMPATIBLE_EXTENDED_L2, MAX_REFTABLE_BYTES,
    OFFSET_MASK, ZERO,
};
use super::map::read_u64;
use super::open::read_header;
use super::state::{State, Writer, read_table};
use super::{Qcow2, repair};
use crate::error::Reason;
use crate::{CheckReport, OpenOptions, Repair, Result};

/// Checks an image, which may be too damaged to open, and repairs what it may.
pub(crate) fn check(file: &Arc<dyn Disk>, repair: Repair) -> Result<CheckReport> {
    let first = inspect(file)?;
    if repair == Repair::Nothing {
        return Ok(first.report);
    }
    if file.is_read_only() {
        return Err(Reason::ReadOnly { what: "the image" }.into());
    }
    let before = first.report.clone();
    repair::repair(file, first, repair)?;
    let mut after = inspect(file)?;
    let sizeless = after.sizeless_snapshots;
    if repair == Repair::All && sizeless > 0 && after.report.corruptions == sizeless && !after.incomplete {
        // Everything else is sound, so that the image can be changed as any other.
        repair::clear_bits(file, &after.header)?;
        Qcow2::open(file.clone(), OpenOptions::default())?.complete_snapshots()?;
        after = inspect(file)?;
    }
    if after.report.corruptions == 0 && after.report.check_errors == 0 {
        repair::clear_bits(file, &after.header)?;
    }
    after.report.corruptions_fixed = before.corruptions.saturating_sub(after.report.corruptions);
    after.report.leaks_fixed = before.leaks.saturating_sub(after.report.leaks);
    Ok(after.report)
}

/// Walks all tables and compares counts and flags.
fn inspect(file: &Arc<dyn Disk>) -> Result<Inspection> {
    let header = read_header(&**file)?;
    header.check_known()?;
    let mut inspection = Inspection::of(file, header)?;
    let (mut wrong, mut text) = (0, String::new());
    each_wrong_flag(&inspection, Inspection::recorded, |at, entry, _| {
        if wrong == 0 {
            text = format!("the entry {entry:#x} at {at:#x} is wrong about being exclusive");
        }
        wrong += 1;
        Ok(())
    })?;
    if wrong > 0 {
        inspection.damage(wrong, || format!("{text}, the first of {wrong}"));
    }
    Ok(inspection)
}

/// Calls `each` with the place of every active entry whose flag contradicts a count, the entry, and what it should be.
pub(super) fn each_wrong_flag(
    inspection: &Inspection,
    count: impl Fn(&Inspection, u64) -> Result<Option<u64>>,
    mut each: impl FnMut(u64, u64, u64) -> Result<()>,
) -> Result<()> {
    let header = &inspection.header;
    let bits = header.cluster_bits;
    let extended = header.has(INCOMPATIBLE_EXTENDED_L2);
    let data_file = header.has(INCOMPATIBLE_DATA_FILE);
    let mut judge = |at: u64, entry: u64, count: Option<u64>| {
        let right = match count {
            None => entry,
            Some(1) => entry | COPIED,
            Some(_) => entry & !COPIED,
        };
        if right == entry { Ok(()) } else { each(at, entry, right) }
    };
    let mut bytes = vec![0; header.cluster_size() as usize];
    let mut seen = std::collections::HashSet::new();
    for (index, entry) in inspection.l1.iter().enumerate() {
        let table = entry & OFFSET_MASK;
        if table == 0 {
            continue;
        }
        let at = header.l1_offset + index as u64 * 8;
        judge(at, *entry, count(inspection, table >> bits)?)?;
        if table >= inspection.file.0.len() || !seen.insert(table) {
            continue;
        }
        inspection.file.read_at(&mut bytes, table)?;
        for index in (0..bytes.len()).step_by(if extended { 16 } else { 8 }) {
            let raw = read_u64(&bytes, index);
            let host = raw & OFFSET_MASK;
            let zero = raw & ZERO != 0 && !extended;
            let in_data_file = data_file && raw & COPIED != 0 && !zero;
            if raw & COMPRESSED != 0 || host == 0 && !in_data_file {
                continue;
            }
            let references = if data_file { Some(1) } else { count(inspection, host >> bits)? };
            judge(table + index as u64, raw, references)?;
        }
    }
    Ok(())
}

impl Qcow2 {
    /// Compares every reference count and every flag with the tables, and repairs what `repair` allows.
    ///
    /// Looks at what is in the file: changes that were not flushed are not seen without a repair, and flushed before
    /// one.
    pub(super) fn check_tables(&self, repair: Repair) -> Result<CheckReport> {
        if repair == Repair::Nothing {
            return check(&self.file, repair);
        }
        if self.opened_read_only() {
            return Err(Reason::ReadOnly { what: "the image" }.into());
        }
        let _none_unlinked = self.unlinked.write().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.write_state();
        let ready = state.writer.ready;
        if ready {
            self.write_back(&mut state)?;
            self.store_tracked(&mut state)?;
            self.barrier(&mut state.writer)?;
        }
        let report = check(&self.file, repair);
        // Whoever waits for the state is past the preparations: they are made again for them.
        let reloaded = self.reload(&mut state);
        if ready && (reloaded.is_err() || self.make_ready(&mut state).is_err()) {
            self.damaged.store(true, Ordering::Release);
            state.writer.broken = true;
        }
        reloaded.and(report)
    }

    /// Forgets what is known of the tables, which have changed in the file.
    pub(super) fn reload(&self, state: &mut State) -> Result<()> {
        self.cache.clear();
        self.unpacked.clear();
        *state = State::read(&*self.file, &read_header(&*self.file)?)?;
        Ok(())
    }

    /// Reads the refcount table.
    pub(super) fn read_writer(&self, header: &Header) -> Result<Writer> {
        let file = &*self.file;
        let len = u64::from(header.reftable_clusters) * header.cluster_size();
        let what = "the refcount table";
        Ok(Writer {
            reftable: read_table(file, header, what, header.reftable_offset, len, MAX_REFTABLE_BYTES)?,
            reftable_offset: header.reftable_offset,
            reftable_clusters: header.reftable_clusters.into(),
            ..Writer::default()
        })
    }
}
