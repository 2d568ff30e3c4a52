//! Writing zeros and giving space back.

use super::Qcow2;
use super::alloc::Clusters;
use super::layout::Version;
use super::map::{Cluster, Parts, RunKind};
use super::state::State;
use crate::Result;

/// So many clusters are treated before others get their turn.
const MAX_CLUSTERS: u64 = 512;
/// Zeros that have to be written are written in steps of at most so many bytes.
const MAX_ZEROS: u64 = 1 << 20;

/// What shall become of whole clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// They read as zeros; space that is allocated may stay so.
    Zero,
    /// Their space is given back.
    Discard,
    /// Nothing is recorded of them any more, whatever shows then.
    Drop,
}

/// What is done to one cluster.
enum Step {
    Nothing,
    /// Its entry becomes this.
    Link(Parts),
    /// It is filled with zeros where it is.
    Fill(u64),
    /// It becomes a new cluster of zeros.
    New,
}

/// A cluster of which nothing is recorded.
const UNALLOCATED: Parts = Parts { host: None, copied: false, allocated: 0, zero: 0 };

impl Qcow2 {
    /// Makes a range of the disk read as zeros.
    pub(super) fn zero(&self, offset: u64, len: u64) -> Result<()> {
        self.prepare()?;
        if self.is_raw_data() {
            // Who reads the data file without this one must see the zeros, too. All that is recorded here is that
            // the bytes are there.
            self.zero_data(offset, len)?;
            return self.zero_recorded(offset, len);
        }
        let (start, end) = self.whole_clusters(offset, len);
        if start >= end {
            let border = offset.next_multiple_of(self.header.cluster_size()).min(offset + len);
            self.zero_within(offset, border - offset)?;
            return self.zero_within(border, offset + len - border);
        }
        self.zero_within(offset, start - offset)?;
        self.each_cluster(start, end, Wish::Zero)?;
        self.zero_within(end.min(self.size()), (offset + len).saturating_sub(end))
    }

    /// Writes zeros where a raw data file has them already but other zeros would show, or compressed clusters.
    fn zero_recorded(&self, offset: u64, len: u64) -> Result<()> {
        let mut at = offset;
        while at < offset + len {
            let run = self.run_at(&self.read_state(), at, offset + len - at)?;
            if matches!(run.kind, RunKind::Compressed { .. }) || self.shows_other(run.kind, at)? {
                self.write_zeros(at, run.len)?;
            }
            at += run.len;
        }
        Ok(())
    }

    /// Whether the backing file shows where nothing is recorded.
    fn shows_other(&self, kind: RunKind, at: u64) -> Result<bool> {
        Ok(kind == RunKind::Unallocated && self.shows_backing(at)?)
    }

    /// Gives the space of the whole clusters in a range back.
    pub(super) fn give_back(&self, offset: u64, len: u64) -> Result<()> {
        let (start, end) = self.whole_clusters(offset, len);
        if start >= end {
            return self.check_writable();
        }
        let _tracked = self.track(start, end - start)?;
        if self.is_raw_data() {
            return self.zero(start, end - start);
        }
        self.prepare()?;
        if self.has_data_file() {
            // What a range of clusters that is being discarded reads as meanwhile is either.
            let file = self.data_file()?;
            let there = file.len().min(end).saturating_sub(start);
            file.discard(start, there)?;
        }
        self.each_cluster(start, end, Wish::Discard)
    }

    /// The whole clusters in a range; the last one of the disk counts as whole if its part of the disk is in.
    fn whole_clusters(&self, offset: u64, len: u64) -> (u64, u64) {
        let cluster_size = self.header.cluster_size();
        let end = offset + len;
        let end = if end == self.size() { end } else { end - end % cluster_size };
        (offset.next_multiple_of(cluster_size), end)
    }

    /// Makes a range within one cluster read as zeros: whole parts in the entry, the rest by writing.
    fn zero_within(&self, offset: u64, len: u64) -> Result<()> {
        let (start, end) = (offset.next_multiple_of(self.part_size()), offset + len);
        let end = end - end % self.part_size();
        if !self.is_extended() || start >= end || !self.zero_parts(start, end)? {
            return self.zero_part(offset, len);
        }
        self.zero_part(offset, start - offset)?;
        self.zero_part(end, offset + len - end)
    }

    /// Makes whole parts of one cluster zeros in its entry; answers false where it is compressed.
    fn zero_parts(&self, start: u64, end: u64) -> Result<bool> {
        let skip = start % self.header.cluster_size();
        let mut state = self.write_state();
        self.relieve(&mut state)?;
        let Cluster::Plain(old) = self.cluster_at(&state, start)? else { return Ok(false) };
        let touched = self.touched_parts(skip, end - start);
        if old.zero & touched == touched || self.is_absent(old, touched, start, end)? {
            return Ok(true);
        }
        let new = Parts { allocated: old.allocated & !touched, zero: old.zero | touched, ..old };
        self.link(&mut state, start - skip, self.encode(new), false)?;
        Ok(true)
    }

    /// Whether nothing is recorded of these parts, and nothing shows through.
    fn is_absent(&self, parts: Parts, touched: u32, start: u64, end: u64) -> Result<bool> {
        let absent = (parts.allocated | parts.zero) & touched == 0;
        Ok(absent && !self.shows_backing(start)? && !self.shows_backing(end - 1)?)
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
                self.write_zeros(at, run.len)?;
            }
            done += run.len;
        }
        Ok(())
    }

    fn write_zeros(&self, offset: u64, len: u64) -> Result<()> {
        let zeros = vec![0; len.min(MAX_ZEROS) as usize];
        let mut done = 0;
        while done < len {
            let step = (len - done).min(MAX_ZEROS);
            self.write(&zeros[..step as usize], offset + done)?;
            done += step;
        }
        Ok(())
    }

    pub(super) fn each_cluster(&self, start: u64, end: u64, wish: Wish) -> Result<()> {
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
        let cluster = self.cluster_at(state, at)?;
        let unallocated = cluster == Cluster::Plain(UNALLOCATED);
        if unallocated && (wish != Wish::Zero || !self.shows_backing(at)?) {
            // Nothing to do, often for very many clusters.
            let run = self.run_at(state, at, end - at)?;
            let same = match wish {
                Wish::Zero if self.backing()?.is_some() => 0,
                // A run may end with clusters that are kept a place for.
                _ if self.is_extended() => self.unmapped(state, at, run.len)?,
                _ => run.len,
            };
            return Ok(same.max(cluster_size).next_multiple_of(cluster_size));
        }
        let step = match wish {
            Wish::Zero => self.zero_step(cluster, at)?,
            Wish::Discard => self.discard_step(cluster, at)?,
            Wish::Drop => Step::Link(UNALLOCATED),
        };
        match step {
            Step::Nothing => {}
            Step::Link(parts) => self.link(state, at, self.encode(parts), wish != Wish::Zero)?,
            Step::Fill(host) => {
                self.check_not_metadata(state, host, cluster_size)?;
                self.zero_data(host, self.room(at))?;
            }
            Step::New => {
                let new = self.allocate_data(&mut state.writer, at, 1)?;
                let Clusters { host, fresh, .. } = new;
                if !fresh {
                    self.zero_data(host, self.room(at))?;
                }
                self.link_data(state, at, new)?;
            }
        }
        Ok(cluster_size)
    }

    /// How much of a range has no L2 table.
    fn unmapped(&self, state: &State, at: u64, len: u64) -> Result<u64> {
        Ok(if self.l2_table(state, at)?.is_none() { len } else { 0 })
    }

    /// Version 3: what reads as zeros and keeps what place it has.
    fn zeros(&self, host: Option<u64>) -> Step {
        Step::Link(Parts { host, copied: host.is_some(), allocated: 0, zero: self.all_parts() })
    }

    fn zero_step(&self, cluster: Cluster, at: u64) -> Result<Step> {
        let own = match cluster {
            Cluster::Plain(parts) if parts.zero == self.all_parts() => return Ok(Step::Nothing),
            Cluster::Plain(parts) => parts.own_host(),
            Cluster::Compressed(_) => None,
        };
        Ok(match own {
            // The cluster stays allocated, so that writing it later is cheap.
            _ if self.header.version == Version::V3 => self.zeros(own),
            _ if !self.shows_backing(at)? => Step::Link(UNALLOCATED),
            // Version 2 cannot hide the backing file except by data.
            Some(host) => Step::Fill(host),
            None => Step::New,
        })
    }

    fn discard_step(&self, cluster: Cluster, at: u64) -> Result<Step> {
        let zeros = Parts { zero: self.all_parts(), ..UNALLOCATED };
        Ok(match cluster {
            Cluster::Plain(parts) if parts == zeros || parts == UNALLOCATED => Step::Nothing,
            _ if !self.shows_backing(at)? => Step::Link(UNALLOCATED),
            _ if self.header.version == Version::V3 => self.zeros(None),
            // Without data here the backing file would show, and that is neither the old content nor zeros.
            _ => Step::Nothing,
        })
    }
}
