//! Making inodes and doing away with them.

use vmwright_vfs::{DeviceNumber, FileType, NewNode, NodeKind};

use crate::checksum::crc32c;
use crate::error::{Error, ErrorKind, Result};
use crate::extents::Node;
use crate::features::incompat;
use crate::inode::{Inode, flags};
use crate::volume::Ext4;

/// The flags that new inodes take over from their directory.
const INHERITED: u32 = 0x1
    | 0x2
    | 0x4
    | 0x8
    | 0x40
    | 0x80
    | 0x400
    | 0x4000
    | 0x8000
    | 0x1_0000
    | 0x200_0000
    | flags::PROJECT_INHERIT
    | flags::CASEFOLD;
/// Those among them that mean something for directories alone.
const FOR_DIRECTORIES: u32 = 0x1_0000 | flags::PROJECT_INHERIT | flags::CASEFOLD;
/// Those that mean something for what is neither file nor directory.
const FOR_OTHERS: u32 = 0x40 | 0x80;

/// The longest target that a symbolic link keeps in its inode.
const FAST_TARGET: usize = 59;

impl Ext4 {
    /// Makes an inode without a name, its first block or target included.
    pub(crate) fn new_inode(&mut self, parent: &Inode, node: &NewNode) -> Result<Inode> {
        let file_type = file_type(&node.kind);
        let directory = file_type == FileType::Directory;
        let number = self.allocate_inode(parent, directory)?;
        let mut inode = Inode::new(&self.superblock, number, file_type, self.now);
        inode.permissions = node.mode & 0xfff;
        inode.uid = node.uid;
        inode.gid = node.gid;
        inode.links = if directory { 2 } else { 1 };
        inode.flags = inherited(parent.flags, file_type);
        if parent.has_flag(flags::PROJECT_INHERIT) {
            inode.project = parent.project;
        }
        inode.generation = self.generation(number);
        match self.fill_new(&mut inode, parent, &node.kind) {
            Ok(()) => Ok(inode),
            Err(error) => {
                self.free_inode(number, directory)?;
                Err(error)
            }
        }
    }

    /// A generation that differs from that of the inode's last life.
    pub(crate) fn generation(&self, number: u32) -> u32 {
        let crc = crc32c(self.superblock.checksum_seed, &number.to_le_bytes());
        let crc = crc32c(crc, &self.now.seconds.to_le_bytes());
        let crc = crc32c(crc, &self.now.nanoseconds.to_le_bytes());
        crc32c(crc, &self.superblock.free_inodes.to_le_bytes())
    }

    fn fill_new(&mut self, inode: &mut Inode, parent: &Inode, kind: &NodeKind) -> Result<()> {
        match kind {
            NodeKind::Regular => self.start_map(inode),
            NodeKind::Directory if self.start_inline_directory(inode, parent.number)? => {}
            NodeKind::Directory => {
                self.start_map(inode);
                let size = self.superblock.block_size as usize;
                let block = self.directory_format(inode).first_block(size, inode.number, parent.number);
                self.add_first_block(inode, block)?;
            }
            NodeKind::Symlink(target) => self.fill_link(inode, target)?,
            NodeKind::CharDevice(device) | NodeKind::BlockDevice(device) => inode.set_device(*device)?,
            NodeKind::Fifo | NodeKind::Socket => {}
        }
        Ok(())
    }

    /// Begins a map of blocks that holds none.
    pub(crate) fn start_map(&self, inode: &mut Inode) {
        inode.block = [0; 60];
        if self.superblock.features.has_incompat(incompat::EXTENTS) {
            inode.flags |= flags::EXTENTS;
            Node::empty().encode(&mut inode.block);
        }
    }

    /// Gives a directory without blocks its first one.
    pub(crate) fn add_first_block(&mut self, inode: &mut Inode, block: Vec<u8>) -> Result<()> {
        let start = self.add_block(inode, 0)?;
        inode.size = block.len() as u64;
        self.cache.put(start, block)
    }

    fn fill_link(&mut self, inode: &mut Inode, target: &[u8]) -> Result<()> {
        let invalid = |detail| Err(Error::plain(ErrorKind::InvalidInput, detail));
        if target.is_empty() || target.contains(&0) {
            return invalid("the target of a symbolic link is not empty and has no zero bytes");
        }
        // The zero byte behind it has to fit too.
        if target.len() >= self.superblock.block_size.min(4096) as usize {
            return invalid("the target of the symbolic link is too long");
        }
        if target.len() <= FAST_TARGET {
            inode.block[..target.len()].copy_from_slice(target);
            inode.size = target.len() as u64;
            return Ok(());
        }
        self.start_map(inode);
        let (_, result) = self.write_blocks(inode, target, 0);
        inode.size = target.len() as u64;
        result
    }

    /// Does away with an inode that no name leads to any more.
    pub(crate) fn remove_inode(&mut self, mut inode: Inode) -> Result<()> {
        let directory = inode.is_directory();
        if inode.has_blocks(&self.superblock) {
            self.unmap(&mut inode, 0..u64::from(u32::MAX) + 1)?;
        }
        self.drop_attributes(&mut inode)?;
        inode.size = 0;
        inode.links = 0;
        inode.changed = self.now;
        // A small number would look like a link in the list of orphans.
        let dtime = u32::try_from(self.now.seconds).unwrap_or(u32::MAX);
        inode.dtime = dtime.max(self.superblock.inodes.saturating_add(1));
        self.put_inode(&inode)?;
        self.free_inode(inode.number, directory)
    }

    /// Refuses to change the names of a directory whose format is not understood.
    pub(crate) fn prepare_directory(&mut self, number: u32) -> Result<Inode> {
        self.check_writable()?;
        let inode = self.directory(number)?;
        crate::protect::check_mutable(&inode)?;
        if inode.has_flag(flags::ENCRYPT) {
            return Err(Error::unsupported("changing the names in an encrypted directory"));
        }
        if inode.has_flag(flags::CASEFOLD) && !self.folds(&inode) {
            return Err(Error::unsupported(
                "changing the names in a directory that folds them in an unknown way",
            ));
        }
        Ok(inode)
    }
}

fn file_type(kind: &NodeKind) -> FileType {
    match kind {
        NodeKind::Regular => FileType::Regular,
        NodeKind::Directory => FileType::Directory,
        NodeKind::Symlink(_) => FileType::Symlink,
        NodeKind::CharDevice(DeviceNumber { .. }) => FileType::CharDevice,
        NodeKind::BlockDevice(DeviceNumber { .. }) => FileType::BlockDevice,
        NodeKind::Fifo => FileType::Fifo,
        NodeKind::Socket => FileType::Socket,
    }
}

fn inherited(parent: u32, file_type: FileType) -> u32 {
    let all = parent & INHERITED;
    match file_type {
        FileType::Directory => all,
        FileType::Regular => all & !FOR_DIRECTORIES,
        _ => all & FOR_OTHERS,
    }
}
