//! Content that is kept within the inode: the first 60 bytes in its block map's place, the rest as the
//! extended attribute `system.data`.

use crate::directory::{Found, Visit};
use crate::error::{Error, Place, Result};
use crate::inode::Inode;
use crate::volume::Ext4;

/// The bytes of an inline directory that hold its parent, in place of `.` and `..`.
const PARENT: usize = 4;

impl Ext4 {
    /// All inline content, as long as the inode says.
    pub(crate) fn inline_content(&self, inode: &Inode) -> Result<Vec<u8>> {
        let mut content = inode.block.to_vec();
        content.extend(self.inline_tail(inode)?);
        if inode.size > content.len() as u64 {
            let place = Place::Inode(inode.number.into());
            let (expected, actual) = (content.len() as u64, inode.size);
            return Err(Error::mismatch(place, "the size of inline content, at most", expected, actual));
        }
        content.truncate(inode.size as usize);
        Ok(content)
    }

    /// Fills `buf`, which lies within the inode's size, from inline content.
    pub(crate) fn read_inline(&self, inode: &Inode, buf: &mut [u8], offset: u64) -> Result<()> {
        let content = self.inline_content(inode)?;
        let at = usize::try_from(offset).unwrap_or(usize::MAX).min(content.len());
        buf.copy_from_slice(&content[at..at + buf.len()]);
        Ok(())
    }

    /// Finds a name in an inline directory.
    pub(crate) fn find_inline(&self, dir: &Inode, name: &[u8]) -> Result<Option<Found>> {
        if name == b"." || name == b".." {
            let parent = u32::from_le_bytes([dir.block[0], dir.block[1], dir.block[2], dir.block[3]]);
            let inode = if name == b"." { dir.number } else { parent };
            return Ok(Some(Found { inode, file_type: crate::dir_block::TYPE_DIRECTORY }));
        }
        self.scan(dir, name)
    }

    /// Visits the names of an inline directory: one chain in the block map's place, one in the attribute.
    pub(crate) fn visit_inline(&self, dir: &Inode, visit: Visit<'_>) -> Result<()> {
        let mut format = self.directory_format(dir);
        format.seed = None;
        let tail = self.inline_tail(dir)?;
        for chain in [&dir.block[PARENT..], &tail] {
            for entry in format.entries(chain) {
                let entry = entry?;
                if entry.inode != 0 && visit(entry.name, entry.inode, entry.file_type).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}
