//! The filesystem trait over an open volume.

use std::ops::ControlFlow;

use vmwright_disk::{Extent, FreeMap};
use vmwright_vfs::{
    DirEntry, FileSystem, FileType, Identity, InodeNumber, Metadata, NewNode, RenameMode, Result,
    SetAttributes, StatFs, Timestamp, XattrMode,
};

use crate::error::{Error, ErrorKind, Place};
use crate::inode::{Inode, ROOT_INODE, flags};
use crate::protect;
use crate::volume::Ext4;

/// Inode numbers have 32 bits on the volume.
fn narrow(inode: InodeNumber) -> Result<u32, Error> {
    u32::try_from(inode.0).map_err(|_| Error::corrupt(Place::Inode(inode.0), "there is no such inode"))
}

fn wide(inode: u32) -> InodeNumber {
    InodeNumber(inode.into())
}

impl Ext4 {
    fn inode_of(&self, inode: InodeNumber) -> Result<Inode, Error> {
        self.inode(narrow(inode)?)
    }

    fn directory_of(&self, inode: InodeNumber) -> Result<Inode, Error> {
        self.directory(narrow(inode)?)
    }

    /// The space an inode takes. Inline content counts as if it had sectors, as for kernels.
    fn allocated(&self, inode: &Inode) -> u64 {
        let inline = inode.file_type == FileType::Regular && inode.has_flag(flags::INLINE_DATA);
        let inline_sectors = if inline { inode.size.div_ceil(512) } else { 0 };
        inode.sectors.saturating_add(inline_sectors).saturating_mul(512)
    }

    fn regular_of(&self, inode: InodeNumber) -> Result<Inode, Error> {
        let inode = self.inode_of(inode)?;
        match inode.file_type {
            FileType::Regular => Ok(inode),
            _ => Err(Error::plain(ErrorKind::InvalidInput, "the inode is not a regular file")),
        }
    }
}

impl FileSystem for Ext4 {
    fn identity(&self) -> Identity {
        Identity {
            kind: self.superblock.features.generation(),
            label: self.superblock.label(),
            uuid: Some(self.superblock.uuid().to_string()),
        }
    }

    fn statfs(&self) -> Result<StatFs> {
        let superblock = &self.superblock;
        let free_blocks = superblock.free_blocks * u64::from(superblock.cluster_blocks);
        Ok(StatFs {
            block_size: superblock.block_size,
            blocks: superblock.blocks.saturating_sub(self.overhead()),
            free_blocks,
            available_blocks: free_blocks.saturating_sub(superblock.reserved_blocks()),
            inodes: superblock.inodes.into(),
            free_inodes: superblock.free_inodes.into(),
            name_max: crate::dir_block::NAME_MAX as u32,
        })
    }

    fn is_read_only(&self) -> bool {
        !self.writable
    }

    fn root(&self) -> InodeNumber {
        wide(ROOT_INODE)
    }

    fn lookup(&self, dir: InodeNumber, name: &[u8]) -> Result<InodeNumber> {
        let dir = self.directory_of(dir)?;
        let found = self.find_name(&dir, name)?;
        let found = found.ok_or_else(|| Error::plain(ErrorKind::NotFound, "there is no such name"))?;
        self.check_nameable(found.inode)?;
        Ok(wide(found.inode))
    }

    fn read_dir(&self, dir: InodeNumber, visit: &mut dyn FnMut(DirEntry) -> ControlFlow<()>) -> Result<()> {
        let dir = self.directory_of(dir)?;
        let mut failed = None;
        self.visit_names(&dir, &mut |name, inode, file_type| match self.entry_file_type(inode, file_type) {
            Ok(file_type) => visit(DirEntry { name: name.to_vec(), inode: wide(inode), file_type }),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        })?;
        failed.map_or(Ok(()), |error| Err(error.into()))
    }

    fn metadata(&self, inode: InodeNumber) -> Result<Metadata> {
        let number = inode;
        let inode = self.inode_of(number)?;
        Ok(Metadata {
            inode: number,
            file_type: inode.file_type,
            mode: inode.permissions,
            uid: inode.uid,
            gid: inode.gid,
            size: inode.size,
            links: inode.links.into(),
            device: inode.device(),
            allocated: self.allocated(&inode),
            accessed: inode.accessed,
            modified: inode.modified,
            changed: inode.changed,
            created: inode.created,
        })
    }

    fn read_at(&self, inode: InodeNumber, buf: &mut [u8], offset: u64) -> Result<usize> {
        Ok(self.read_content(&self.regular_of(inode)?, buf, offset)?)
    }

    fn extent_at(&self, inode: InodeNumber, offset: u64) -> Result<Extent> {
        Ok(self.content_extent(&self.regular_of(inode)?, offset)?)
    }

    fn read_link(&self, inode: InodeNumber) -> Result<Vec<u8>> {
        let inode = self.inode_of(inode)?;
        if inode.file_type != FileType::Symlink {
            return Err(Error::plain(ErrorKind::InvalidInput, "the inode is not a symbolic link").into());
        }
        Ok(self.link_target(&inode)?)
    }

    fn xattr_names(&self, inode: InodeNumber) -> Result<Vec<Vec<u8>>> {
        Ok(self.attribute_names(&self.inode_of(inode)?)?)
    }

    fn xattr(&self, inode: InodeNumber, name: &[u8]) -> Result<Vec<u8>> {
        let value = self.attribute(&self.inode_of(inode)?, name)?;
        Ok(value.ok_or_else(|| Error::plain(ErrorKind::NotFound, "there is no such attribute"))?)
    }

    fn create(&mut self, dir: InodeNumber, name: &[u8], node: &NewNode) -> Result<InodeNumber> {
        Ok(wide(self.create_node(narrow(dir)?, name, node)?))
    }

    fn link(&mut self, inode: InodeNumber, dir: InodeNumber, name: &[u8]) -> Result<()> {
        Ok(self.link_node(narrow(inode)?, narrow(dir)?, name)?)
    }

    fn unlink(&mut self, dir: InodeNumber, name: &[u8]) -> Result<()> {
        Ok(self.unlink_name(narrow(dir)?, name)?)
    }

    fn rmdir(&mut self, dir: InodeNumber, name: &[u8]) -> Result<()> {
        Ok(self.remove_directory(narrow(dir)?, name)?)
    }

    fn rename(
        &mut self,
        from: (InodeNumber, &[u8]),
        to: (InodeNumber, &[u8]),
        mode: RenameMode,
    ) -> Result<()> {
        Ok(self.rename_name((narrow(from.0)?, from.1), (narrow(to.0)?, to.1), mode)?)
    }

    fn write_at(&mut self, inode: InodeNumber, data: &[u8], offset: u64) -> Result<()> {
        self.check_writable()?;
        let inode = self.regular_of(inode)?;
        Ok(self.write_content(inode, data, offset)?)
    }

    fn truncate(&mut self, inode: InodeNumber, size: u64) -> Result<()> {
        self.check_writable()?;
        let inode = self.regular_of(inode)?;
        Ok(self.truncate_content(inode, size)?)
    }

    fn punch(&mut self, inode: InodeNumber, offset: u64, len: u64) -> Result<()> {
        self.check_writable()?;
        let inode = self.regular_of(inode)?;
        Ok(self.punch_content(inode, offset, len)?)
    }

    fn allocate(&mut self, inode: InodeNumber, offset: u64, len: u64, keep_size: bool) -> Result<()> {
        self.check_writable()?;
        let inode = self.regular_of(inode)?;
        Ok(self.allocate_content(inode, offset, len, keep_size)?)
    }

    fn set_attributes(&mut self, inode: InodeNumber, attributes: &SetAttributes) -> Result<()> {
        self.check_writable()?;
        let mut inode = self.inode_of(inode)?;
        protect::check_free(&inode)?;
        let before = inode.clone();
        let owner = (attributes.uid.unwrap_or(inode.uid), attributes.gid.unwrap_or(inode.gid));
        self.reserve_quota(owner.0, owner.1, inode.project)?;
        if let Some(mode) = attributes.mode {
            self.change_mode(&mut inode, mode)?;
        }
        (inode.uid, inode.gid) = owner;
        inode.accessed = attributes.accessed.unwrap_or(inode.accessed);
        inode.modified = attributes.modified.unwrap_or(inode.modified);
        // An inode without the field has no time of birth to change.
        inode.created = inode.created.map(|created| attributes.created.unwrap_or(created));
        inode.changed = self.now;
        self.put_inode(&inode)?;
        Ok(self.move_values(&before, &inode)?)
    }

    fn set_xattr(&mut self, inode: InodeNumber, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()> {
        self.check_writable()?;
        let inode = self.inode_of(inode)?;
        protect::check_free(&inode)?;
        Ok(self.set_attribute(inode, name, value, mode)?)
    }

    fn remove_xattr(&mut self, inode: InodeNumber, name: &[u8]) -> Result<()> {
        self.check_writable()?;
        let inode = self.inode_of(inode)?;
        protect::check_free(&inode)?;
        Ok(self.remove_attribute(inode, name)?)
    }

    fn set_label(&mut self, label: &[u8]) -> Result<()> {
        Ok(self.change_label(label)?)
    }

    fn set_uuid(&mut self, uuid: &str) -> Result<()> {
        Ok(self.change_uuid(uuid)?)
    }

    fn free_map(&self) -> Option<&dyn FreeMap> {
        Some(self)
    }

    fn set_now(&mut self, now: Timestamp) {
        self.now = now;
    }

    fn sync(&mut self) -> Result<()> {
        Ok(self.sync_volume()?)
    }
}
