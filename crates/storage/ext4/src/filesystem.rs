//! The filesystem trait over an open volume.

use std::ops::ControlFlow;

use vmwright_disk::Extent;
use vmwright_vfs::{
    DirEntry, FileSystem, FileType, Identity, InodeNumber, Metadata, NewNode, RenameMode, Result,
    SetAttributes, StatFs, Timestamp, XattrMode,
};

use crate::error::{Error, ErrorKind, Place};
use crate::inode::{Inode, ROOT_INODE};
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
        Ok(StatFs {
            block_size: superblock.block_size,
            blocks: superblock.blocks.saturating_sub(self.overhead()),
            free_blocks: superblock.free_blocks,
            available_blocks: superblock.free_blocks.saturating_sub(superblock.reserved_blocks()),
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
        Ok(wide(found.ok_or_else(|| Error::plain(ErrorKind::NotFound, "there is no such name"))?.inode))
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
            allocated: inode.sectors.saturating_mul(512),
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

    fn create(&mut self, _dir: InodeNumber, _name: &[u8], _node: &NewNode) -> Result<InodeNumber> {
        Err(read_only())
    }

    fn link(&mut self, _inode: InodeNumber, _dir: InodeNumber, _name: &[u8]) -> Result<()> {
        Err(read_only())
    }

    fn unlink(&mut self, _dir: InodeNumber, _name: &[u8]) -> Result<()> {
        Err(read_only())
    }

    fn rmdir(&mut self, _dir: InodeNumber, _name: &[u8]) -> Result<()> {
        Err(read_only())
    }

    fn rename(
        &mut self,
        _from: (InodeNumber, &[u8]),
        _to: (InodeNumber, &[u8]),
        _mode: RenameMode,
    ) -> Result<()> {
        Err(read_only())
    }

    fn write_at(&mut self, _inode: InodeNumber, _data: &[u8], _offset: u64) -> Result<()> {
        Err(read_only())
    }

    fn truncate(&mut self, _inode: InodeNumber, _size: u64) -> Result<()> {
        Err(read_only())
    }

    fn punch(&mut self, _inode: InodeNumber, _offset: u64, _len: u64) -> Result<()> {
        Err(read_only())
    }

    fn set_attributes(&mut self, _inode: InodeNumber, _attributes: &SetAttributes) -> Result<()> {
        Err(read_only())
    }

    fn set_xattr(
        &mut self,
        _inode: InodeNumber,
        _name: &[u8],
        _value: &[u8],
        _mode: XattrMode,
    ) -> Result<()> {
        Err(read_only())
    }

    fn remove_xattr(&mut self, _inode: InodeNumber, _name: &[u8]) -> Result<()> {
        Err(read_only())
    }

    fn set_now(&mut self, now: Timestamp) {
        self.now = now;
    }

    fn sync(&mut self) -> Result<()> {
        Ok(())
    }
}

fn read_only() -> vmwright_vfs::Error {
    Error::plain(ErrorKind::ReadOnly, "the filesystem is open for reading only").into()
}
