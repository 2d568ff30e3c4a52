//! Extended attributes of inodes: where their areas are, and what becomes of the block outside.

use vmwright_vfs::{FileType, XattrMode};

use crate::acl;
use crate::error::{Error, ErrorKind, Place, Result};
use crate::features::{compat, incompat};
use crate::inode::{Inode, flags};
use crate::layout::CLASSIC_INODE_SIZE;
use crate::volume::Ext4;
use crate::xattr::{self, Attribute, Attributes, BlockPlan, INLINE_DATA, Value};

const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";

impl Inode {
    /// Where in the record the inode's own attributes are.
    pub(crate) fn attribute_area(&self) -> std::ops::Range<usize> {
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
        let block_size = self.superblock.block_size as usize;
        let mut attributes = Attributes::decode(inode.number.into(), area, block, block_size)?;
        // e2fsck would take the space that a link counts for such values for the blocks of a long target.
        if self.superblock.features.has_incompat(incompat::EA_INODE) && inode.file_type != FileType::Symlink {
            attributes.allow_outside();
        }
        Ok(attributes)
    }

    /// The part of inline content that is kept as an attribute.
    pub(crate) fn inline_tail(&self, inode: &Inode) -> Result<Vec<u8>> {
        match self.attributes(inode)?.raw(INLINE_DATA) {
            None => Ok(Vec::new()),
            Some(Value::Here(value)) => Ok(value.clone()),
            Some(_) => {
                let place = Place::Inode(inode.number.into());
                Err(Error::corrupt(place, "its inline content is in another inode"))
            }
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
        match self.attributes(inode)?.find(name)? {
            None => Ok(None),
            Some(Attribute { value: Value::Here(value), .. }) => Ok(Some(value)),
            Some(attribute) => self.outside_value(inode, &attribute).map(Some),
        }
    }

    /// Sets an attribute.
    pub(crate) fn set_attribute(
        &mut self,
        mut inode: Inode,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
    ) -> Result<()> {
        if !self.superblock.has_features() {
            return Err(Error::unsupported("extended attributes on a volume of revision 0"));
        }
        let mut attributes = self.attributes(&inode)?;
        if name == ACL_DEFAULT && !inode.is_directory() {
            return Err(Error::plain(ErrorKind::InvalidInput, "only directories have a default ACL"));
        }
        if (name == ACL_ACCESS || name == ACL_DEFAULT) && inode.file_type == FileType::Symlink {
            return Err(Error::plain(ErrorKind::InvalidInput, "symbolic links have no ACL"));
        }
        if name == ACL_ACCESS {
            let (permissions, kept) = acl::apply_to_mode(value, inode.permissions)?;
            // One that says no more than the mode is not kept.
            attributes.set(name, kept.as_deref().unwrap_or_default(), mode)?;
            inode.permissions = permissions;
        } else {
            attributes.set(name, value, mode)?;
        }
        self.store_attributes(inode, &attributes)?;
        // Without the feature e2fsck would take the block of attributes for a mistake.
        self.superblock.features.compat |= compat::EXT_ATTR;
        Ok(())
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
        let acl = acl::after_chmod(&acl, inode.permissions)?;
        let mut attributes = self.attributes(inode)?;
        attributes.set(ACL_ACCESS, &acl, XattrMode::Set)?;
        self.place_attributes(inode, &attributes)
    }

    pub(crate) fn store_attributes(&mut self, mut inode: Inode, attributes: &Attributes) -> Result<()> {
        self.place_attributes(&mut inode, attributes)?;
        inode.changed = self.now;
        self.put_inode(&inode)
    }

    /// Puts attributes into the record and the block outside, large values into inodes of their own; the record is
    /// left to the caller.
    pub(crate) fn place_attributes(&mut self, inode: &mut Inode, attributes: &Attributes) -> Result<()> {
        if !self.superblock.features.has_incompat(incompat::EA_INODE) {
            return self.place_areas(inode, attributes);
        }
        let before = self.attributes(inode)?;
        let mut attributes = attributes.clone();
        let made = self.make_values(inode, &mut attributes)?;
        let result = self.change_holders(inode, &before, &attributes, &made, |volume, inode| {
            volume.place_areas(inode, &attributes)
        });
        if result.is_err() {
            for number in made {
                self.remove_value(number)?;
            }
        }
        result
    }

    fn place_areas(&mut self, inode: &mut Inode, attributes: &Attributes) -> Result<()> {
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

    /// Gives up everything that the attributes of an inode take beside it.
    pub(crate) fn drop_attributes(&mut self, inode: &mut Inode) -> Result<()> {
        if self.superblock.features.has_incompat(incompat::EA_INODE) && !inode.has_flag(flags::EA_INODE) {
            let before = self.attributes(inode)?;
            let none = before.without_values();
            return self.change_holders(inode, &before, &none, &[], Self::drop_attribute_block);
        }
        self.drop_attribute_block(inode)
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

    /// Refuses to remove an inode whose attributes cannot be removed with it.
    pub(crate) fn check_attributes_removable(&self, inode: &Inode) -> Result<()> {
        if self.superblock.features.has_incompat(incompat::EA_INODE) {
            let before = self.attributes(inode)?;
            self.holder_changes(inode, &before, &before.without_values(), &[])?;
        }
        Ok(())
    }
}
