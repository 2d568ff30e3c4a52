//! What happens before the first change to an image.

use vmwright_disk::ErrorKind;

use super::Qcow2;
use super::check::check;
use super::layout::{
    AT_AUTOCLEAR, AUTOCLEAR_BITMAPS, AUTOCLEAR_RAW_DATA_FILE, INCOMPATIBLE_DIRTY, OFFSET_MASK, REFTABLE_MASK,
    Version,
};
use super::state::State;
use super::tables;
use crate::{Error, Repair, Result};

impl Qcow2 {
    /// Makes the image ready to be changed, once.
    pub(super) fn prepare(&self) -> Result<()> {
        self.check_writable()?;
        if self.read_state().writer.ready {
            return Ok(());
        }
        let mut state = self.write_state();
        if state.writer.ready {
            return Ok(());
        }
        self.make_ready(&mut state)
    }

    /// Reads what writing needs to know and marks the image as changed.
    pub(super) fn make_ready(&self, state: &mut State) -> Result<()> {
        let data_len = self.data_file()?.len();
        if state.header.has(INCOMPATIBLE_DIRTY) {
            self.repair_dirty(state)?;
        }
        // What is damaged or missing must be found before anything is changed.
        self.load_writer(state)?;
        self.align_file()?;
        if data_len < self.size() {
            self.extend_data_file(self.size())?;
        }
        state.writer.used_end = self.file.len();
        self.claim_features(state)?;
        state.writer.ready = true;
        Ok(())
    }

    /// Repairs an image whose counts may be out of date, as its dirty bit says.
    fn repair_dirty(&self, state: &mut State) -> Result<()> {
        let report = check(&self.file, Repair::All)?;
        if report.corruptions > 0 || report.check_errors > 0 {
            let left = report.corruptions + report.check_errors;
            return Err(Error::corrupt(
                "an image with the dirty bit",
                72,
                "damages that can be repaired",
                left,
            ));
        }
        self.reload(state)
    }

    /// Completes a last cluster that the file has only the beginning of.
    fn align_file(&self) -> Result<()> {
        let len = self.file.len();
        let aligned = len.next_multiple_of(self.header.cluster_size());
        if aligned == len {
            return Ok(());
        }
        match self.file.set_len(aligned) {
            // A device keeps its length.
            Err(error) if error.kind() == ErrorKind::Unsupported => Ok(()),
            result => Ok(result?),
        }
    }

    fn load_writer(&self, state: &mut State) -> Result<()> {
        state.writer = self.read_writer(&state.header)?;
        self.collect_metadata(state)
    }

    /// Notes which clusters hold tables, none of which may lie over another.
    pub(super) fn collect_metadata(&self, state: &mut State) -> Result<()> {
        let file = &*self.file;
        let State { header, l1, writer } = state;
        let mut tables = vec![
            (0, 1),
            (header.l1_offset, u64::from(header.l1_len) * 8),
            (writer.reftable_offset, writer.reftable_clusters << header.cluster_bits),
        ];
        for snapshot in tables::snapshots(file, header)? {
            let (start, len) = (snapshot.l1_offset, snapshot.l1_bytes()?);
            // Every cluster of it is noted, so it must not be longer than what is there.
            if start.checked_add(len).is_none_or(|end| end > file.len()) {
                return Err(Error::corrupt(
                    "the L1 table of a snapshot",
                    start,
                    "a table within the file",
                    len,
                ));
            }
            tables.push((start, len));
        }
        if header.snapshot_count > 0 {
            let end = tables::snapshots_end(file, header)?;
            tables.push((header.snapshots_offset, end - header.snapshots_offset));
        }
        if let Some(directory) = header.bitmaps
            && header.autoclear & AUTOCLEAR_BITMAPS != 0
        {
            tables.push((directory.offset, directory.len.min(file.len())));
        }
        let l2 = l1.iter().map(|entry| entry & OFFSET_MASK);
        let blocks = writer.reftable.iter().map(|entry| entry & REFTABLE_MASK);
        tables.extend(l2.chain(blocks).filter(|at| *at != 0).map(|at| (at, 1)));
        if let Some((offset, len)) = header.encryption_header.filter(|_| header.encryption != 0) {
            tables.push((offset, len.min(file.len())));
        }
        for (offset, len) in tables.into_iter().filter(|(_, len)| *len > 0) {
            let last = offset.saturating_add(len - 1) >> header.cluster_bits;
            for cluster in offset >> header.cluster_bits..=last {
                if !writer.metadata.insert(cluster) {
                    let at = cluster << header.cluster_bits;
                    return Err(Error::corrupt("a table", at, "a place of its own", offset));
                }
            }
        }
        Ok(())
    }

    /// Loads the bitmaps that note every change, and clears the bits of optional features that nobody here keeps up
    /// to date. Bitmaps that are disabled stay as they are.
    fn claim_features(&self, state: &mut State) -> Result<()> {
        if self.header.version == Version::V2 {
            return Ok(());
        }
        let mut changed = self.load_tracked(state)?;
        let keep = state.header.autoclear & (AUTOCLEAR_BITMAPS | AUTOCLEAR_RAW_DATA_FILE);
        if keep != state.header.autoclear {
            self.file.write_at(&keep.to_be_bytes(), AT_AUTOCLEAR)?;
            state.header.autoclear = keep;
            changed = true;
        }
        if changed { self.barrier(&mut state.writer) } else { Ok(()) }
    }
}
