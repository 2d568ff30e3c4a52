//! Content that is kept within the inode: the first 60 bytes in its block map's place, the rest as the
//! extended attribute `system.data`.
//!
//! ```text
//! file       60 bytes of content                  │ system.data: what follows
//! directory  parent · a chain of entries (56)     │ system.data: another chain, once the first is full
//! ```
//!
//! Content that outgrows both moves into blocks and stays there.

use std::ops::Range;

use vmwright_vfs::FileType;

use crate::dir_block::DirFormat;
use crate::directory::{Found, Visit};
use crate::error::{Error, ErrorKind, Place, Result};
use crate::features::incompat;
use crate::inode::{Inode, flags};
use crate::names::NameChange;
use crate::volume::Ext4;
use crate::xattr::INLINE_DATA;

/// The bytes in the place of the block map.
const HEAD: usize = 60;

/// The bytes of an inline directory that hold its parent, in place of `.` and `..`.
const PARENT: usize = 4;

/// The shortest chain of entries: one that is free.
const SHORTEST_CHAIN: usize = 12;

impl Ext4 {
    /// The inline content that is stored. That of a file may end before the file does: the rest is zeros.
    fn inline_content(&self, inode: &Inode) -> Result<Vec<u8>> {
        let mut content = inode.block.to_vec();
        content.extend(self.inline_tail(inode)?);
        if inode.size > content.len() as u64 && inode.file_type != FileType::Regular {
            let place = Place::Inode(inode.number.into());
            let (expected, actual) = (content.len() as u64, inode.size);
            return Err(Error::mismatch(place, "the size of inline content, at most", expected, actual));
        }
        content.truncate(usize::try_from(inode.size).unwrap_or(usize::MAX));
        Ok(content)
    }

    /// Fills `buf`, which lies within the inode's size, from inline content.
    pub(crate) fn read_inline(&self, inode: &Inode, buf: &mut [u8], offset: u64) -> Result<()> {
        let content = self.inline_content(inode)?;
        let at = usize::try_from(offset).unwrap_or(usize::MAX).min(content.len());
        let stored = &content[at..];
        let len = stored.len().min(buf.len());
        buf[..len].copy_from_slice(&stored[..len]);
        buf[len..].fill(0);
        Ok(())
    }

    /// Replaces inline content, or begins it; answers whether it fits, and changes nothing where it does not.
    fn place_inline(&mut self, inode: &mut Inode, content: &[u8]) -> Result<bool> {
        let mut attributes = self.attributes(inode)?;
        let (head, tail) = content.split_at(content.len().min(HEAD));
        match attributes.set_raw(INLINE_DATA, tail.to_vec()) {
            Err(error) if error.kind() == ErrorKind::NoSpace => return Ok(false),
            result => result?,
        }
        self.place_attributes(inode, &attributes)?;
        inode.block = [0; HEAD];
        inode.block[..head.len()].copy_from_slice(head);
        inode.flags = inode.flags & !flags::EXTENTS | flags::INLINE_DATA;
        Ok(true)
    }

    /// Whether a file keeps its content inline, or will where it fits: files that have none yet begin so.
    fn may_be_inline(&self, inode: &Inode) -> bool {
        if inode.has_flag(flags::INLINE_DATA) {
            return true;
        }
        let mut fresh = inode.clone();
        self.start_map(&mut fresh);
        let barred = flags::ENCRYPT | flags::VERITY | flags::EA_INODE;
        self.superblock.features.has_incompat(incompat::INLINE_DATA)
            && inode.size == 0
            && !inode.has_flag(barred)
            && (inode.flags, inode.block) == (fresh.flags, fresh.block)
    }

    /// Writes to a file where it stays inline, or begins to be so; answers whether it does.
    pub(crate) fn write_inline(&mut self, inode: &mut Inode, data: &[u8], offset: u64) -> Result<bool> {
        let end = offset.saturating_add(data.len() as u64);
        if end > self.superblock.inode_size.into() || !self.may_be_inline(inode) {
            return Ok(false);
        }
        let mut content = if inode.size > 0 { self.inline_content(inode)? } else { Vec::new() };
        let (start, end) = (offset as usize, end as usize);
        content.resize(content.len().max(end), 0);
        content[start..end].copy_from_slice(data);
        let fits = self.place_inline(inode, &content)?;
        if fits {
            inode.size = inode.size.max(end as u64);
        }
        Ok(fits)
    }

    /// Changes the length of an inline file where it stays inline; answers whether it does.
    pub(crate) fn truncate_inline(&mut self, inode: &mut Inode, size: u64) -> Result<bool> {
        if !inode.has_flag(flags::INLINE_DATA) || size > self.superblock.inode_size.into() {
            return Ok(false);
        }
        let mut content = self.inline_content(inode)?;
        content.resize(size as usize, 0);
        let fits = self.place_inline(inode, &content)?;
        if fits {
            inode.size = size;
        }
        Ok(fits)
    }

    /// Makes a range of an inline file zeros; answers whether the file is inline.
    pub(crate) fn punch_inline(&mut self, inode: &mut Inode, range: Range<u64>) -> Result<bool> {
        if !inode.has_flag(flags::INLINE_DATA) {
            return Ok(false);
        }
        let mut content = self.inline_content(inode)?;
        let [start, end] = [range.start, range.end].map(|at| at.min(content.len() as u64) as usize);
        content[start..end].fill(0);
        self.place_inline(inode, &content)
    }

    /// Moves inline content into blocks.
    pub(crate) fn move_inline_out(&mut self, inode: &mut Inode) -> Result<()> {
        if !inode.has_flag(flags::INLINE_DATA) {
            return Ok(());
        }
        let before = inode.clone();
        let content = self.inline_content(inode)?;
        let first_block = if inode.is_directory() { Some(self.inline_names(inode)?) } else { None };
        self.drop_inline(inode)?;
        let result = match first_block {
            Some(block) => self.add_first_block(inode, block),
            None => self.write_blocks(inode, &content, 0).1,
        };
        if result.is_err() {
            *inode = before;
            return result;
        }
        // Whatever comes next may fail, and the blocks are taken.
        self.put_inode(inode)
    }

    /// Gives up inline content and begins a map of blocks in its place.
    pub(crate) fn drop_inline(&mut self, inode: &mut Inode) -> Result<()> {
        let mut attributes = self.attributes(inode)?;
        if attributes.raw(INLINE_DATA).is_some() {
            attributes.remove_raw(INLINE_DATA)?;
        }
        self.place_attributes(inode, &attributes)?;
        inode.flags &= !flags::INLINE_DATA;
        self.start_map(inode);
        Ok(())
    }

    /// The names of an inline directory as the block of a directory.
    fn inline_names(&self, inode: &Inode) -> Result<Vec<u8>> {
        let format = self.directory_format(inode);
        let parent = inline_parent(inode);
        let mut block = format.first_block(self.superblock.block_size as usize, inode.number, parent);
        let mut result = Ok(true);
        self.visit_inline(inode, &mut |name, inode, file_type| {
            result = format.insert(&mut block, name, inode, file_type);
            match result {
                Ok(true) => std::ops::ControlFlow::Continue(()),
                _ => std::ops::ControlFlow::Break(()),
            }
        })?;
        match result? {
            true => Ok(block),
            false => Err(Error::plain(ErrorKind::NoSpace, "the inline names do not fit into a block")),
        }
    }

    /// Makes a new directory inline where the volume keeps such; answers whether it does.
    pub(crate) fn start_inline_directory(&mut self, inode: &mut Inode, parent: u32) -> Result<bool> {
        if !self.superblock.features.has_incompat(incompat::INLINE_DATA) {
            return Ok(false);
        }
        let mut content = parent.to_le_bytes().to_vec();
        content.extend(self.chain_format(inode).empty_block(HEAD - PARENT));
        let fits = self.place_inline(inode, &content)?;
        if fits {
            inode.size = HEAD as u64;
        }
        Ok(fits)
    }

    /// The chains of inline directories carry no checksums: that of the inode covers them.
    fn chain_format(&self, dir: &Inode) -> DirFormat {
        DirFormat { seed: None, ..self.directory_format(dir) }
    }

    /// Finds a name in an inline directory.
    pub(crate) fn find_inline(&self, dir: &Inode, name: &[u8]) -> Result<Option<Found>> {
        if name == b"." || name == b".." {
            let inode = if name == b"." { dir.number } else { inline_parent(dir) };
            return Ok(Some(Found { inode, file_type: crate::dir_block::TYPE_DIRECTORY }));
        }
        self.scan(dir, name)
    }

    /// Visits the names of an inline directory: one chain in the block map's place, one in the attribute.
    pub(crate) fn visit_inline(&self, dir: &Inode, visit: Visit<'_>) -> Result<()> {
        let format = self.chain_format(dir);
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

    /// Changes the names of an inline directory; answers whether the change fits. The record is left to the caller.
    pub(crate) fn change_inline_names(&mut self, dir: &mut Inode, change: NameChange<'_>) -> Result<bool> {
        let format = self.chain_format(dir);
        let mut content = self.inline_content(dir)?;
        if content.len() < HEAD {
            return Err(Error::corrupt(Place::Inode(dir.number.into()), "an inline directory is too short"));
        }
        let (head, rest) = content.split_at_mut(HEAD);
        let (parent, first) = head.split_at_mut(PARENT);
        match change {
            NameChange::Parent(number) => parent.copy_from_slice(&number.to_le_bytes()),
            NameChange::Remove { name } => {
                if format.remove(first, name)?.is_none() && !rest.is_empty() {
                    format.remove(rest, name)?;
                }
            }
            NameChange::Lead { name, inode, file_type } => {
                if !format.set_inode(first, name, inode, file_type)? && !rest.is_empty() {
                    format.set_inode(rest, name, inode, file_type)?;
                }
            }
            NameChange::Add { name, inode, file_type } => {
                if !format.insert(first, name, inode, file_type)? {
                    let mut rest = rest.to_vec();
                    if rest.is_empty() {
                        let room = self.attributes(dir)?.inline_room();
                        rest = if room < SHORTEST_CHAIN { Vec::new() } else { format.empty_block(room) };
                    }
                    if rest.is_empty() || !format.insert(&mut rest, name, inode, file_type)? {
                        return Ok(false);
                    }
                    content.truncate(HEAD);
                    content.extend(rest);
                }
            }
        }
        let fits = self.place_inline(dir, &content)?;
        if fits {
            dir.size = content.len() as u64;
        }
        Ok(fits)
    }
}

fn inline_parent(dir: &Inode) -> u32 {
    u32::from_le_bytes([dir.block[0], dir.block[1], dir.block[2], dir.block[3]])
}
