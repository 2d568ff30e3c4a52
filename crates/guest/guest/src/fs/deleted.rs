use std::ops::ControlFlow;

use serde::Serialize;
use vmwright_ext4::{Ext4, Options};

use super::{Format, Target};
use crate::Result;
use crate::ops::kind_name;

/// What is left of a file that was removed. Times are seconds since 1970-01-01 UTC.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
#[allow(missing_docs)]
pub struct Removed {
    pub inode: u64,
    /// `file`, `directory`, `symlink` …
    pub kind: &'static str,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    /// The size that is still recorded.
    pub size: u64,
    pub deleted: i64,
    pub modified: i64,
    /// How many blocks of content are still known.
    pub blocks: u64,
    /// How many of those nothing else has taken since; absent where the map of blocks is damaged.
    pub free_blocks: Option<u64>,
}

impl Target {
    /// Lists what is left of removed files, in the order of their inodes, until `visit` breaks.
    pub fn removed(&self, visit: &mut dyn FnMut(Removed) -> ControlFlow<()>) -> Result<()> {
        let Format::Ext = self.format()?;
        let failed = |error| self.failed(error);
        let volume = Ext4::open(self.disk().clone(), Options::default()).map_err(&failed)?;
        let found = volume.visit_deleted(&mut |deleted| {
            visit(Removed {
                inode: deleted.inode.0,
                kind: kind_name(deleted.file_type),
                mode: deleted.mode,
                uid: deleted.uid,
                gid: deleted.gid,
                size: deleted.size,
                deleted: deleted.deleted.seconds,
                modified: deleted.modified.seconds,
                blocks: deleted.blocks,
                free_blocks: deleted.free_blocks,
            })
        });
        found.map_err(failed)
    }
}
