//! Writing the header with its extensions anew, as another backing file needs it.
//!
//! The fixed fields and every extension that matters are within the first sector, which changes as one. The names
//! of features and that of the backing file lie behind it:
//!
//! ```text
//! first sector without names of features, old backing file ─ flush ─ what lies behind ─ flush ─ first sector
//! ```

use super::Qcow2;
use super::layout::{BackingName, Header, MAX_BACKING_NAME};
use super::state::State;
use crate::{BackingFile, Error, Result};

/// What the host writes wholly or not at all.
const SECTOR: usize = 512;
const WHAT: &str = "the backing file of a qcow2 image";

impl Qcow2 {
    /// Changes the name of the backing file in the header. The open image goes on showing the old one.
    pub(super) fn rename_backing(&self, backing: Option<&BackingFile>) -> Result<()> {
        if backing.is_some_and(|backing| backing.name.is_empty() || backing.name.len() > MAX_BACKING_NAME) {
            return Err(Error::invalid(WHAT, "its name must have 1 to 1023 bytes"));
        }
        if backing.is_some() && self.is_raw_data() {
            return Err(Error::invalid(WHAT, "a raw data file cannot show one"));
        }
        self.prepare()?;
        let mut state = self.write_state();
        self.write_back(&mut state)?;
        self.barrier(&mut state.writer)?;
        let old = self.current_header(&state);
        let name = backing.cloned().map(|BackingFile { name, format }| BackingName { name, format });
        let new = Header { backing: name, ..old.clone() };
        self.switch_header(&mut state, &old, new)
    }

    /// Makes room in the first cluster, durably.
    pub(super) fn drop_feature_names(&self, state: &mut State) -> Result<()> {
        let old = self.current_header(state);
        let new = Header { feature_names: Vec::new(), ..old.clone() };
        self.switch_header(state, &old, new)
    }

    /// The header with what changes elsewhere.
    fn current_header(&self, state: &State) -> Header {
        Header {
            reftable_offset: state.writer.reftable_offset,
            reftable_clusters: state.writer.reftable_clusters as u32,
            ..state.header.clone()
        }
    }

    fn switch_header(&self, state: &mut State, old: &Header, new: Header) -> Result<()> {
        let steps = plan(old, new.clone(), self.header.cluster_size() as usize)?;
        for (at, bytes) in &steps {
            self.file.write_at(bytes, *at as u64)?;
            self.barrier(&mut state.writer)?;
        }
        let name_at = steps.last().map_or(0, |(_, bytes)| super::map::read_u64(bytes, 8));
        state.header = Header { name_at, ..new };
        Ok(())
    }
}

/// What is written where, each durable before the next.
fn plan(old: &Header, mut new: Header, cluster_size: usize) -> Result<Vec<(usize, Vec<u8>)>> {
    let no_room = || Error::invalid(WHAT, "its name does not fit into the first cluster");
    let old_end = match &old.backing {
        Some(backing) => old.name_at as usize + backing.name.len(),
        None => 0,
    };
    let len = new.backing.as_ref().map_or(0, |backing| backing.name.len());
    for names in [true, false] {
        if !names {
            new.feature_names.clear();
        }
        let extensions = new.encode_extensions_end();
        // Where the old name is not touched, it is there until the new one is.
        let overlaps = old.backing.is_some() && extensions > old.name_at as usize;
        let at = if old.backing.is_some() { extensions.max(old_end.next_multiple_of(8)) } else { extensions };
        if extensions <= cluster_size && at + len <= cluster_size && !overlaps {
            return Ok(steps(old, &new, at));
        }
    }
    // Small clusters: everything is written at once. In the smallest, that is one sector.
    let bytes = new.encode_with_name_at(new.encode_extensions_end());
    match bytes.len() <= cluster_size {
        true => Ok(vec![(0, bytes)]),
        false => Err(no_room()),
    }
}

fn steps(old: &Header, new: &Header, name_at: usize) -> Vec<(usize, Vec<u8>)> {
    let last = new.encode_with_name_at(name_at);
    if last.len() <= SECTOR {
        return vec![(0, last)];
    }
    let bare = Header { feature_names: Vec::new(), ..old.clone() };
    let end = bare.encode_extensions_end();
    let mut first = bare.encode_with_name_at(old.name_at as usize);
    first.truncate(end);
    // The old name may lie between the extensions and the new one, and is still in use.
    let extensions = new.encode_extensions_end();
    let mut steps = vec![(0, first)];
    for range in [SECTOR..extensions, name_at.max(SECTOR)..last.len()] {
        if !range.is_empty() {
            steps.push((range.start, last[range].to_vec()));
        }
    }
    steps.push((0, last[..SECTOR].to_vec()));
    steps
}
