//! Writing zeros and giving space back.

use super::Qcow2;
use super::alloc::Clusters;
use super::layout::{COPIED, Version, ZERO};
use super::map::{L2Entry, RunKind};
use super::state::State;
use crate::Result;

/// So many clusters are treated before others get their turn.
const MAX_CLUSTERS: u64 = 512;

/// What shall become of whole clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    /// They read as zeros; space that is allocated may stay so.
    Zero,
    /// Their space is given back.
    Discard,
}

/// What is done to one cluster.
enum Step {
    Nothing,
    /// Its entry becomes this.
    Link(u64),
    /// It is filled with zeros where it is.
    Fill(u64),
    /// It becomes a new cluster of zeros.
    New,
}

impl Qcow2 {
    /// Makes a range of the disk read as zeros.
    pub(super) fn zero(&self, offset: u64, len: u64) -> Result<()> {
        self.prepare()?;
        let (start, end) = self.whole_clusters(offset, len);
        if start >= end {
            return self.zero_part(offset, len);
        }
        self.zero_part(offset, start - offset)?;
        self.each_cluster(start, end, Wish::Zero)?;
        self.zero_part(end.min(self.size()), (offset + len).saturating_sub(end))
    }

    /// Gives the space of the whole clusters in a range back.
    pub(super) fn give_back(&self, offset: u64, len: u64) -> Result<()> {
        let (start, end) = self.whole_clusters(offset, len);
        if start >= end {
            return self.check_writable();
        }
        self.prepare()?;
        self.each_cluster(start, end, Wish::Discard)
    }

    /// The whole clusters in a range; the last one of the disk counts as whole if its part of the disk is in.
    fn whole_clusters(&self, offset: u64, len: u64) -> (u64, u64) {
        let cluster_size = self.header.cluster_size();
        let end = offset + len;
        let end = if end == self.size() { end } else { end - end % cluster_size };
        (offset.next_multiple_of(cluster_size), end)
    }

    /// Writes zeros to a part of a cluster, or to parts of two, unless they are there already.
    fn zero_part(&self, offset: u64, len: u64) -> Result<()> {
        let mut done = 0;
        while done < len {
            let at = offset + done;
            let run = self.run_at(&self.read_state(), at, len - done)?;
            let zeros = match run.kind {
                RunKind::Zero => true,
                RunKind::Unallocated => !self.shows_backing(at)?,
                _ => false,
            };
            if !zeros {
                self.write(&vec![0; run.len as usize], at)?;
            }
            done += run.len;
        }
        Ok(())
    }

    fn each_cluster(&self, start: u64, end: u64, wish: Wish) -> Result<()> {
        let mut at = start;
        while at < end {
            let mut state = self.write_state();
            self.relieve(&mut state)?;
            let mut budget = MAX_CLUSTERS;
            while at < end && budget > 0 {
                budget -= 1;
                at = at.saturating_add(self.one_cluster(&mut state, at, end, wish)?);
            }
        }
        Ok(())
    }

    /// Treats the cluster at `at`; answers how many bytes are done with it.
    fn one_cluster(&self, state: &mut State, at: u64, end: u64, wish: Wish) -> Result<u64> {
        let cluster_size = self.header.cluster_size();
        let entry = self.entry(state, at)?;
        if entry == L2Entry::Unallocated && (wish == Wish::Discard || !self.shows_backing(at)?) {
            // Nothing to do, often for very many clusters.
            let run = self.run_at(state, at, end - at)?;
            let same = match wish {
                Wish::Discard => run.len,
                Wish::Zero => cluster_size.max(if self.backing()?.is_none() { run.len } else { 0 }),
            };
            return Ok(same.next_multiple_of(cluster_size));
        }
        let step = match wish {
            Wish::Zero => self.zero_step(entry, at)?,
            Wish::Discard => self.discard_step(entry, at)?,
        };
        match step {
            Step::Nothing => {}
            Step::Link(raw) => self.link(state, at, raw, wish == Wish::Discard)?,
            Step::Fill(host) => {
                self.check_not_metadata(state, host, cluster_size)?;
                self.file.zero_at(host, cluster_size)?;
            }
            Step::New => {
                let Clusters { host, fresh, .. } = self.allocate(&mut state.writer, 1)?;
                if !fresh {
                    self.file.zero_at(host, cluster_size)?;
                }
                self.link(state, at, host | COPIED, false)?;
            }
        }
        Ok(cluster_size)
    }

    fn zero_step(&self, entry: L2Entry, at: u64) -> Result<Step> {
        let v3 = self.header.version == Version::V3;
        Ok(match entry {
            L2Entry::Zero { .. } => Step::Nothing,
            // The cluster stays allocated, so that writing it later is cheap.
            L2Entry::Data { host, copied: true } if v3 => Step::Link(host | COPIED | ZERO),
            _ if v3 => Step::Link(ZERO),
            _ if !self.shows_backing(at)? => Step::Link(0),
            // Version 2 cannot hide the backing file except by data.
            L2Entry::Data { host, copied: true } => Step::Fill(host),
            _ => Step::New,
        })
    }

    fn discard_step(&self, entry: L2Entry, at: u64) -> Result<Step> {
        Ok(match entry {
            L2Entry::Unallocated | L2Entry::Zero { host: None, .. } => Step::Nothing,
            _ if !self.shows_backing(at)? => Step::Link(0),
            _ if self.header.version == Version::V3 => Step::Link(ZERO),
            // Without data here the backing file would show, and that is neither the old content nor zeros.
            _ => Step::Nothing,
        })
    }
}
