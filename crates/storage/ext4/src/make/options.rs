//! What a new volume is to be.

use uuid::Uuid;
use vmwright_vfs::Timestamp;

use super::features::FeatureEdits;

/// Which of the three filesystems, and with that which features a volume has unless told otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Generation {
    /// Block maps, no journal.
    Ext2,
    /// Block maps and a journal.
    Ext3,
    /// Extents, a journal, checksums, everything that mke2fs 1.47 turns on.
    #[default]
    Ext4,
}

/// What a volume is made for: the sections of mke2fs.conf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// Blocks of 4 KiB, an inode for each 16 KiB.
    Default,
    /// Blocks of 1 KiB, an inode for each 4 KiB.
    Small,
    /// Blocks of 1 KiB, an inode for each 8 KiB.
    Floppy,
    /// An inode for each 32 KiB.
    Big,
    /// An inode for each 64 KiB.
    Huge,
    /// An inode for each 4 KiB.
    News,
    /// An inode for each MiB.
    LargeFile,
    /// An inode for each 4 MiB.
    LargeFile4,
    /// Blocks of 4 KiB, inodes of 128 bytes.
    Hurd,
}

/// What a kernel does when it meets damage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnErrors {
    /// It goes on.
    #[default]
    Continue,
    /// It makes the volume read-only.
    RemountReadOnly,
    /// It stops.
    Panic,
}

/// How names in indexed directories are hashed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum NameHash {
    /// The first hash there was.
    Legacy,
    /// Half of MD4.
    #[default]
    HalfMd4,
    /// TEA.
    Tea,
}

/// Where the journal is, if the features ask for one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum JournalPlace {
    /// In the volume, near its middle.
    #[default]
    Inside,
    /// In the volume, from this block on or where there is room behind it.
    At(u64),
    /// On a journal device with this UUID, which must name the volume as a user: see
    /// [`add_journal_user`](super::add_journal_user).
    Device(Uuid),
}

/// Whose use of space is counted in files of the volume, with the feature `quota`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaTypes {
    /// By owner.
    pub user: bool,
    /// By group.
    pub group: bool,
    /// By project; sets the feature `project` too.
    pub project: bool,
}

impl Default for QuotaTypes {
    /// Owners and groups, as mke2fs does.
    fn default() -> Self {
        Self { user: true, group: true, project: false }
    }
}

/// What a new volume is to be. The default is what `mke2fs -t ext4` of e2fsprogs 1.47 makes.
///
/// Nothing here comes from a clock or from chance: the caller gives the UUID, the seed and the time, and equal
/// options on equal disks make equal bytes. Sizes are in bytes unless said otherwise.
#[derive(Debug, Clone, PartialEq)]
pub struct MakeOptions {
    /// Which filesystem.
    pub generation: Generation,
    /// What for; by the volume's length if `None`.
    pub usage: Option<Usage>,
    /// How long the volume is; the whole disk if `None`.
    pub length: Option<u64>,
    /// The size of a block: a power of two from 1 KiB to 64 KiB; by the usage if `None`.
    pub block_size: Option<u32>,
    /// The size of a cluster with the feature `bigalloc`; 16 blocks if `None`.
    pub cluster_size: Option<u32>,
    /// Blocks per group, clusters with the feature `bigalloc`; as many as a bitmap has bits if `None`.
    pub blocks_per_group: Option<u32>,
    /// How many groups keep their bitmaps and tables together with the feature `flex_bg`; 16 if `None`.
    pub flex_groups: Option<u32>,
    /// Bytes of volume per inode; by the usage if `None`.
    pub inode_ratio: Option<u32>,
    /// How many inodes there are at least, in place of the ratio.
    pub inodes: Option<u32>,
    /// The size of an inode: a power of two from 128 to the block size; 256 if `None`.
    pub inode_size: Option<u16>,
    /// The size of a group descriptor with the feature `64bit`: a power of two from 64 to 1024.
    pub descriptor_size: Option<u16>,
    /// Features beyond or short of those of the generation.
    pub features: FeatureEdits,
    /// The label: at most 16 bytes.
    pub label: Vec<u8>,
    /// Where the volume was last mounted, as its superblock says: at most 64 bytes.
    pub last_mounted: Vec<u8>,
    /// The volume's UUID. The caller draws it.
    pub uuid: Uuid,
    /// The seed of the hashes of names. The caller draws it.
    pub hash_seed: Uuid,
    /// The hash of names.
    pub name_hash: NameHash,
    /// When the volume is made.
    pub now: Timestamp,
    /// How long the journal is without its part for fast commits; by the volume's length if `None`.
    pub journal_size: Option<u64>,
    /// How long the journal's part for fast commits is, with the feature `fast_commit`.
    pub fast_commit_size: Option<u64>,
    /// Where the journal is.
    pub journal: JournalPlace,
    /// Percents of the blocks that only root may take: 0 to 50.
    pub reserved_percent: f64,
    /// Owner and group of the root directory.
    pub root_owner: (u32, u32),
    /// Permissions of the root directory.
    pub root_mode: u16,
    /// The label of SELinux of the root directory.
    pub root_selinux: Option<Vec<u8>>,
    /// Blocks that a disk of a striped set has in a row.
    pub stride: u32,
    /// Blocks that all disks of a striped set have in a row.
    pub stripe_width: u32,
    /// How long the volume shall be able to grow while mounted; 1,024 times its length if `None`.
    pub resize_limit: Option<u64>,
    /// How many copies of the superblock there are with the feature `sparse_super2`: 0 to 2.
    pub backups: u8,
    /// Whether all bitmaps and tables and the journal stand together at the volume's beginning.
    pub packed_meta_blocks: bool,
    /// Which quotas are kept with the feature `quota`.
    pub quota: QuotaTypes,
    /// How often, in seconds, a host tells that it uses the volume, with the feature `mmp`.
    pub mmp_interval: Option<u16>,
    /// Whether names that are no valid UTF-8 are refused, with the feature `casefold`.
    pub strict_encoding: bool,
    /// How long the orphan file is; by the volume's length if `None`.
    pub orphan_file_size: Option<u64>,
    /// What a kernel does when it meets damage.
    pub on_errors: OnErrors,
    /// What is mounted with unless told otherwise: the bits of `s_default_mount_opts`.
    pub mount_options: u32,
    /// Whether inode tables are left to be zeroed by the kernel that first mounts the volume.
    pub lazy_inode_tables: bool,
    /// Whether the blocks of the journal are left as they are.
    pub lazy_journal: bool,
    /// Whether the disk is known to hold zeros, so that nothing need be made zeros.
    pub assume_zeroed: bool,
    /// Whether the space of the disk is given back first.
    pub discard: bool,
    /// Whether the volume is marked as one to try things with.
    pub test_filesystem: bool,
    /// Which system made the volume, as its superblock says: 0 Linux, 1 Hurd, 2 Masix, 3 FreeBSD, 4 Lites.
    pub creator_os: u32,
}

/// `acl` and `user_xattr`.
pub(super) const DEFAULT_MOUNT_OPTIONS: u32 = 0x8 | 0x4;

impl Default for MakeOptions {
    fn default() -> Self {
        Self {
            generation: Generation::Ext4,
            usage: None,
            length: None,
            block_size: None,
            cluster_size: None,
            blocks_per_group: None,
            flex_groups: None,
            inode_ratio: None,
            inodes: None,
            inode_size: None,
            descriptor_size: None,
            features: FeatureEdits::default(),
            label: Vec::new(),
            last_mounted: Vec::new(),
            uuid: Uuid::nil(),
            hash_seed: Uuid::nil(),
            name_hash: NameHash::HalfMd4,
            now: Timestamp { seconds: 0, nanoseconds: 0 },
            journal_size: None,
            fast_commit_size: None,
            journal: JournalPlace::Inside,
            reserved_percent: 5.0,
            root_owner: (0, 0),
            root_mode: 0o755,
            root_selinux: None,
            stride: 0,
            stripe_width: 0,
            resize_limit: None,
            backups: 2,
            packed_meta_blocks: false,
            quota: QuotaTypes::default(),
            mmp_interval: None,
            strict_encoding: false,
            orphan_file_size: None,
            on_errors: OnErrors::Continue,
            mount_options: DEFAULT_MOUNT_OPTIONS,
            lazy_inode_tables: false,
            lazy_journal: false,
            assume_zeroed: false,
            discard: true,
            test_filesystem: false,
            creator_os: 0,
        }
    }
}
