//! Allocating ahead of writing.

use super::Qcow2;
use super::alloc::Clusters;
use super::map::Parts;
use super::options::Preallocation;
use crate::Result;
use crate::driver::Place;

/// So many zeros are written at a time.
const ZEROS: usize = 1 << 20;

impl Qcow2 {
    /// Gives every cluster of an empty disk a place, and what else is asked for.
    pub(crate) fn preallocate(&self, how: Preallocation) -> Result<()> {
        self.preallocate_from(0, how)?;
        self.sync()
    }

    /// Gives every cluster from `start` on a place; nothing is recorded of them so far.
    pub(super) fn preallocate_from(&self, start: u64, how: Preallocation) -> Result<()> {
        // Parts can have a place and yet show what is beneath; encrypted clusters, which are not zeros unless that is
        // written, can have one and yet be zeros.
        let allocated = if self.is_extended() || self.is_encrypted() { 0 } else { self.all_parts() };
        self.each_place(start, self.size(), &mut |_, clusters, len| {
            match how {
                Preallocation::Off | Preallocation::Metadata => {}
                Preallocation::Falloc if self.data_file()?.reserve(clusters.host, len)? => {}
                Preallocation::Falloc | Preallocation::Full => self.fill_zeros(clusters.host, len)?,
            }
            Ok(allocated)
        })
    }

    /// Gives the clusters of a range that holds nothing so far a place; they read as zeros until they are written.
    pub(super) fn place_clusters(&self, start: u64, len: u64, placed: &mut dyn FnMut(Place)) -> Result<()> {
        let end = start + len;
        self.each_place(start, end, &mut |offset, Clusters { host, count, .. }, _| {
            let len = (count * self.header.cluster_size()).min(end - offset);
            placed(Place { offset, host, len });
            Ok(self.all_parts())
        })
    }

    /// Allocates and links the clusters of a range, zeros all of them; `and` is told the offset, the
    /// clusters and the length of each run, and answers which parts are then there.
    fn each_place(
        &self,
        start: u64,
        end: u64,
        and: &mut dyn FnMut(u64, Clusters, u64) -> Result<u32>,
    ) -> Result<()> {
        self.prepare()?;
        let cluster_size = self.header.cluster_size();
        let mut offset = start - start % cluster_size;
        while offset < end {
            let mut state = self.write_state();
            self.relieve(&mut state)?;
            let wanted = (end - offset).div_ceil(cluster_size).min(1024);
            let clusters = self.allocate_data(&mut state.writer, offset, wanted)?;
            let Clusters { host, count, fresh } = clusters;
            let last = offset + (count - 1) * cluster_size;
            let len = last - offset + self.room(last);
            if !fresh && !self.is_encrypted() {
                self.zero_data(host, len)?;
            }
            let allocated = and(offset, clusters, len)?;
            let zero = if self.is_extended() { 0 } else { self.all_parts() };
            let mut done = 0;
            while done < count {
                let entry = |index: u64| {
                    let host = Some(host + (done + index) * cluster_size);
                    self.encode(Parts { host, copied: true, allocated, zero: zero & !allocated })
                };
                done +=
                    self.link_run(&mut state, offset + done * cluster_size, count - done, &entry, false)?;
            }
            offset += count * cluster_size;
        }
        Ok(())
    }

    fn fill_zeros(&self, host: u64, len: u64) -> Result<()> {
        let zeros = vec![0; ZEROS.min(len as usize)];
        let mut done = 0;
        while done < len {
            let step = (len - done).min(zeros.len() as u64);
            self.data_file()?.write_at(&zeros[..step as usize], host + done)?;
            done += step;
        }
        Ok(())
    }
}
