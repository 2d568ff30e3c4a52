//! How much a source holds, so that a filesystem can be made for it.

use std::collections::HashMap;

use crate::entry::{EntryKind, Source};
use crate::{Error, Result};

/// What the entries of a source add up to, for blocks of some size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Everything that needs an inode, the root not counted.
    pub inodes: u64,
    /// Directories among them.
    pub directories: u64,
    /// Blocks of content, holes not counted.
    pub content_blocks: u64,
    /// Pieces of content that do not touch.
    pub pieces: u64,
    /// Blocks of directories, the root's among them.
    pub directory_blocks: u64,
    /// Symbolic links whose targets take a block, and files whose attributes do.
    pub further_blocks: u64,
}

/// Targets up to this long are kept in the inode.
const SHORT_LINK: usize = 59;

/// Attributes up to this many bytes, names included, have room behind an inode of 256 bytes.
const SHORT_XATTRS: usize = 90;

impl Totals {
    /// Adds up what is in a source, which must be one that can be read again.
    ///
    /// # Errors
    ///
    /// Kind `InvalidInput` where it cannot, and what reading it answers.
    pub fn of(source: &mut dyn Source, block_size: u32) -> Result<Self> {
        if !source.is_repeatable() {
            let problem =
                "a stream can be read only once: name a file, or say how large the filesystem shall be";
            return Err(Error::plain(problem));
        }
        let block = u64::from(block_size.max(512));
        let mut totals = Self::default();
        let mut names: HashMap<Vec<u8>, u64> = HashMap::from([(Vec::new(), 24)]);
        source.each(&mut |entry, content| {
            let split = entry.path.iter().rposition(|byte| *byte == b'/');
            let (parent, name) = match split {
                Some(at) => (&entry.path[..at], &entry.path[at + 1..]),
                None => (&b""[..], &entry.path[..]),
            };
            if entry.path.is_empty() {
                return Ok(());
            }
            // An entry of a directory, filled up to four bytes; splits leave a part of each block empty.
            *names.entry(parent.to_vec()).or_insert(24) += 8 + name.len().next_multiple_of(4) as u64;
            match &entry.kind {
                EntryKind::HardLink { .. } => return Ok(()),
                EntryKind::Directory => {
                    totals.directories += 1;
                    names.entry(entry.path.clone()).or_insert(24);
                }
                EntryKind::Symlink { target } if target.len() > SHORT_LINK => totals.further_blocks += 1,
                EntryKind::Regular { .. } => {
                    let mut covered = 0;
                    content.each(&mut |offset, piece| {
                        let (first, end) = (offset / block, (offset + piece.len() as u64).div_ceil(block));
                        totals.pieces += u64::from(first > covered || covered == 0);
                        totals.content_blocks += end.saturating_sub(first.max(covered));
                        covered = covered.max(end);
                        Ok(())
                    })?;
                }
                _ => {}
            }
            let attributes: usize =
                entry.xattrs.iter().map(|(name, value)| 16 + name.len() + value.len()).sum();
            totals.further_blocks += u64::from(attributes > SHORT_XATTRS);
            totals.inodes += 1;
            Ok(())
        })?;
        // Leaves that were split are half full at worst, and an index comes with them.
        let blocks = |bytes: &u64| if *bytes <= block - 12 { 1 } else { (bytes * 2).div_ceil(block) + 1 };
        totals.directory_blocks = names.values().map(blocks).sum();
        Ok(totals)
    }
}
