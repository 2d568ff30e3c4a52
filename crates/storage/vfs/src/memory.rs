use std::collections::BTreeMap;
use std::ops::ControlFlow;

use vmwright_disk::{Extent, ExtentKind};

use crate::{
    DeviceNumber, DirEntry, Error, ErrorKind, FileSystem, FileType, Identity, InodeNumber, Metadata, NewNode,
    NodeKind, RenameMode, Result, SetAttributes, StatFs, Timestamp, XattrMode,
};

const ROOT: InodeNumber = InodeNumber(2);

/// The most names that a file can have, as in ext4.
const MAX_LINKS: u32 = 65_000;
/// The longest name.
const NAME_MAX: usize = 255;
/// The longest target of a symbolic link.
const MAX_TARGET: usize = 4095;
/// The longest value of an extended attribute.
const MAX_VALUE: usize = 1 << 16;
/// The largest file.
const MAX_SIZE: u64 = 1 << 40;
/// The longest label.
const MAX_LABEL: usize = 16;

/// A filesystem that lives in memory, for tests of what uses filesystems.
#[derive(Debug)]
pub struct MemoryFs {
    nodes: BTreeMap<InodeNumber, Node>,
    next: u64,
    now: Timestamp,
    label: Vec<u8>,
    uuid: Option<String>,
}

#[derive(Debug, Clone)]
struct Node {
    metadata: Metadata,
    content: Content,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

#[derive(Debug, Clone)]
enum Content {
    Bytes(Vec<u8>),
    Names(BTreeMap<Vec<u8>, InodeNumber>),
    Target(Vec<u8>),
    Nothing,
}

impl Default for MemoryFs {
    fn default() -> Self {
        let mut fs = Self {
            nodes: BTreeMap::new(),
            next: ROOT.0,
            now: Timestamp::default(),
            label: Vec::new(),
            uuid: None,
        };
        let root = NewNode { kind: NodeKind::Directory, mode: 0o755, uid: 0, gid: 0 };
        fs.add(&root);
        fs.touch(ROOT, |metadata| metadata.links = 2);
        fs
    }
}

fn fail<T>(kind: ErrorKind, detail: &'static str) -> Result<T> {
    Err(Error::new(kind, detail))
}

impl MemoryFs {
    fn add(&mut self, node: &NewNode) -> InodeNumber {
        let inode = InodeNumber(self.next);
        self.next += 1;
        let mut device = DeviceNumber::default();
        let (file_type, content) = match &node.kind {
            NodeKind::Regular => (FileType::Regular, Content::Bytes(Vec::new())),
            NodeKind::Directory => (FileType::Directory, Content::Names(BTreeMap::new())),
            NodeKind::Symlink(target) => (FileType::Symlink, Content::Target(target.clone())),
            NodeKind::CharDevice(number) => {
                device = *number;
                (FileType::CharDevice, Content::Nothing)
            }
            NodeKind::BlockDevice(number) => {
                device = *number;
                (FileType::BlockDevice, Content::Nothing)
            }
            NodeKind::Fifo => (FileType::Fifo, Content::Nothing),
            NodeKind::Socket => (FileType::Socket, Content::Nothing),
        };
        let size = if let Content::Target(target) = &content { target.len() as u64 } else { 0 };
        let now = self.now;
        let metadata = Metadata {
            inode,
            file_type,
            mode: node.mode,
            uid: node.uid,
            gid: node.gid,
            size,
            links: 0,
            device,
            allocated: 0,
            accessed: now,
            modified: now,
            changed: now,
            created: Some(now),
        };
        self.nodes.insert(inode, Node { metadata, content, xattrs: BTreeMap::new() });
        inode
    }

    /// Enters a name without any check, for tests of what must not trust a filesystem.
    pub fn force_name(&mut self, dir: InodeNumber, name: &[u8], inode: InodeNumber) {
        if let Ok(names) = self.names_mut(dir) {
            names.insert(name.to_vec(), inode);
        }
    }

    fn node(&self, inode: InodeNumber) -> Result<&Node> {
        self.nodes.get(&inode).ok_or_else(|| Error::new(ErrorKind::NotFound, "no such inode"))
    }

    fn node_mut(&mut self, inode: InodeNumber) -> Result<&mut Node> {
        self.nodes.get_mut(&inode).ok_or_else(|| Error::new(ErrorKind::NotFound, "no such inode"))
    }

    fn touch(&mut self, inode: InodeNumber, change: impl FnOnce(&mut Metadata)) {
        let now = self.now;
        if let Some(node) = self.nodes.get_mut(&inode) {
            change(&mut node.metadata);
            node.metadata.changed = now;
        }
    }

    fn names(&self, dir: InodeNumber) -> Result<&BTreeMap<Vec<u8>, InodeNumber>> {
        match &self.node(dir)?.content {
            Content::Names(names) => Ok(names),
            _ => fail(ErrorKind::InvalidInput, "not a directory"),
        }
    }

    fn names_mut(&mut self, dir: InodeNumber) -> Result<&mut BTreeMap<Vec<u8>, InodeNumber>> {
        let now = self.now;
        let node = self.node_mut(dir)?;
        match &mut node.content {
            Content::Names(names) => {
                (node.metadata.modified, node.metadata.changed) = (now, now);
                Ok(names)
            }
            _ => fail(ErrorKind::InvalidInput, "not a directory"),
        }
    }

    fn bytes_mut(&mut self, inode: InodeNumber) -> Result<&mut Vec<u8>> {
        let now = self.now;
        let node = self.node_mut(inode)?;
        match &mut node.content {
            Content::Bytes(bytes) => {
                (node.metadata.modified, node.metadata.changed) = (now, now);
                Ok(bytes)
            }
            _ => fail(ErrorKind::InvalidInput, "not a regular file"),
        }
    }

    /// Where a range of a regular file ends.
    fn end_of(&self, inode: InodeNumber, offset: u64, len: u64) -> Result<usize> {
        if !matches!(self.node(inode)?.content, Content::Bytes(_)) {
            return fail(ErrorKind::InvalidInput, "not a regular file");
        }
        let end = offset.checked_add(len).filter(|end| *end <= MAX_SIZE);
        let end = end.and_then(|end| usize::try_from(end).ok());
        end.ok_or_else(|| Error::new(ErrorKind::InvalidInput, "the file would be larger than it can be"))
    }

    fn is_dir(&self, inode: InodeNumber) -> bool {
        self.node(inode).is_ok_and(|node| node.metadata.file_type == FileType::Directory)
    }

    fn require_free(&self, dir: InodeNumber, name: &[u8]) -> Result<()> {
        let reserved = matches!(name, b"" | b"." | b"..");
        if reserved || name.len() > NAME_MAX || name.contains(&b'/') || name.contains(&0) {
            return fail(ErrorKind::InvalidInput, "not a name");
        }
        match self.names(dir)?.contains_key(name) {
            true => fail(ErrorKind::Exists, "the name exists"),
            false => Ok(()),
        }
    }

    /// Whether `inode` is `dir` or lies somewhere beneath it.
    fn holds(&self, dir: InodeNumber, inode: InodeNumber) -> bool {
        dir == inode || self.names(dir).is_ok_and(|names| names.values().any(|&name| self.holds(name, inode)))
    }

    /// Adds a name, and counts the link that a directory's `..` is.
    fn enter(&mut self, dir: InodeNumber, name: &[u8], inode: InodeNumber) -> Result<()> {
        self.names_mut(dir)?.insert(name.to_vec(), inode);
        if self.is_dir(inode) {
            self.touch(dir, |metadata| metadata.links += 1);
        }
        Ok(())
    }

    fn leave(&mut self, dir: InodeNumber, name: &[u8]) -> Result<InodeNumber> {
        let inode = self.lookup(dir, name)?;
        self.names_mut(dir)?.remove(name);
        if self.is_dir(inode) {
            self.touch(dir, |metadata| metadata.links -= 1);
        }
        Ok(inode)
    }
}

impl FileSystem for MemoryFs {
    fn identity(&self) -> Identity {
        Identity { kind: "memory", label: self.label.clone(), uuid: self.uuid.clone() }
    }

    fn statfs(&self) -> Result<StatFs> {
        let inodes = self.nodes.len() as u64;
        Ok(StatFs {
            block_size: 4096,
            blocks: 0,
            free_blocks: 0,
            available_blocks: 0,
            inodes,
            free_inodes: 0,
            name_max: NAME_MAX as u32,
        })
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn root(&self) -> InodeNumber {
        ROOT
    }

    fn lookup(&self, dir: InodeNumber, name: &[u8]) -> Result<InodeNumber> {
        let inode = self.names(dir)?.get(name).copied();
        inode.ok_or_else(|| Error::new(ErrorKind::NotFound, "no such file or directory"))
    }

    fn read_dir(&self, dir: InodeNumber, visit: &mut dyn FnMut(DirEntry) -> ControlFlow<()>) -> Result<()> {
        for (name, &inode) in self.names(dir)? {
            let file_type = self.node(inode)?.metadata.file_type;
            if visit(DirEntry { name: name.clone(), inode, file_type }).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn metadata(&self, inode: InodeNumber) -> Result<Metadata> {
        let node = self.node(inode)?;
        let mut metadata = node.metadata.clone();
        if let Content::Bytes(bytes) = &node.content {
            (metadata.size, metadata.allocated) = (bytes.len() as u64, bytes.len() as u64);
        }
        Ok(metadata)
    }

    fn read_at(&self, inode: InodeNumber, buf: &mut [u8], offset: u64) -> Result<usize> {
        let Content::Bytes(bytes) = &self.node(inode)?.content else {
            return fail(ErrorKind::InvalidInput, "not a regular file");
        };
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        let count = buf.len().min(bytes.len() - start);
        buf[..count].copy_from_slice(&bytes[start..start + count]);
        Ok(count)
    }

    fn extent_at(&self, inode: InodeNumber, offset: u64) -> Result<Extent> {
        let metadata = self.metadata(inode)?;
        if metadata.file_type != FileType::Regular {
            return fail(ErrorKind::InvalidInput, "not a regular file");
        }
        let size = metadata.size;
        vmwright_disk::check_range(offset, 1, size)?;
        Ok(Extent { start: offset, len: size - offset, kind: ExtentKind::Opaque, depth: 0 })
    }

    fn read_link(&self, inode: InodeNumber) -> Result<Vec<u8>> {
        match &self.node(inode)?.content {
            Content::Target(target) => Ok(target.clone()),
            _ => fail(ErrorKind::InvalidInput, "not a symbolic link"),
        }
    }

    fn xattr_names(&self, inode: InodeNumber) -> Result<Vec<Vec<u8>>> {
        Ok(self.node(inode)?.xattrs.keys().cloned().collect())
    }

    fn xattr(&self, inode: InodeNumber, name: &[u8]) -> Result<Vec<u8>> {
        let value = self.node(inode)?.xattrs.get(name).cloned();
        value.ok_or_else(|| Error::new(ErrorKind::NotFound, "no such attribute"))
    }

    fn create(&mut self, dir: InodeNumber, name: &[u8], node: &NewNode) -> Result<InodeNumber> {
        self.require_free(dir, name)?;
        if let NodeKind::Symlink(target) = &node.kind
            && (!(1..=MAX_TARGET).contains(&target.len()) || target.contains(&0))
        {
            return fail(ErrorKind::InvalidInput, "not a target");
        }
        let inode = self.add(node);
        let links = if self.is_dir(inode) { 2 } else { 1 };
        self.touch(inode, |metadata| metadata.links = links);
        self.enter(dir, name, inode)?;
        Ok(inode)
    }

    fn link(&mut self, inode: InodeNumber, dir: InodeNumber, name: &[u8]) -> Result<()> {
        self.require_free(dir, name)?;
        if self.is_dir(inode) {
            return fail(ErrorKind::InvalidInput, "is a directory");
        }
        if self.node(inode)?.metadata.links >= MAX_LINKS {
            return fail(ErrorKind::NoSpace, "the file has as many names as it can");
        }
        self.enter(dir, name, inode)?;
        self.touch(inode, |metadata| metadata.links += 1);
        Ok(())
    }

    fn unlink(&mut self, dir: InodeNumber, name: &[u8]) -> Result<()> {
        if self.is_dir(self.lookup(dir, name)?) {
            return fail(ErrorKind::InvalidInput, "is a directory");
        }
        let inode = self.leave(dir, name)?;
        self.touch(inode, |metadata| metadata.links -= 1);
        if self.node(inode)?.metadata.links == 0 {
            self.nodes.remove(&inode);
        }
        Ok(())
    }

    fn rmdir(&mut self, dir: InodeNumber, name: &[u8]) -> Result<()> {
        if !self.names(self.lookup(dir, name)?)?.is_empty() {
            return fail(ErrorKind::InvalidInput, "the directory is not empty");
        }
        let inode = self.leave(dir, name)?;
        self.nodes.remove(&inode);
        Ok(())
    }

    fn rename(
        &mut self,
        from: (InodeNumber, &[u8]),
        to: (InodeNumber, &[u8]),
        mode: RenameMode,
    ) -> Result<()> {
        let moved = self.lookup(from.0, from.1)?;
        let target = self.names(to.0)?.get(to.1).copied();
        let into_target =
            mode == RenameMode::Exchange && target.is_some_and(|target| self.holds(target, from.0));
        if self.holds(moved, to.0) || into_target {
            return fail(ErrorKind::InvalidInput, "a directory cannot move into itself");
        }
        match (target, mode) {
            (Some(_), RenameMode::NoReplace) => return fail(ErrorKind::Exists, "the name exists"),
            (Some(target), _) if target == moved => return Ok(()),
            (None, RenameMode::Exchange) => return fail(ErrorKind::NotFound, "nothing to swap with"),
            (Some(target), RenameMode::Exchange) => {
                self.leave(from.0, from.1)?;
                self.leave(to.0, to.1)?;
                self.enter(from.0, from.1, target)?;
                self.touch(target, |_| {});
                self.touch(moved, |_| {});
                return self.enter(to.0, to.1, moved);
            }
            (Some(target), RenameMode::Replace) if self.is_dir(target) != self.is_dir(moved) => {
                return fail(ErrorKind::InvalidInput, "one is a directory and the other is not");
            }
            (Some(target), RenameMode::Replace) if self.is_dir(target) => self.rmdir(to.0, to.1)?,
            (Some(_), RenameMode::Replace) => self.unlink(to.0, to.1)?,
            (None, _) => self.require_free(to.0, to.1)?,
        }
        self.leave(from.0, from.1)?;
        self.touch(moved, |_| {});
        self.enter(to.0, to.1, moved)
    }

    fn write_at(&mut self, inode: InodeNumber, data: &[u8], offset: u64) -> Result<()> {
        let end = self.end_of(inode, offset, data.len() as u64)?;
        if data.is_empty() {
            return Ok(());
        }
        let bytes = self.bytes_mut(inode)?;
        bytes.resize(bytes.len().max(end), 0);
        bytes[end - data.len()..end].copy_from_slice(data);
        Ok(())
    }

    fn truncate(&mut self, inode: InodeNumber, size: u64) -> Result<()> {
        let size = self.end_of(inode, size, 0)?;
        self.bytes_mut(inode)?.resize(size, 0);
        Ok(())
    }

    fn allocate(&mut self, inode: InodeNumber, offset: u64, len: u64, keep_size: bool) -> Result<()> {
        let end = self.end_of(inode, offset, len)?;
        if len == 0 {
            return fail(ErrorKind::InvalidInput, "there is nothing to take space for");
        }
        let bytes = self.bytes_mut(inode)?;
        if !keep_size {
            bytes.resize(bytes.len().max(end), 0);
        }
        Ok(())
    }

    fn punch(&mut self, inode: InodeNumber, offset: u64, len: u64) -> Result<()> {
        let size = match &self.node(inode)?.content {
            Content::Bytes(bytes) => bytes.len(),
            _ => return fail(ErrorKind::InvalidInput, "not a regular file"),
        };
        let index = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(size);
        let range = index(offset)..index(offset.saturating_add(len));
        if !range.is_empty() {
            self.bytes_mut(inode)?[range].fill(0);
        }
        Ok(())
    }

    fn set_attributes(&mut self, inode: InodeNumber, attributes: &SetAttributes) -> Result<()> {
        self.node(inode)?;
        self.touch(inode, |metadata| {
            metadata.mode = attributes.mode.unwrap_or(metadata.mode);
            metadata.uid = attributes.uid.unwrap_or(metadata.uid);
            metadata.gid = attributes.gid.unwrap_or(metadata.gid);
            metadata.accessed = attributes.accessed.unwrap_or(metadata.accessed);
            metadata.modified = attributes.modified.unwrap_or(metadata.modified);
            metadata.created = attributes.created.or(metadata.created);
        });
        Ok(())
    }

    fn set_xattr(&mut self, inode: InodeNumber, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()> {
        let bare = name.iter().position(|&byte| byte == b'.').map_or(name, |dot| &name[dot + 1..]);
        if bare.len() > NAME_MAX || value.len() > MAX_VALUE {
            return fail(ErrorKind::InvalidInput, "too long for an attribute");
        }
        let xattrs = &mut self.node_mut(inode)?.xattrs;
        match (xattrs.contains_key(name), mode) {
            (true, XattrMode::Create) => return fail(ErrorKind::Exists, "the attribute exists"),
            (false, XattrMode::Replace) => return fail(ErrorKind::NotFound, "no such attribute"),
            _ => xattrs.insert(name.to_vec(), value.to_vec()),
        };
        self.touch(inode, |_| {});
        Ok(())
    }

    fn remove_xattr(&mut self, inode: InodeNumber, name: &[u8]) -> Result<()> {
        if self.node_mut(inode)?.xattrs.remove(name).is_none() {
            return fail(ErrorKind::NotFound, "no such attribute");
        }
        self.touch(inode, |_| {});
        Ok(())
    }

    fn set_label(&mut self, label: &[u8]) -> Result<()> {
        if label.len() > MAX_LABEL || label.contains(&0) {
            return fail(ErrorKind::InvalidInput, "not a label");
        }
        self.label = label.to_vec();
        Ok(())
    }

    fn set_uuid(&mut self, uuid: &str) -> Result<()> {
        let shape = |(at, byte): (usize, u8)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        };
        if uuid.len() != 36 || !uuid.bytes().enumerate().all(shape) {
            return fail(ErrorKind::InvalidInput, "not an identifier");
        }
        self.uuid = Some(uuid.to_ascii_lowercase());
        Ok(())
    }

    fn set_now(&mut self, now: Timestamp) {
        self.now = now;
    }

    fn sync(&mut self) -> Result<()> {
        Ok(())
    }
}
