//! Comparing what is recorded with what is used.

use std::sync::Arc;

use vmwright_disk::Disk;

use super::Qcow2;
use super::layout::{COPIED, MAX_REFTABLE_BYTES, OFFSET_MASK};
use super::map::{L2Entry, read_u64};
use super::repair::{self, Counts};
use super::state::{State, Writer, read_table};
use crate::{CheckReport, Error, Repair, Result};

/// Checks an image that may be too damaged to open.
pub(crate) fn check(file: &Arc<dyn Disk>, repair: Repair) -> Result<CheckReport> {
    if repair != Repair::Nothing {
        return Err(Error::unsupported("repairing a qcow2 image"));
    }
    Qcow2::open(file.clone(), crate::OpenOptions::read_only())?.check_tables()
}

impl Qcow2 {
    /// Compares every reference count and every flag with the tables.
    ///
    /// Looks at what is in the file: changes that were not flushed are not seen.
    pub(crate) fn check_tables(&self) -> Result<CheckReport> {
        // The cache may hold changes, so nothing is read through it.
        let fresh =
            Self::open(self.file.clone(), crate::OpenOptions { read_only: true, ..Default::default() })?;
        let mut state = State::read(&*fresh.file, &fresh.header)?;
        state.writer = fresh.read_writer()?;
        fresh.collect_metadata(&mut state)?;
        let counts = repair::count(&fresh, &state)?;
        let mut report = CheckReport::default();
        fresh.check_counts(&state.writer, &counts, &mut report)?;
        fresh.check_flags(&state, &counts, &mut report)?;
        Ok(report)
    }

    /// Reads the refcount table.
    pub(super) fn read_writer(&self) -> Result<Writer> {
        let (file, header) = (&*self.file, &self.header);
        let len = u64::from(header.reftable_clusters) * header.cluster_size();
        let what = "the refcount table";
        Ok(Writer {
            reftable: read_table(file, header, what, header.reftable_offset, len, MAX_REFTABLE_BYTES)?,
            reftable_offset: header.reftable_offset,
            reftable_clusters: header.reftable_clusters.into(),
            ..Writer::default()
        })
    }

    fn check_counts(&self, writer: &Writer, counts: &Counts, report: &mut CheckReport) -> Result<()> {
        for (cluster, used) in counts.iter() {
            let recorded = self.refcount(writer, cluster)?;
            if recorded > used {
                report.leaks += 1;
            } else if recorded < used {
                report.corruptions += 1;
            }
        }
        Ok(())
    }

    fn check_flags(&self, state: &State, counts: &Counts, report: &mut CheckReport) -> Result<()> {
        let mut check = |raw: u64, host: u64| {
            if (raw & COPIED != 0) != (counts.get(host) == 1) {
                report.corruptions += 1;
            }
        };
        let mut bytes = vec![0; self.header.cluster_size() as usize];
        for entry in &state.l1 {
            let table = entry & OFFSET_MASK;
            if table == 0 {
                continue;
            }
            check(*entry, table);
            self.file.read_at(&mut bytes, table)?;
            for index in (0..bytes.len()).step_by(self.l2_entry_size() as usize) {
                let raw = read_u64(&bytes, index);
                match self.parse_l2(raw, table + index as u64)? {
                    L2Entry::Data { host, .. } | L2Entry::Zero { host: Some(host), .. } => check(raw, host),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}
