use std::ops::ControlFlow;

use vmwright_disk::Extent;

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

    /// Gives an inode that is no directory another name.
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

    /// Changes attributes. The change time becomes [`FileSystem::set_now`]'s.
    fn set_attributes(&mut self, inode: InodeNumber, attributes: &SetAttributes) -> Result<()>;

    /// Sets an extended attribute.
    fn set_xattr(&mut self, inode: InodeNumber, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()>;

    /// Removes an extended attribute; kind `NotFound` where there is none of that name.
    fn remove_xattr(&mut self, inode: InodeNumber, name: &[u8]) -> Result<()>;

    /// Sets the time that changes from now on are stamped with; the driver never reads a clock.
    fn set_now(&mut self, now: Timestamp);

    /// Writes everything pending to the disk beneath, which then holds a consistent, clean volume.
    fn sync(&mut self) -> Result<()>;
}
