//! Directories made ready for checksums, or for doing without an index.

use super::Tuning;
use crate::dir_block::{DirFormat, Entry};
use crate::error::Result;
use crate::htree;
use crate::inode::{Inode, flags};
use crate::mapping::RunPlace;
use crate::reseal;
use crate::volume::Ext4;

/// A name that found no room in its block any more.
pub(super) struct Homeless {
    directory: u32,
    name: Vec<u8>,
    inode: u32,
    file_type: u8,
}

/// Calls `each` with every directory that has blocks.
fn each_directory(volume: &mut Ext4, each: &mut dyn FnMut(&mut Ext4, Inode) -> Result<()>) -> Result<()> {
    for group in 0..volume.superblock.groups {
        for number in reseal::used_inodes(volume, group)? {
            let bytes = reseal::record(volume, number)?;
            let Some(inode) = reseal::made(volume, number, &bytes)? else { continue };
            if inode.is_directory() && inode.has_blocks(&volume.superblock) {
                each(volume, inode)?;
            }
        }
    }
    Ok(())
}

impl Tuning<'_> {
    /// Makes room for a checksum in every block of every directory of a volume that has none yet. Names that do
    /// not fit any more are kept for later.
    pub(super) fn make_room_for_checksums(&mut self) -> Result<()> {
        let homeless = &mut self.homeless;
        each_directory(&mut self.volume, &mut |volume, inode| {
            let old = volume.directory_format(&inode);
            // Any seed: what counts is the room.
            let format = DirFormat { seed: Some(0), ..old };
            let indexed = reseal::indexed(&volume.superblock, &inode);
            if indexed && !index_has_room(volume, &inode, &old, &format)? {
                unindex(volume, &inode)?;
            }
            let inode = volume.inode(inode.number)?;
            let nodes = reseal::index_nodes(volume, &inode, &old)?;
            for logical in 0..volume.directory_blocks(&inode) {
                let RunPlace::Written(block) = volume.run_at(&inode, logical.into())?.place else { continue };
                let bytes = volume.cache.read(block)?.to_vec();
                if nodes.contains(&logical) {
                    continue;
                }
                let size = bytes.len();
                let mut entries = Vec::new();
                for entry in old.entries(&bytes) {
                    let entry = entry?;
                    if entry.inode != 0 {
                        entries.push(entry);
                    }
                }
                let used = |entries: &[Entry<'_>]| {
                    entries.iter().map(|entry| crate::dir_block::entry_size(entry.name.len())).sum::<usize>()
                };
                while used(&entries) > size - TAIL {
                    let Some(last) = entries.pop() else { break };
                    homeless.push(Homeless {
                        directory: inode.number,
                        name: last.name.to_vec(),
                        inode: last.inode,
                        file_type: last.file_type,
                    });
                }
                let new = format.packed_block(size, entries);
                volume.cache.put(block, new)?;
            }
            Ok(())
        })
    }

    /// Makes plain directories of those that are indexed.
    pub(super) fn unindex_all(&mut self) -> Result<()> {
        each_directory(&mut self.volume, &mut |volume, inode| match reseal::indexed(
            &volume.superblock,
            &inode,
        ) {
            true => unindex(volume, &inode),
            false => Ok(()),
        })
    }

    /// Whether any directory is indexed.
    pub(super) fn has_index(&mut self) -> Result<bool> {
        let mut found = false;
        each_directory(&mut self.volume, &mut |volume, inode| {
            found |= reseal::indexed(&volume.superblock, &inode);
            Ok(())
        })?;
        Ok(found)
    }
}

/// The bytes that a checksum takes at the end of a block.
const TAIL: usize = 12;

fn index_has_room(volume: &Ext4, inode: &Inode, old: &DirFormat, new: &DirFormat) -> Result<bool> {
    for logical in reseal::index_nodes(volume, inode, old)? {
        let bytes = volume.cache.read(volume.directory_block(inode, logical)?)?.to_vec();
        let mut node = match logical {
            0 => htree::Node::root(old, bytes)?,
            _ => htree::Node::inner(old, logical, bytes)?,
        };
        if !node.convert(new) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Makes a plain directory of an indexed one: nodes become blocks without names.
fn unindex(volume: &mut Ext4, inode: &Inode) -> Result<()> {
    let format = volume.directory_format(inode);
    let size = volume.superblock.block_size as usize;
    for logical in reseal::index_nodes(volume, inode, &format)? {
        let block = volume.directory_block(inode, logical)?;
        if logical > 0 {
            volume.cache.put(block, format.empty_block(size))?;
            continue;
        }
        let bytes = volume.cache.read(block)?.to_vec();
        let unsealed = DirFormat { seed: None, ..format };
        let two: Vec<Entry<'_>> = unsealed.entries(&bytes).take(2).collect::<Result<_>>()?;
        let plain = format.packed_block(size, two);
        volume.cache.put(block, plain)?;
    }
    let plain = Inode { flags: inode.flags & !flags::INDEX, ..inode.clone() };
    volume.put_inode(&plain)
}

/// Gives names a place again, in a volume that is open as it is now.
pub(super) fn settle(volume: &mut Ext4, homeless: Vec<Homeless>) -> Result<()> {
    for Homeless { directory, name, inode, file_type } in homeless {
        let file_type = volume.entry_file_type(inode, file_type)?;
        let before = volume.directory(directory)?;
        volume.add_name(directory, &name, inode, file_type)?;
        // No name is new, so the times stay.
        let mut after = volume.directory(directory)?;
        (after.modified, after.changed) = (before.modified, before.changed);
        volume.put_inode(&after)?;
    }
    Ok(())
}

/// Whether any inode in use is one that a condition holds for.
pub(super) fn any_inode(volume: &Ext4, is: &dyn Fn(&Inode) -> bool) -> Result<bool> {
    for group in 0..volume.superblock.groups {
        for number in reseal::used_inodes(volume, group)? {
            let bytes = reseal::record(volume, number)?;
            if reseal::made(volume, number, &bytes)?.is_some_and(|inode| is(&inode)) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}
