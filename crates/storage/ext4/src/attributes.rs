//! Extended attributes of inodes: where their areas are, and what becomes of the block outside.

use vmwright_vfs::{FileType, XattrMode};

use crate::error::{Error, ErrorKind, Place, Result};
use crate::inode::{Inode, flags};
use crate::layout::CLASSIC_INODE_SIZE;
use crate::volume::Ext4;
use crate::xattr::{self, Attributes, BlockPlan, INLINE_DATA, Value};

/// The longest value that is read from an inode of its own.
const MAX_VALUE: u64 = 1 << 16;

const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";

impl Inode {
    /// Where in the record the inode's own attributes are.
    fn attribute_area(&self) -> std::ops::Range<usize> {
        // Records without extra fields are from before attributes could be here.
        match self.extra_isize {
            0 => self.record.len()..self.record.len(),
            extra => (CLASSIC_INODE_SIZE + usize::from(extra)).min(self.record.len())..self.record.len(),
        }
    }
}

impl Ext4 {
    /// The seed of the checksums of attribute blocks, which may belong to several inodes.
    fn attribute_seed(&self) -> Option<u32> {
        self.superblock.features.metadata_csum().then_some(self.superblock.checksum_seed)
    }

    /// Reads all attributes of an inode.
    pub(crate) fn attributes(&self, inode: &Inode) -> Result<Attributes> {
        let block = match inode.xattr_block {
            0 => None,
            number => {
                if !self.superblock.is_valid_block(number) {
                    let place = Place::Inode(inode.number.into());
                    return Err(Error::corrupt(place, "its attribute block lies outside the volume"));
                }
                let block = self.cache.read(number)?;
                xattr::verify_block(&block, number, self.attribute_seed())?;
                Some(block)
            }
        };
        let area = &inode.record[inode.attribute_area()];
        let block = block.as_deref().map(Vec::as_slice);
        Attributes::decode(inode.number.into(), area, block, self.superblock.block_size as usize)
    }

    /// The part of inline content that is kept as an attribute.
    pub(crate) fn inline_tail(&self, inode: &Inode) -> Result<Vec<u8>> {
        match self.attributes(inode)?.raw(INLINE_DATA) {
            Some(value) => self.value(inode, value),
            None => Ok(Vec::new()),
        }
    }

    /// The names of all attributes.
    pub(crate) fn attribute_names(&self, inode: &Inode) -> Result<Vec<Vec<u8>>> {
        Ok(self.attributes(inode)?.names())
    }

    /// The value of an attribute.
    pub(crate) fn attribute(&self, inode: &Inode, name: &[u8]) -> Result<Option<Vec<u8>>> {
        // A name that cannot be on the volume is absent.
        if xattr::split_name(name).is_err() {
            return Ok(None);
        }
        let value = self.attributes(inode)?.get(name)?;
        value.map(|value| self.value(inode, &value)).transpose()
    }

    fn value(&self, owner: &Inode, value: &Value) -> Result<Vec<u8>> {
        let (number, size) = match value {
            Value::Here(bytes) => return Ok(bytes.clone()),
            Value::Inode { inode, size, .. } => (*inode, *size),
        };
        let inode = self.inode(number)?;
        if !inode.has_flag(flags::EA_INODE) || inode.size != u64::from(size) || number == owner.number {
            let place = Place::Inode(number.into());
            return Err(Error::corrupt(place, "it does not hold the attribute that is said to be in it"));
        }
        self.read_whole(&inode, MAX_VALUE)
    }

    /// Sets an attribute.
    pub(crate) fn set_attribute(
        &mut self,
        mut inode: Inode,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
    ) -> Result<()> {
        let mut attributes = self.attributes(&inode)?;
        if name == ACL_DEFAULT && !inode.is_directory() {
            return Err(Error::plain(ErrorKind::InvalidInput, "only directories have a default ACL"));
        }
        if (name == ACL_ACCESS || name == ACL_DEFAULT) && inode.file_type == FileType::Symlink {
            return Err(Error::plain(ErrorKind::InvalidInput, "symbolic links have no ACL"));
        }
        if name == ACL_ACCESS {
            let (permissions, kept) = xattr::acl_apply_to_mode(value, inode.permissions)?;
            // One that says no more than the mode is not kept.
            attributes.set(name, kept.as_deref().unwrap_or_default(), mode)?;
            inode.permissions = permissions;
        } else {
            attributes.set(name, value, mode)?;
        }
        self.store_attributes(inode, &attributes)
    }

    /// Removes an attribute.
    pub(crate) fn remove_attribute(&mut self, inode: Inode, name: &[u8]) -> Result<()> {
        let mut attributes = self.attributes(&inode)?;
        attributes.remove(name)?;
        self.store_attributes(inode, &attributes)
    }

    /// Makes the access ACL, where there is one, agree with new permissions.
    pub(crate) fn change_mode(&mut self, inode: &mut Inode, permissions: u16) -> Result<()> {
        inode.permissions = permissions & 0xfff;
        let Some(acl) = self.attribute(inode, ACL_ACCESS)? else { return Ok(()) };
        let acl = xattr::acl_after_chmod(&acl, inode.permissions)?;
        let mut attributes = self.attributes(inode)?;
        attributes.set(ACL_ACCESS, &acl, XattrMode::Set)?;
        self.place_attributes(inode, &attributes)
    }

    fn store_attributes(&mut self, mut inode: Inode, attributes: &Attributes) -> Result<()> {
        self.place_attributes(&mut inode, attributes)?;
        inode.changed = self.now;
        self.put_inode(&inode)
    }

    /// Puts attributes into the record and the block outside; the record is left to the caller.
    pub(crate) fn place_attributes(&mut self, inode: &mut Inode, attributes: &Attributes) -> Result<()> {
        let old = inode.xattr_block;
        let seed = self.attribute_seed();
        match attributes.block_plan() {
            BlockPlan::Keep => {}
            BlockPlan::Rewrite => self.cache.put(old, attributes.encode_block(old, seed))?,
            BlockPlan::Allocate { release } => {
                let goal = self.metadata_goal(inode);
                let (new, _) = self.allocate_blocks(goal, 1)?;
                self.cache.put(new, attributes.encode_block(new, seed))?;
                inode.xattr_block = new;
                match release {
                    true => xattr::release_block(self.cache.modify(old)?, old, seed),
                    false => inode.sectors += self.superblock.cluster_sectors(),
                }
            }
            BlockPlan::Release | BlockPlan::Free => self.drop_attribute_block(inode)?,
        }
        let area = inode.attribute_area();
        attributes.encode_inode(&mut inode.record[area]);
        Ok(())
    }

    /// Gives up the block outside, which other inodes may go on using.
    pub(crate) fn drop_attribute_block(&mut self, inode: &mut Inode) -> Result<()> {
        let number = inode.xattr_block;
        if number == 0 {
            return Ok(());
        }
        let place = Place::Block(number);
        let references = xattr::block_references(place, &self.cache.read(number)?)?;
        let seed = self.attribute_seed();
        match references {
            1 => self.free_blocks(number, 1)?,
            _ => xattr::release_block(self.cache.modify(number)?, number, seed),
        }
        inode.xattr_block = 0;
        inode.sectors = inode.sectors.saturating_sub(self.superblock.cluster_sectors());
        Ok(())
    }

    /// Refuses to remove an inode with attributes in inodes of their own, whose counts would have to follow.
    pub(crate) fn check_attributes_removable(&self, inode: &Inode) -> Result<()> {
        let feature = crate::features::incompat::EA_INODE;
        if self.superblock.features.has_incompat(feature) && self.attributes(inode)?.has_outside_values() {
            return Err(Error::unsupported("removing a file whose attributes are in inodes of their own"));
        }
        Ok(())
    }
}
