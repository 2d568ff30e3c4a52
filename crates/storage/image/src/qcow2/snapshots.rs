//! Internal snapshots: states of the disk that are kept within the image.

use super::{Qcow2, tables};
use crate::{Error, Result, SnapshotInfo};

/// The internal snapshots of an image.
///
/// Every change is durable when the call returns, and whatever was written to the image before it as well.
pub struct Snapshots<'a> {
    image: &'a Qcow2,
}

impl<'a> Snapshots<'a> {
    pub(crate) fn new(image: &'a Qcow2) -> Self {
        Self { image }
    }

    /// All snapshots, in the order of the image.
    pub fn list(&self) -> Result<Vec<SnapshotInfo>> {
        let state = self.image.read_state();
        let snapshots = tables::snapshots(&*self.image.file, &state.header)?;
        Ok(snapshots.into_iter().map(|snapshot| snapshot.info).collect())
    }

    /// Keeps the present state of the disk as a snapshot, whose id is new; several may have the same name.
    pub fn create(&self, _name: &str) -> Result<SnapshotInfo> {
        Err(Error::unsupported("creating an internal snapshot"))
    }

    /// Makes the disk what it was when a snapshot was taken, its size included; what it holds now is lost.
    ///
    /// `id_or_name` is an id or else a name; an error of kind not found where no snapshot has either.
    pub fn apply(&self, _id_or_name: &str) -> Result<()> {
        Err(Error::unsupported("applying an internal snapshot"))
    }

    /// Removes a snapshot, with the machine state in it if there is one, and gives its space back.
    pub fn delete(&self, _id_or_name: &str) -> Result<()> {
        Err(Error::unsupported("deleting an internal snapshot"))
    }
}

impl std::fmt::Debug for Snapshots<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Snapshots").field(&self.list()).finish()
    }
}
