//! What can be changed.

use uuid::Uuid;
use vmwright_vfs::Timestamp;

/// Blocks that only root, or the owner of the reserve, may take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reserved {
    /// This many.
    Blocks(u64),
    /// This part of all, in percent; at most 50.
    Percent(f64),
}

/// What a kernel does where it meets damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnErrors {
    /// Goes on.
    Continue,
    /// Goes on reading only.
    ReadOnly,
    /// Stops the machine.
    Panic,
}

/// How the names of new indexed directories are hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HashAlgorithm {
    /// The oldest one.
    Legacy,
    /// Half of MD4.
    HalfMd4,
    /// The Tiny Encryption Algorithm.
    Tea,
}

/// What is to be changed; whatever is `None` or empty stays.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Changes {
    /// The label, at most 16 bytes.
    pub label: Option<Vec<u8>>,
    /// The UUID. Where checksums depend on it, all of them are computed again.
    pub uuid: Option<Uuid>,
    /// Features by name, each set, or cleared with `^` before it.
    pub features: Vec<String>,
    /// The reserve.
    pub reserved: Option<Reserved>,
    /// The user who may take from the reserve.
    pub reserved_uid: Option<u16>,
    /// The group that may take from the reserve.
    pub reserved_gid: Option<u16>,
    /// Default mount options by name, each set, or cleared with `^` before it.
    pub mount_options: Vec<String>,
    /// More default mount options, as the kernel reads them; at most 63 bytes.
    pub extended_mount_options: Option<Vec<u8>>,
    /// What a kernel does where it meets damage.
    pub on_errors: Option<OnErrors>,
    /// After how many mounts a check is due; 0 for never.
    pub max_mount_count: Option<u16>,
    /// How many mounts there were since the last check.
    pub mount_count: Option<u16>,
    /// After how many seconds a check is due; 0 for never.
    pub check_interval: Option<u32>,
    /// When it was last checked, in seconds.
    pub last_checked: Option<i64>,
    /// Where it was last mounted, at most 63 bytes.
    pub last_mounted: Option<Vec<u8>>,
    /// How the names of directories that will be indexed are hashed.
    pub hash_algorithm: Option<HashAlgorithm>,
    /// The seed of those hashes. Refused where a directory is indexed already.
    pub hash_seed: Option<Uuid>,
    /// The blocks on one disk of an array before the next one.
    pub stride: Option<u16>,
    /// The blocks on all disks of an array.
    pub stripe_width: Option<u32>,
    /// The blocks of a journal that `has_journal` adds; by default what suits the volume.
    pub journal_blocks: Option<u32>,
    /// The size of inodes in bytes, larger than the present one.
    pub inode_size: Option<u16>,
    /// Whether multiple mount protection that says the volume is in use is overruled and cleared. Only for volumes that
    /// nobody has open any more.
    pub clear_mmp: bool,
    /// What the superblock is stamped with; by default the time when the volume was last used.
    pub now: Option<Timestamp>,
}

/// What tuning did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tuned {
    /// The features that the volume has now.
    pub features: Vec<&'static str>,
    /// Whether every checksum was computed again.
    pub checksums_rewritten: bool,
}
