//! Grains for a copy that fills a new image, which writes them itself; and an image that is emptied.

use std::sync::Arc;

use super::sparse::{Entry, RunKind, Sparse};
use super::{Backing, Extent, Store, Vmdk};
use crate::driver::{Place, Placing};
use crate::{Error, Result};

impl Vmdk {
    /// Gives a range that holds nothing its grains.
    pub(super) fn place_grains(&self, offset: u64, len: u64, places: &mut Vec<Place>) -> Result<Placing> {
        let sparse = |extent: &Extent| extent.sparse().is_some_and(|sparse| sparse.packed.is_none());
        if self.read_only.is_some()
            || !matches!(self.backing, Backing::None)
            || !self.extents.iter().all(sparse)
        {
            return Ok(Placing::InOrder);
        }
        let is_alone = self.extents.iter().filter_map(Extent::file).all(|file| Arc::ptr_eq(file, &self.file));
        if len > 0 {
            self.prepare()?;
        }
        self.each_extent(offset, len, |extent, inside, part| {
            self.check_extent(extent)?;
            match &extent.store {
                Store::Sparse(sparse) => sparse.place(inside, part.end - part.start, extent.start, places),
                _ => Ok(()),
            }
        })?;
        Ok(if is_alone { Placing::Plain } else { Placing::Through })
    }

    /// Lets everything go, so that the parent shows.
    pub(super) fn drop_all(&self) -> Result<()> {
        if !self.extents.iter().all(|extent| extent.sparse().is_some()) {
            return Err(Error::unsupported("emptying a VMDK that is not sparse"));
        }
        for extent in &self.extents {
            self.check_extent(extent)?;
            if let Some(sparse) = extent.sparse() {
                sparse.prepare()?;
                sparse.drop_from(&mut sparse.write_state(), 0)?;
            }
        }
        Ok(())
    }
}

impl Sparse {
    /// Links new grains, which are zeros until they are written; `start` is where the extent begins in the disk.
    fn place(&self, offset: u64, len: u64, start: u64, places: &mut Vec<Place>) -> Result<()> {
        self.prepare()?;
        let mut state = self.write_state();
        let mut done = 0;
        while done < len {
            self.relieve(&mut state)?;
            let at = offset + done;
            let run = self.run_at(&state, at, len - done)?;
            if let RunKind::Data { host } = run.kind {
                places.push(Place { offset: start + at, host, len: run.len });
                done += run.len;
                continue;
            }
            if !at.is_multiple_of(self.grain) {
                return Err(Error::invalid("a place in a VMDK", "it must begin with a grain"));
            }
            let count = run.len.div_ceil(self.grain);
            let host = self.take(&mut state, count * self.grain)?;
            for index in 0..count {
                let place = Entry::At(host + index * self.grain);
                self.link(&mut state, at + index * self.grain, place)?;
            }
            places.push(Place { offset: start + at, host, len: run.len });
            done += run.len;
        }
        Ok(())
    }
}
