//! How large a filesystem must be for a source.

use std::collections::HashMap;

use vmwright_ext4::make::{Content, MakeOptions, fit};

use crate::entry::{EntryKind, Source};
use crate::{Error, Result};

/// Attributes up to this many bytes, names included, have room behind an inode of 256 bytes.
const SHORT_XATTRS: usize = 90;

/// Makes options for the smallest filesystem that holds what is in `sources`, layer over layer, and `slack` percents more.
///
/// What a later layer replaces is counted all the same.
///
/// # Errors
///
/// Kind `InvalidInput` where a source can be read only once, and what reading it answers.
pub fn fitted(sources: &mut [Box<dyn Source>], options: &MakeOptions, slack: f64) -> Result<MakeOptions> {
    let mut content = Content::for_options(options).map_err(Error::ext4)?;
    let block = u64::from(options.block_size.unwrap_or(4096));
    // The lengths of the names in each directory.
    let mut names: HashMap<Vec<u8>, Vec<u16>> = HashMap::new();
    for source in sources {
        if !source.is_repeatable() {
            let problem =
                "a stream can be read only once: name a file, or say how large the filesystem shall be";
            return Err(Error::plain(problem));
        }
        source.each(&mut |entry, bytes| {
            if entry.path.is_empty() {
                return Ok(());
            }
            let (parent, name) = match entry.path.iter().rposition(|byte| *byte == b'/') {
                Some(at) => (&entry.path[..at], &entry.path[at + 1..]),
                None => (&b""[..], &entry.path[..]),
            };
            names.entry(parent.to_vec()).or_default().push(name.len().min(255) as u16);
            match &entry.kind {
                EntryKind::HardLink { .. } => return Ok(()),
                EntryKind::Directory => drop(names.entry(entry.path.clone()).or_default()),
                EntryKind::Symlink { target } => content.add_link(target.len() as u64),
                EntryKind::Regular { .. } => {
                    let (mut covered, mut blocks) = (0, 0);
                    bytes.each(&mut |offset, piece| {
                        let (first, end) = (offset / block, (offset + piece.len() as u64).div_ceil(block));
                        blocks += end.saturating_sub(first.max(covered));
                        covered = covered.max(end);
                        Ok(())
                    })?;
                    content.add_file(blocks * block);
                }
                _ => content.add_node(),
            }
            let xattrs = entry.xattrs.iter().map(|(name, value)| 16 + name.len() + value.len());
            if xattrs.sum::<usize>() > SHORT_XATTRS {
                content.add_attribute_block();
            }
            Ok(())
        })?;
    }
    for names in names.values() {
        content.add_directory(names.iter().map(|len| usize::from(*len)));
    }
    fit(&content, options, slack).map_err(Error::ext4)
}
