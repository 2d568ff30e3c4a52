//! In how many pieces content lies on the volume.

use std::ops::ControlFlow;

use vmwright_vfs::{FileType, InodeNumber};

use crate::error::{Error, Place, Result};
use crate::inode::Inode;
use crate::volume::Ext4;

/// The most blocks that one piece can have: the length of the longest extent.
const LONGEST: u64 = 0x8000;

/// In how many pieces the content of a file or directory lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pieces {
    /// The inode.
    pub inode: InodeNumber,
    /// What it is.
    pub file_type: FileType,
    /// How many blocks its content has, those that are allocated but not written among them.
    pub blocks: u64,
    /// In how many pieces they lie: runs of blocks that are neighbours on the volume as they are in the content,
    /// or would be if holes were filled or left out.
    pub pieces: u64,
}

impl Pieces {
    /// The fewest pieces that this many blocks can lie in.
    pub fn fewest(&self) -> u64 {
        self.blocks.div_ceil(LONGEST)
    }

    /// From 0, in as few pieces as can be, up to 100: the score of `e4defrag -c`.
    pub fn score(&self) -> f64 {
        score(self.pieces, self.fewest(), self.blocks)
    }
}

/// The score of some pieces: up to 30 there is no problem, up to 55 a little, beyond that defragmenting would help.
pub fn score(pieces: u64, fewest: u64, blocks: u64) -> f64 {
    if blocks == 0 {
        return 0.0;
    }
    let percent = pieces.saturating_sub(fewest) as f64 * 100.0 / blocks as f64;
    if percent > 10.0 { 80.0 + 20.0 * percent / 100.0 } else { 8.0 * percent }
}

impl Ext4 {
    /// Says in how many pieces the content of a file or directory lies.
    ///
    /// # Errors
    ///
    /// Kind `Corrupt` where there is no such inode or its map of blocks is damaged.
    pub fn pieces(&self, inode: InodeNumber) -> Result<Pieces> {
        let number = u32::try_from(inode.0).unwrap_or(u32::MAX);
        self.count_pieces(&self.inode(number)?)
    }

    /// Visits every file and directory with content in blocks, in the order of their inodes.
    ///
    /// # Errors
    ///
    /// Kind `Corrupt` where an inode that is in use or a bitmap is damaged.
    pub fn visit_pieces(&self, visit: &mut dyn FnMut(Pieces) -> ControlFlow<()>) -> Result<()> {
        let first = self.superblock.first_inode();
        self.visit_inodes(&mut |volume, number, in_use| {
            if !in_use || (number < first && number != crate::inode::ROOT_INODE) {
                return Ok(ControlFlow::Continue(()));
            }
            let inode = volume.any_inode(number)?;
            let has_content = matches!(inode.file_type, FileType::Regular | FileType::Directory);
            if !has_content || inode.links == 0 {
                return Ok(ControlFlow::Continue(()));
            }
            Ok(match volume.count_pieces(&inode)? {
                Pieces { blocks: 0, .. } => ControlFlow::Continue(()),
                pieces => visit(pieces),
            })
        })
    }

    fn count_pieces(&self, inode: &Inode) -> Result<Pieces> {
        let mut found = Pieces {
            inode: InodeNumber(inode.number.into()),
            file_type: inode.file_type,
            blocks: 0,
            pieces: 0,
        };
        if !inode.has_blocks(&self.superblock) {
            return Ok(found);
        }
        // Where the next block is if holes were left out, and if they were filled.
        let mut next: Option<(u64, u64, u64)> = None;
        let limit = crate::mapping::logical_limit(&self.superblock, inode);
        let mut at = 0;
        while at < limit {
            let run = self.run_at(inode, at)?;
            if let Some(start) = run.start() {
                let continues = next.is_some_and(|(logical, dense, end)| {
                    start == end || start == dense.saturating_add(run.logical.saturating_sub(logical))
                });
                found.pieces += u64::from(!continues);
                found.blocks = found.blocks.saturating_add(run.len);
                if found.blocks > self.superblock.blocks {
                    let place = Place::Inode(inode.number.into());
                    return Err(Error::corrupt(place, "it has more blocks than the volume"));
                }
                next = Some((run.logical, start, start.saturating_add(run.len)));
            }
            at = at.saturating_add(run.len);
        }
        Ok(found)
    }
}
