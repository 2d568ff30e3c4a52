use std::ops::ControlFlow;

use vmwright_disk::{Extent, FreeMap};

use crate::{
    DeviceNumber, DirEntry, Identity, InodeNumber, Metadata, Result, SetAttributes, StatFs, Timestamp,
};

/// What a new inode is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum NodeKind {
    Regular,
    Directory,
    /// A symbolic link with its target.
    Symlink(Vec<u8>),
    CharDevice(DeviceNumber),
    BlockDevice(DeviceNumber),
    Fifo,
    Socket,
}

/// A new inode's kind and first attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewNode {
    /// What it is.
    pub kind: NodeKind,
    /// Permission, set-id and sticky bits, taken as they are: no umask is applied.
    pub mode: u16,
    /// The owner.
    pub uid: u32,
    /// The group. A set-gid directory does not override it.
    pub gid: u32,
}

/// What a rename does when the target exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenameMode {
    /// Replaces it, as POSIX `rename` does.
    Replace,
    /// Fails with kind `Exists`.
    NoReplace,
    /// Swaps the two.
    Exchange,
}

/// What setting an extended attribute does when the name exists, or does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XattrMode {
    /// Sets it either way.
    Set,
    /// Fails with kind `Exists` where it exists.
    Create,
    /// Fails with kind `NotFound` where it does not.
    Replace,
}

/// A mounted filesystem.
///
/// Reading takes `&self` and may run in parallel; changing takes `&mut self`. Changes are visible to reads
/// at once and reach the disk beneath at the latest with [`FileSystem::sync`]; what is on that disk in
/// between is not a consistent volume, which is why callers put a transaction beneath it. Names are bytes.
/// Extended attribute names carry their prefix (`user.`, `security.` …); ACLs are the attributes
/// `system.posix_acl_access` and `system.posix_acl_default` in the format of Linux.
///
/// # Times
///
/// Reading never changes the time of access. A new inode has [`FileSystem::set_now`]'s time in all four of its times;
/// changing content sets the times of modification and change, changing anything else of the inode (attributes,
/// links, a rename) the time of change. A directory in which a name appears, disappears or is given to another inode
/// counts as changed in content. [`FileSystem::set_attributes`] can set every time but that of change, which says
/// when that was done. A format that keeps seconds only drops the rest; times that it cannot hold become the nearest.
///
/// # Errors
///
/// What is asked of the wrong sort of inode (content of a directory, names in a file, the target of what is no
/// symbolic link, a directory that is not empty), a name or value that the format cannot hold, and a place in a file
/// past the format's limit are of kind `InvalidInput`; a name or attribute that is not there `NotFound`; what no block, inode or
/// link count is left for `NoSpace`; changes to what is open for reading `ReadOnly`; changes that the driver cannot
/// make soundly `Unsupported`; and what contradicts the format `Corrupt`. Where two apply, either is told. A change
/// that fails has changed nothing that can be seen, but for [`FileSystem::write_at`], which may have written the first part.
pub trait FileSystem: Send + Sync {
    /// What the filesystem calls itself.
    fn identity(&self) -> Identity;

    /// How full it is.
    fn statfs(&self) -> Result<StatFs>;

    /// Whether every change is refused with kind `ReadOnly`.
    fn is_read_only(&self) -> bool;

    /// The inode of the root directory.
    fn root(&self) -> InodeNumber;

    /// Finds `name` in the directory `dir`; kind `NotFound` where it is absent.
    fn lookup(&self, dir: InodeNumber, name: &[u8]) -> Result<InodeNumber>;

    /// Calls `visit` with each name in `dir`, in an order of the driver's own, until it breaks.
    fn read_dir(&self, dir: InodeNumber, visit: &mut dyn FnMut(DirEntry) -> ControlFlow<()>) -> Result<()>;

    /// What is known of an inode.
    fn metadata(&self, inode: InodeNumber) -> Result<Metadata>;

    /// Reads from a regular file; answers how many bytes, fewer than asked only at the end.
    fn read_at(&self, inode: InodeNumber, buf: &mut [u8], offset: u64) -> Result<usize>;

    /// Where the bytes of a file from `offset` on are, on the disk beneath the filesystem.
    ///
    /// `ExtentKind::Data` here carries the offset and file of that disk's own extent. `offset` must be less
    /// than the file's size; the extent starts at it.
    fn extent_at(&self, inode: InodeNumber, offset: u64) -> Result<Extent>;

    /// The target of a symbolic link.
    fn read_link(&self, inode: InodeNumber) -> Result<Vec<u8>>;

    /// The names of all extended attributes.
    fn xattr_names(&self, inode: InodeNumber) -> Result<Vec<Vec<u8>>>;

    /// The value of an extended attribute; kind `NotFound` where there is none of that name.
    fn xattr(&self, inode: InodeNumber, name: &[u8]) -> Result<Vec<u8>>;

    /// Makes a new inode and names it in `dir`.
    fn create(&mut self, dir: InodeNumber, name: &[u8], node: &NewNode) -> Result<InodeNumber>;

    /// Gives an inode that is no directory another name; kind `NoSpace` where it has as many as it can.
    fn link(&mut self, inode: InodeNumber, dir: InodeNumber, name: &[u8]) -> Result<()>;

    /// Removes a name that is no directory; its inode goes with the last name.
    fn unlink(&mut self, dir: InodeNumber, name: &[u8]) -> Result<()>;

    /// Removes an empty directory.
    fn rmdir(&mut self, dir: InodeNumber, name: &[u8]) -> Result<()>;

    /// Moves a name.
    fn rename(
        &mut self,
        from: (InodeNumber, &[u8]),
        to: (InodeNumber, &[u8]),
        mode: RenameMode,
    ) -> Result<()>;

    /// Writes to a regular file, making it longer where needed.
    fn write_at(&mut self, inode: InodeNumber, data: &[u8], offset: u64) -> Result<()>;

    /// Changes a file's length; new bytes read as zeros and take no space.
    fn truncate(&mut self, inode: InodeNumber, size: u64) -> Result<()>;

    /// Makes a range of a file a hole; the length stays.
    fn punch(&mut self, inode: InodeNumber, offset: u64, len: u64) -> Result<()>;

    /// Takes space for a range of a regular file, so that writing to it later needs none.
    ///
    /// Content stays, what was a hole reads as zeros. A file that ended before the range's end becomes that long,
    /// unless `keep_size`: then the space lies past its end, where the format knows such; kind `Unsupported` where not.
    /// A range of no bytes is of kind `InvalidInput`.
    fn allocate(&mut self, inode: InodeNumber, offset: u64, len: u64, keep_size: bool) -> Result<()>;

    /// Changes attributes. The change time becomes [`FileSystem::set_now`]'s.
    fn set_attributes(&mut self, inode: InodeNumber, attributes: &SetAttributes) -> Result<()>;

    /// Sets an extended attribute.
    fn set_xattr(&mut self, inode: InodeNumber, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()>;

    /// Removes an extended attribute; kind `NotFound` where there is none of that name.
    fn remove_xattr(&mut self, inode: InodeNumber, name: &[u8]) -> Result<()>;

    /// Sets the time that changes from now on are stamped with; the driver never reads a clock.
    fn set_now(&mut self, now: Timestamp);

    /// Gives the filesystem another label; an empty one takes it away.
    fn set_label(&mut self, label: &[u8]) -> Result<()>;

    /// Gives the filesystem another identifier, written as [`Identity::uuid`] shows it.
    fn set_uuid(&mut self, uuid: &str) -> Result<()>;

    /// What of the disk beneath holds nothing that anyone needs, where the driver can tell that for certain.
    ///
    /// Changes must have been synced; asking for the ranges fails otherwise.
    fn free_map(&self) -> Option<&dyn FreeMap> {
        None
    }

    /// Writes everything pending to the disk beneath, which then holds a consistent, clean volume.
    fn sync(&mut self) -> Result<()>;
}
