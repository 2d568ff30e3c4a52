//! Giving inodes of groups that go away numbers in those that stay, and leading everything to them.

use std::collections::{BTreeSet, HashMap};

use super::space::Space;
use crate::bitmap;
use crate::checksum::crc32c;
use crate::dir_block::{decode_rec_len, get_u16, get_u32, put_u32};
use crate::error::{Error, ErrorKind, Place, Result};
use crate::group::INODE_UNINIT;
use crate::inode::{Inode, flags};
use crate::mapping::RunPlace;
use crate::reseal;
use crate::volume::Ext4;
use crate::xattr;

/// Old numbers and new ones.
#[derive(Default)]
pub(crate) struct Numbers {
    new: HashMap<u32, u32>,
    /// Groups whose inode bitmaps were looked at, and those that were changed.
    ready: BTreeSet<u32>,
    changed: BTreeSet<u32>,
    /// No inode before this one is free.
    cursor: u32,
}

impl Numbers {
    pub(crate) fn is_empty(&self) -> bool {
        self.new.is_empty()
    }

    pub(crate) fn len(&self) -> u64 {
        self.new.len() as u64
    }

    /// The new numbers with the old ones.
    pub(crate) fn reversed(&self) -> HashMap<u32, u32> {
        self.new.iter().map(|(old, new)| (*new, *old)).collect()
    }

    /// The number that an inode has now.
    pub(crate) fn of(&self, number: u32) -> u32 {
        self.new.get(&number).copied().unwrap_or(number)
    }

    fn checksum(volume: &Ext4, bits: &[u8]) -> u32 {
        let len = volume.superblock.inodes_per_group as usize / 8;
        crc32c(volume.superblock.checksum_seed, &bits[..len.min(bits.len())])
    }

    /// The block of a group's inode bitmap, checked or made when first asked for.
    fn bitmap(&mut self, volume: &mut Ext4, group: u32) -> Result<u64> {
        let descriptor = volume.groups.get(group)?.clone();
        if !self.ready.insert(group) {
            return Ok(descriptor.inode_bitmap);
        }
        if descriptor.flags & INODE_UNINIT != 0 {
            let mut bits = vec![0; volume.superblock.block_size as usize];
            let all = volume.superblock.block_size * 8;
            bitmap::fill(&mut bits, volume.superblock.inodes_per_group, all, true);
            volume.cache.put(descriptor.inode_bitmap, bits)?;
            volume.groups.modify(group)?.flags &= !INODE_UNINIT;
        } else if volume.superblock.features.metadata_csum() {
            let actual = Self::checksum(volume, &volume.cache.read(descriptor.inode_bitmap)?);
            let mask = if volume.superblock.desc_size >= 64 { u32::MAX } else { 0xffff };
            let expected = descriptor.inode_bitmap_csum;
            if (expected ^ actual) & mask != 0 {
                let what = "the inode bitmap's checksum";
                return Err(Error::mismatch(Place::Group(group), what, expected.into(), actual.into()));
            }
        }
        Ok(descriptor.inode_bitmap)
    }

    /// Moves the inodes of all groups from `kept` on into those before.
    pub(crate) fn empty_groups(&mut self, volume: &mut Ext4, space: &mut Space, kept: u32) -> Result<()> {
        for group in kept..volume.groups.count() {
            for number in reseal::used_inodes(volume, group)? {
                let bytes = reseal::record(volume, number)?;
                let inode = reseal::made(volume, number, &bytes)?;
                let directory = inode.as_ref().is_some_and(Inode::is_directory);
                let new = self.take(volume, space, kept, directory)?;
                match inode {
                    Some(inode) => volume.put_inode(&Inode { number: new, ..inode })?,
                    None => reseal::put_record(volume, new, &bytes)?,
                }
                self.new.insert(number, new);
            }
        }
        Ok(())
    }

    /// Takes a free inode in one of the groups before `kept`.
    pub(crate) fn take(
        &mut self,
        volume: &mut Ext4,
        space: &mut Space,
        kept: u32,
        directory: bool,
    ) -> Result<u32> {
        let per_group = volume.superblock.inodes_per_group;
        self.cursor = self.cursor.max(volume.superblock.first_inode() - 1);
        for group in self.cursor / per_group..kept {
            let from = self.cursor.saturating_sub(group * per_group);
            if volume.groups.get(group)?.free_inodes == 0 || from >= per_group {
                continue;
            }
            let block = self.bitmap(volume, group)?;
            let index = bitmap::find(&volume.cache.read(block)?, from, per_group, false);
            if index == per_group {
                continue;
            }
            // A group with inodes in use has a block bitmap too, as kernels see to.
            space.touch(volume, group)?;
            bitmap::fill(volume.cache.modify(block)?, index, index + 1, true);
            let descriptor = volume.groups.modify(group)?;
            descriptor.free_inodes = descriptor.free_inodes.saturating_sub(1);
            descriptor.used_dirs = descriptor.used_dirs.saturating_add(directory.into());
            descriptor.itable_unused = descriptor.itable_unused.min(per_group - index - 1);
            self.changed.insert(group);
            self.cursor = group * per_group + index + 1;
            return Ok(group * per_group + index + 1);
        }
        Err(Error::plain(ErrorKind::NoSpace, "the smaller filesystem would have too few inodes"))
    }

    /// Gives an inode back that is no directory.
    pub(crate) fn release(&mut self, volume: &mut Ext4, number: u32) -> Result<()> {
        volume.inode_location(number)?;
        let per_group = volume.superblock.inodes_per_group;
        let (group, index) = ((number - 1) / per_group, (number - 1) % per_group);
        let block = self.bitmap(volume, group)?;
        bitmap::fill(volume.cache.modify(block)?, index, index + 1, false);
        let descriptor = volume.groups.modify(group)?;
        descriptor.free_inodes = descriptor.free_inodes.saturating_add(1);
        self.changed.insert(group);
        Ok(())
    }

    /// Makes the bitmap of a group where it was never written.
    pub(crate) fn touch(&mut self, volume: &mut Ext4, group: u32) -> Result<()> {
        if volume.groups.get(group)?.flags & INODE_UNINIT != 0 {
            self.bitmap(volume, group)?;
            self.changed.insert(group);
        }
        Ok(())
    }

    /// Enters the checksums of the changed bitmaps into the descriptors.
    pub(crate) fn settle(&mut self, volume: &mut Ext4) -> Result<()> {
        for group in std::mem::take(&mut self.changed) {
            let bits = volume.cache.read(volume.groups.get(group)?.inode_bitmap)?;
            let checksum = Self::checksum(volume, &bits);
            if volume.superblock.features.metadata_csum() {
                volume.groups.modify(group)?.inode_bitmap_csum = checksum;
            }
        }
        Ok(())
    }

    /// Leads all names, parents and attributes of an inode to the new numbers.
    pub(crate) fn fix(&self, volume: &mut Ext4, number: u32, old: u32) -> Result<()> {
        let bytes = reseal::record(volume, number)?;
        let Some(mut inode) = reseal::made(volume, number, &bytes)? else { return Ok(()) };
        let before = inode.clone();
        if inode.is_directory() {
            match inode.has_flag(flags::INLINE_DATA) {
                true => {
                    let parent = self.of(get_u32(&inode.block, 0));
                    put_u32(&mut inode.block, 0, parent);
                    self.fix_chain(&mut inode.block[4..], number)?;
                }
                false => self.fix_directory(volume, &inode, old)?,
            }
        }
        let area = inode.attribute_area();
        if area.len() > 4 && get_u32(&inode.record, area.start) == xattr::MAGIC {
            let start = area.start + 4;
            let names = inode.is_directory() && inode.has_flag(flags::INLINE_DATA);
            self.fix_attributes(&mut inode.record[start..area.end], 0, number, names)?;
        }
        if inode.xattr_block != 0 {
            self.fix_attribute_block(volume, &inode)?;
        }
        if inode.has_flag(flags::EA_INODE) {
            self.fix_back_reference(&mut inode);
        }
        if inode != before {
            volume.put_inode(&inode)?;
        }
        Ok(())
    }

    fn fix_directory(&self, volume: &mut Ext4, inode: &Inode, old: u32) -> Result<()> {
        let new_format = volume.directory_format(inode);
        let old_format = volume.directory_format(&Inode { number: old, ..inode.clone() });
        let nodes = reseal::index_nodes(volume, inode, &old_format)?;
        for logical in 0..volume.directory_blocks(inode) {
            let RunPlace::Written(block) = volume.run_at(inode, logical.into())?.place else { continue };
            let mut bytes = volume.cache.read(block)?.to_vec();
            let node = nodes.contains(&logical);
            // What is checked is what was there; then it is changed, and sealed once more.
            reseal::seal_directory_block(&old_format, &new_format, node, logical, &mut bytes)?;
            if self.fix_chain(&mut bytes, inode.number)? {
                reseal::seal_again(&new_format, node, logical, &mut bytes);
            } else if old == inode.number {
                continue;
            }
            volume.cache.put(block, bytes)?;
        }
        Ok(())
    }

    /// Leads the names of a chain to the new numbers; answers whether any changed.
    fn fix_chain(&self, chain: &mut [u8], directory: u32) -> Result<bool> {
        let (mut at, mut changed) = (0, false);
        while at + 8 <= chain.len() {
            let rec_len = decode_rec_len(get_u16(chain, at + 4), chain.len());
            if rec_len < 8 || rec_len > chain.len() - at {
                let problem = "the record length of a directory entry is impossible";
                return Err(Error::corrupt(Place::Inode(directory.into()), problem));
            }
            let number = get_u32(chain, at);
            if number != 0 && self.of(number) != number {
                put_u32(chain, at, self.of(number));
                changed = true;
            }
            at += rec_len;
        }
        Ok(changed)
    }

    /// Leads the entries of attributes from `start` on to the new numbers, and the names of a directory that are
    /// kept as one; answers whether any changed.
    fn fix_attributes(&self, area: &mut [u8], start: usize, number: u32, names: bool) -> Result<bool> {
        let (mut at, mut changed) = (start, false);
        // Four zero bytes end the list.
        while at + 16 <= area.len() && get_u32(area, at) != 0 {
            let (name_len, index) = (usize::from(area[at]), area[at + 1]);
            let holder = get_u32(area, at + 4);
            if holder != 0 {
                if self.of(holder) != holder {
                    put_u32(area, at + 4, self.of(holder));
                    changed = true;
                }
            } else if names
                && index == xattr::INLINE_DATA.0
                && area.get(at + 16..at + 16 + name_len) == Some(xattr::INLINE_DATA.1)
            {
                changed |= self.fix_inline(area, at, number)?;
            }
            at += (16 + name_len).next_multiple_of(4);
        }
        Ok(changed)
    }

    /// Fixes the names of an inline directory that are kept as an attribute.
    fn fix_inline(&self, area: &mut [u8], entry: usize, number: u32) -> Result<bool> {
        let (offset, size) = (usize::from(get_u16(area, entry + 2)), get_u32(area, entry + 8) as usize);
        let Some(value) = offset.checked_add(size).and_then(|end| area.get_mut(offset..end)) else {
            let problem = "the value of an extended attribute does not lie in its area";
            return Err(Error::corrupt(Place::Inode(number.into()), problem));
        };
        if size == 0 || !self.fix_chain(value, number)? {
            return Ok(false);
        }
        if get_u32(area, entry + 12) != 0 {
            let hash = xattr::entry_hash(xattr::INLINE_DATA.1, &area[offset..offset + size]);
            put_u32(area, entry + 12, hash);
        }
        Ok(true)
    }

    fn fix_attribute_block(&self, volume: &mut Ext4, inode: &Inode) -> Result<()> {
        let seed = volume.superblock.features.metadata_csum().then_some(volume.superblock.checksum_seed);
        let mut bytes = volume.cache.read(inode.xattr_block)?.to_vec();
        xattr::verify_block(&bytes, inode.xattr_block, seed)?;
        // A block that several inodes share is found changed from the second one on.
        if self.fix_attributes(&mut bytes, 32, inode.number, false)? {
            xattr::seal_block(&mut bytes, inode.xattr_block, seed);
            volume.cache.put(inode.xattr_block, bytes)?;
        }
        Ok(())
    }

    /// Values kept as Lustre once did name their only owner where others have the time of modification.
    fn fix_back_reference(&self, inode: &mut Inode) {
        let owner = u32::try_from(inode.modified.seconds).unwrap_or(0);
        if self.of(owner) != owner && inode.modified.nanoseconds == 0 {
            inode.modified.seconds = self.of(owner).into();
        }
    }
}
