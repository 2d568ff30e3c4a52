//! Persistent dirty bitmaps: which parts of the disk were written since some time.

use serde::Serialize;

use super::{Qcow2, tables};
use crate::{BitmapInfo, Error, Result};

/// A run of the disk by what a bitmap says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct DirtyRun {
    /// Where it begins, in bytes of the disk.
    pub start: u64,
    /// How long it is in bytes, never zero.
    pub length: u64,
    /// Whether it was written.
    pub dirty: bool,
}

/// The persistent dirty bitmaps of an image.
///
/// An enabled bitmap notes every change of the disk from then on; a disabled one stays as it is. While an image is
/// being changed, its enabled bitmaps are marked as in use in the file, which says that they are out of date, until a
/// flush has stored them. Every call that changes a bitmap is durable when it returns.
pub struct Bitmaps<'a> {
    image: &'a Qcow2,
}

impl<'a> Bitmaps<'a> {
    pub(crate) fn new(image: &'a Qcow2) -> Self {
        Self { image }
    }

    /// All bitmaps, in the order of the image.
    pub fn list(&self) -> Result<Vec<BitmapInfo>> {
        let state = self.image.read_state();
        let bitmaps = tables::bitmaps(&*self.image.file, &state.header)?;
        Ok(bitmaps.into_iter().map(|bitmap| bitmap.info).collect())
    }

    /// Adds an enabled bitmap without a dirty part; one bit stands for `granularity` bytes, a power of two from 512
    /// to 2 GiB. Without it, the size of a cluster counts, but at least 4 KiB and at most 64 KiB.
    pub fn add(&self, _name: &str, _granularity: Option<u64>) -> Result<()> {
        Err(Error::unsupported("adding a dirty bitmap"))
    }

    /// Removes a bitmap, also one that is out of date.
    pub fn remove(&self, _name: &str) -> Result<()> {
        Err(Error::unsupported("removing a dirty bitmap"))
    }

    /// Makes every part clean.
    pub fn clear(&self, _name: &str) -> Result<()> {
        Err(Error::unsupported("clearing a dirty bitmap"))
    }

    /// Makes a bitmap note changes from now on.
    pub fn enable(&self, _name: &str) -> Result<()> {
        Err(Error::unsupported("enabling a dirty bitmap"))
    }

    /// Makes a bitmap stay as it is.
    pub fn disable(&self, _name: &str) -> Result<()> {
        Err(Error::unsupported("disabling a dirty bitmap"))
    }

    /// Makes dirty in `target` what is dirty in `source`, a bitmap of the same image.
    pub fn merge(&self, _target: &str, _source: &str) -> Result<()> {
        Err(Error::unsupported("merging dirty bitmaps"))
    }

    /// What a bitmap says of the disk from `offset` on, for as long as one answer holds but at most `max` bytes.
    ///
    /// Refused for a bitmap that is out of date.
    pub fn run_at(&self, _name: &str, _offset: u64, _max: u64) -> Result<DirtyRun> {
        Err(Error::unsupported("reading a dirty bitmap"))
    }

    /// The dirty parts of the disk, front to back.
    ///
    /// Refused for a bitmap that is out of date.
    pub fn dirty(&self, _name: &str) -> Result<Vec<DirtyRun>> {
        Err(Error::unsupported("reading a dirty bitmap"))
    }
}

impl std::fmt::Debug for Bitmaps<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Bitmaps").field(&self.list()).finish()
    }
}
