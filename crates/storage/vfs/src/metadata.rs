/// The number of an inode, unique in its filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InodeNumber(pub u64);

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum FileType {
    Regular,
    Directory,
    Symlink,
    CharDevice,
    BlockDevice,
    Fifo,
    Socket,
}

/// A point in time, in seconds and nanoseconds (0 to 999,999,999) since 1970-01-01 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[allow(missing_docs)]
pub struct Timestamp {
    pub seconds: i64,
    pub nanoseconds: u32,
}

/// The number of a device, as Linux splits it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[allow(missing_docs)]
pub struct DeviceNumber {
    pub major: u32,
    pub minor: u32,
}

/// What a filesystem knows of an inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// The inode.
    pub inode: InodeNumber,
    /// What it is.
    pub file_type: FileType,
    /// Permission, set-id and sticky bits: the low twelve bits of `st_mode`.
    pub mode: u16,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The length in bytes.
    pub size: u64,
    /// The number of hard links.
    pub links: u32,
    /// The device, for device nodes.
    pub device: DeviceNumber,
    /// The space taken, in bytes.
    pub allocated: u64,
    /// The time of the last read.
    pub accessed: Timestamp,
    /// The time of the last change to the content.
    pub modified: Timestamp,
    /// The time of the last change to the inode.
    pub changed: Timestamp,
    /// The time of birth, where recorded.
    pub created: Option<Timestamp>,
}

/// One name in a directory. `.` and `..` are never listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// The name: any bytes but `/` and NUL.
    pub name: Vec<u8>,
    /// What it leads to.
    pub inode: InodeNumber,
    /// What sort of inode that is.
    pub file_type: FileType,
}

/// The attributes to change; `None` leaves one as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct SetAttributes {
    pub mode: Option<u16>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub accessed: Option<Timestamp>,
    pub modified: Option<Timestamp>,
    /// The time of birth; ignored where the inode has no room for one.
    pub created: Option<Timestamp>,
}

/// How full a filesystem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatFs {
    /// The unit of allocation in bytes.
    pub block_size: u32,
    /// All blocks that files could use.
    pub blocks: u64,
    /// The free ones among them.
    pub free_blocks: u64,
    /// The free ones that an ordinary user may take.
    pub available_blocks: u64,
    /// All inodes.
    pub inodes: u64,
    /// The free ones among them.
    pub free_inodes: u64,
    /// The longest name, in bytes.
    pub name_max: u32,
}

/// What a filesystem calls itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The name the field uses, such as `ext4`.
    pub kind: &'static str,
    /// The label, empty where none is set.
    pub label: Vec<u8>,
    /// The identifier as `blkid` prints it, where there is one.
    pub uuid: Option<String>,
}
