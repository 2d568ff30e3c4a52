//! What a superblock says of its volume, as people want to know it.

use serde::{Serialize, Serializer};
use uuid::Uuid;
use vmwright_disk::Disk;

use crate::error::Result;
use crate::features::{compat, incompat, ro_compat};
use crate::layout::RawSuperblock;
use crate::superblock::Superblock;
use crate::volume::Ext4;

/// What a volume is, how it is laid out, how full it is, and what has become of it.
///
/// Times are seconds since 1970-01-01 UTC, sizes bytes unless said otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Description {
    /// `ext2`, `ext3` or `ext4`, by its features.
    pub kind: &'static str,
    /// The label, empty where none is set.
    #[serde(serialize_with = "lossy")]
    pub label: Vec<u8>,
    /// The identifier.
    pub uuid: String,
    /// The names of its features.
    pub features: Vec<&'static str>,
    /// How it is laid out.
    pub geometry: Geometry,
    /// How full it is.
    pub usage: Usage,
    /// Whether anything is to be done before it is used.
    pub state: State,
    /// What happened when.
    pub history: History,
    /// The journal, where there is one.
    pub journal: Option<Journal>,
    /// What kernels do with it unless told otherwise.
    pub defaults: Defaults,
    /// What else it keeps for itself.
    pub internals: Internals,
}

/// How a volume is laid out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Geometry {
    pub block_size: u32,
    pub blocks: u64,
    /// The unit of allocation; larger than a block with the feature `bigalloc` only.
    pub cluster_size: u64,
    pub first_block: u64,
    pub groups: u32,
    pub blocks_per_group: u32,
    pub inodes_per_group: u32,
    pub inode_size: u16,
    pub descriptor_size: u16,
    /// How many groups keep their bitmaps and tables together.
    pub flex_groups: u64,
    /// Blocks kept for descriptors of groups to come.
    pub reserved_descriptor_blocks: u64,
    /// Blocks that one disk of a striped set has in a row, 0 where not told.
    pub stride: u16,
    /// Blocks that all of them have in a row, 0 where not told.
    pub stripe_width: u32,
}

/// How full a volume is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Usage {
    pub size: u64,
    pub free: u64,
    /// What of the free space ordinary users may not take.
    pub reserved: u64,
    /// What no file can take: superblocks, descriptors, bitmaps, inode tables, the journal.
    pub overhead: u64,
    pub inodes: u32,
    pub free_inodes: u32,
    /// Who may take what is reserved.
    pub reserved_for: (u16, u16),
}

/// Whether anything is to be done before a volume is used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct State {
    /// It was unmounted, or its journal tells what to do.
    pub clean: bool,
    /// A kernel has met damage.
    pub errors: bool,
    /// Files without names are still to be removed.
    pub orphans: bool,
    /// The journal holds changes.
    pub needs_recovery: bool,
    /// How often damage was met.
    pub error_count: u32,
    /// Where it was met first.
    pub first_error: Option<Incident>,
    /// Where it was met last.
    pub last_error: Option<Incident>,
}

/// Damage that a kernel has met.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Incident {
    pub time: i64,
    /// The function and line in the kernel's source.
    pub at: String,
    pub inode: u32,
    pub block: u64,
}

/// What happened to a volume when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct History {
    pub created: i64,
    pub mounted: Option<i64>,
    pub written: Option<i64>,
    pub checked: Option<i64>,
    /// Where it was last mounted.
    pub mounted_on: Option<String>,
    /// How often it was mounted since it was checked.
    pub mounts: u16,
    /// After how many mounts it is to be checked.
    pub mounts_until_check: Option<u16>,
    /// After how many seconds it is to be checked.
    pub seconds_until_check: Option<u32>,
    /// How many KiB were ever written to it.
    pub kibibytes_written: u64,
}

/// A volume's journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Journal {
    /// The inode that it is kept in, 0 where it is on a device of its own.
    pub inode: u32,
    /// The identifier of that device.
    pub device: Option<String>,
    /// How long it is, where the superblock says.
    pub size: Option<u64>,
}

/// What kernels do with a volume unless told otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Defaults {
    /// What happens when damage is met: `continue`, `remount-ro` or `panic`.
    pub on_errors: &'static str,
    pub mount_options: Vec<&'static str>,
    /// More of them, in words of the user's own.
    pub more_mount_options: String,
}

/// What else a volume keeps for itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Internals {
    pub revision: u32,
    pub made_by: &'static str,
    pub first_inode: u32,
    /// How many bytes of fields beyond the first 128 new inodes have.
    pub extra_inode_size: u16,
    /// How names are hashed.
    pub name_hash: &'static str,
    pub name_hash_is_unsigned: bool,
    pub name_hash_seed: String,
    /// What metadata is sealed with.
    pub checksum: Option<&'static str>,
    /// The seed that was taken aside, so that the UUID may change.
    pub checksum_seed: Option<u32>,
    /// The inodes that quotas of owners, groups and projects are kept in; 0 where none are.
    pub quota_inodes: [u32; 3],
    /// The inode that lists files without names.
    pub orphan_file: Option<u32>,
    /// The block in which hosts tell that they use the volume, and how often they do, in seconds.
    pub multiple_mount_protection: Option<(u64, u16)>,
    /// How names are encoded, with the feature `casefold`.
    pub encoding: Option<&'static str>,
}

fn lossy<S: Serializer>(label: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&String::from_utf8_lossy(label))
}

/// Says what the superblock on a disk says; all else may be damaged.
///
/// # Errors
///
/// Kind `Corrupt` where there is none that is sound, `Unsupported` where it names features that are not known.
pub fn describe(disk: &dyn Disk) -> Result<Description> {
    let superblock = Superblock::read(disk)?;
    let overhead = superblock.recorded_overhead().saturating_mul(superblock.cluster_blocks.into());
    Ok(of(&superblock, overhead, superblock.recorded_free_blocks()))
}

impl Ext4 {
    /// Says what the volume is; counts are those of the groups, with what the journal changes.
    pub fn describe(&self) -> Description {
        let free = self.superblock.free_blocks.saturating_mul(self.superblock.cluster_blocks.into());
        of(&self.superblock, self.overhead(), free)
    }
}

fn of(superblock: &Superblock, overhead: u64, free: u64) -> Description {
    let raw = superblock.raw();
    Description {
        kind: superblock.features.generation(),
        label: superblock.label(),
        uuid: superblock.uuid().to_string(),
        features: superblock.features.names(),
        geometry: geometry(superblock),
        usage: usage(superblock, overhead, free),
        state: state(superblock),
        history: history(raw),
        journal: journal(superblock),
        defaults: defaults(raw),
        internals: internals(superblock),
    }
}

fn geometry(superblock: &Superblock) -> Geometry {
    let raw = superblock.raw();
    let flex = superblock.features.has_incompat(incompat::FLEX_BG);
    Geometry {
        block_size: superblock.block_size,
        blocks: superblock.blocks,
        cluster_size: u64::from(superblock.block_size) * u64::from(superblock.cluster_blocks),
        first_block: superblock.first_data_block,
        groups: superblock.groups,
        blocks_per_group: superblock.blocks_per_group,
        inodes_per_group: superblock.inodes_per_group,
        inode_size: superblock.inode_size,
        descriptor_size: superblock.desc_size,
        flex_groups: if flex { 1_u64.checked_shl(raw.s_log_groups_per_flex.into()).unwrap_or(1) } else { 1 },
        reserved_descriptor_blocks: superblock.reserved_descriptor_blocks(),
        stride: raw.s_raid_stride.get(),
        stripe_width: raw.s_raid_stripe_width.get(),
    }
}

fn usage(superblock: &Superblock, overhead: u64, free: u64) -> Usage {
    let raw = superblock.raw();
    let bytes = |blocks: u64| blocks.saturating_mul(superblock.block_size.into());
    Usage {
        size: bytes(superblock.blocks),
        free: bytes(free),
        reserved: bytes(superblock.reserved_blocks()),
        overhead: bytes(overhead),
        inodes: superblock.inodes,
        free_inodes: superblock.free_inodes,
        reserved_for: (raw.s_def_resuid.get(), raw.s_def_resgid.get()),
    }
}

fn state(superblock: &Superblock) -> State {
    let raw = superblock.raw();
    let bits = raw.s_state.get();
    let incident = |low: u32, high: u8, function: &[u8], line: u32, inode: u32, block: u64| {
        let time = seconds(low, high);
        (time != 0).then(|| Incident { time, at: format!("{}:{line}", text(function)), inode, block })
    };
    State {
        clean: bits & 1 != 0,
        errors: bits & 2 != 0,
        orphans: bits & 4 != 0,
        needs_recovery: superblock.features.has_incompat(incompat::RECOVER),
        error_count: raw.s_error_count.get(),
        first_error: incident(
            raw.s_first_error_time.get(),
            raw.s_first_error_time_hi,
            &raw.s_first_error_func,
            raw.s_first_error_line.get(),
            raw.s_first_error_ino.get(),
            raw.s_first_error_block.get(),
        ),
        last_error: incident(
            raw.s_last_error_time.get(),
            raw.s_last_error_time_hi,
            &raw.s_last_error_func,
            raw.s_last_error_line.get(),
            raw.s_last_error_ino.get(),
            raw.s_last_error_block.get(),
        ),
    }
}

fn seconds(low: u32, high: u8) -> i64 {
    i64::from(low) | i64::from(high) << 32
}

/// The text of a field that zeros fill up.
fn text(field: &[u8]) -> String {
    let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

fn history(raw: &RawSuperblock) -> History {
    let past = |low: u32, high: u8| Some(seconds(low, high)).filter(|time| *time != 0);
    // The field is signed: -1 and 0 both mean never.
    let mounts = raw.s_max_mnt_count.get();
    History {
        created: seconds(raw.s_mkfs_time.get(), raw.s_mkfs_time_hi),
        mounted: past(raw.s_mtime.get(), raw.s_mtime_hi),
        written: past(raw.s_wtime.get(), raw.s_wtime_hi),
        checked: past(raw.s_lastcheck.get(), raw.s_lastcheck_hi),
        mounted_on: Some(text(&raw.s_last_mounted)).filter(|path| !path.is_empty()),
        mounts: raw.s_mnt_count.get(),
        mounts_until_check: Some(mounts).filter(|count| (1..0x8000).contains(count)),
        seconds_until_check: Some(raw.s_checkinterval.get()).filter(|seconds| *seconds != 0),
        kibibytes_written: raw.s_kbytes_written.get(),
    }
}

fn journal(superblock: &Superblock) -> Option<Journal> {
    let raw = superblock.raw();
    let uuid = Uuid::from_bytes(raw.s_journal_uuid);
    superblock.features.has_compat(compat::HAS_JOURNAL).then(|| Journal {
        inode: raw.s_journal_inum.get(),
        device: (raw.s_journal_inum == 0 && !uuid.is_nil()).then(|| uuid.to_string()),
        size: Some(superblock.journal_size()).filter(|size| *size != 0),
    })
}

/// The bits of `s_default_mount_opts` but for the mode of journalling, which has two.
const MOUNT_OPTIONS: [(u32, &str); 9] = [
    (0x1, "debug"),
    (0x2, "bsdgroups"),
    (0x4, "user_xattr"),
    (0x8, "acl"),
    (0x10, "uid16"),
    (0x100, "nobarrier"),
    (0x200, "block_validity"),
    (0x400, "discard"),
    (0x800, "nodelalloc"),
];

fn defaults(raw: &RawSuperblock) -> Defaults {
    let bits = raw.s_default_mount_opts.get();
    let mut mount_options: Vec<_> =
        MOUNT_OPTIONS.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| *name).collect();
    match bits & 0x60 {
        0x20 => mount_options.push("journal_data"),
        0x40 => mount_options.push("journal_data_ordered"),
        0x60 => mount_options.push("journal_data_writeback"),
        _ => {}
    }
    let on_errors = match raw.s_errors.get() {
        2 => "remount-ro",
        3 => "panic",
        _ => "continue",
    };
    Defaults { on_errors, mount_options, more_mount_options: text(&raw.s_mount_opts) }
}

fn internals(superblock: &Superblock) -> Internals {
    let (raw, features) = (superblock.raw(), superblock.features);
    let mut seed = [0; 16];
    for (bytes, word) in seed.chunks_exact_mut(4).zip(raw.s_hash_seed) {
        bytes.copy_from_slice(&word.get().to_le_bytes());
    }
    let quotas = [raw.s_usr_quota_inum, raw.s_grp_quota_inum, raw.s_prj_quota_inum];
    let casefold = features.has_incompat(incompat::CASEFOLD);
    Internals {
        revision: raw.s_rev_level.get(),
        made_by: match raw.s_creator_os.get() {
            0 => "Linux",
            1 => "Hurd",
            2 => "Masix",
            3 => "FreeBSD",
            4 => "Lites",
            _ => "unknown",
        },
        first_inode: superblock.first_inode(),
        extra_inode_size: superblock.wanted_extra_isize(),
        name_hash: match raw.s_def_hash_version {
            0 => "legacy",
            1 => "half_md4",
            2 => "tea",
            6 => "siphash",
            _ => "unknown",
        },
        name_hash_is_unsigned: raw.s_flags.get() & 2 != 0,
        name_hash_seed: Uuid::from_bytes(seed).to_string(),
        checksum: match (features.metadata_csum(), features.has_ro_compat(ro_compat::GDT_CSUM)) {
            (true, _) => Some("crc32c"),
            (false, true) => Some("crc16 of group descriptors"),
            (false, false) => None,
        },
        checksum_seed: features.has_incompat(incompat::CSUM_SEED).then_some(raw.s_checksum_seed.get()),
        quota_inodes: quotas.map(|inode| inode.get()),
        orphan_file: features.has_compat(compat::ORPHAN_FILE).then_some(raw.s_orphan_file_inum.get()),
        multiple_mount_protection: features
            .has_incompat(incompat::MMP)
            .then_some((raw.s_mmp_block.get(), raw.s_mmp_interval.get())),
        encoding: casefold.then(|| if raw.s_encoding.get() == 1 { "utf8-12.1" } else { "unknown" }),
    }
}
