//! The structures on disk, field by field and little-endian throughout.
//!
//! Names and offsets follow the kernel's documentation of ext4's layout,
//! <https://www.kernel.org/doc/html/latest/filesystems/ext4/>.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Where the superblock begins, in bytes from the start of the volume.
pub(crate) const SUPERBLOCK_OFFSET: u64 = 1024;

/// `s_magic`.
pub(crate) const SUPERBLOCK_MAGIC: u16 = 0xef53;

/// The superblock: <https://www.kernel.org/doc/html/latest/filesystems/ext4/super.html>.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawSuperblock {
    pub(crate) s_inodes_count: U32,
    pub(crate) s_blocks_count_lo: U32,
    pub(crate) s_r_blocks_count_lo: U32,
    pub(crate) s_free_blocks_count_lo: U32,
    pub(crate) s_free_inodes_count: U32,
    pub(crate) s_first_data_block: U32,
    pub(crate) s_log_block_size: U32,
    pub(crate) s_log_cluster_size: U32,
    pub(crate) s_blocks_per_group: U32,
    pub(crate) s_clusters_per_group: U32,
    pub(crate) s_inodes_per_group: U32,
    pub(crate) s_mtime: U32,
    pub(crate) s_wtime: U32,
    pub(crate) s_mnt_count: U16,
    pub(crate) s_max_mnt_count: U16,
    pub(crate) s_magic: U16,
    pub(crate) s_state: U16,
    pub(crate) s_errors: U16,
    pub(crate) s_minor_rev_level: U16,
    pub(crate) s_lastcheck: U32,
    pub(crate) s_checkinterval: U32,
    pub(crate) s_creator_os: U32,
    pub(crate) s_rev_level: U32,
    pub(crate) s_def_resuid: U16,
    pub(crate) s_def_resgid: U16,
    pub(crate) s_first_ino: U32,
    pub(crate) s_inode_size: U16,
    pub(crate) s_block_group_nr: U16,
    pub(crate) s_feature_compat: U32,
    pub(crate) s_feature_incompat: U32,
    pub(crate) s_feature_ro_compat: U32,
    pub(crate) s_uuid: [u8; 16],
    pub(crate) s_volume_name: [u8; 16],
    pub(crate) s_last_mounted: [u8; 64],
    pub(crate) s_algorithm_usage_bitmap: U32,
    pub(crate) s_prealloc_blocks: u8,
    pub(crate) s_prealloc_dir_blocks: u8,
    pub(crate) s_reserved_gdt_blocks: U16,
    pub(crate) s_journal_uuid: [u8; 16],
    pub(crate) s_journal_inum: U32,
    pub(crate) s_journal_dev: U32,
    pub(crate) s_last_orphan: U32,
    pub(crate) s_hash_seed: [U32; 4],
    pub(crate) s_def_hash_version: u8,
    pub(crate) s_jnl_backup_type: u8,
    pub(crate) s_desc_size: U16,
    pub(crate) s_default_mount_opts: U32,
    pub(crate) s_first_meta_bg: U32,
    pub(crate) s_mkfs_time: U32,
    pub(crate) s_jnl_blocks: [U32; 17],
    pub(crate) s_blocks_count_hi: U32,
    pub(crate) s_r_blocks_count_hi: U32,
    pub(crate) s_free_blocks_count_hi: U32,
    pub(crate) s_min_extra_isize: U16,
    pub(crate) s_want_extra_isize: U16,
    pub(crate) s_flags: U32,
    pub(crate) s_raid_stride: U16,
    pub(crate) s_mmp_interval: U16,
    pub(crate) s_mmp_block: U64,
    pub(crate) s_raid_stripe_width: U32,
    pub(crate) s_log_groups_per_flex: u8,
    pub(crate) s_checksum_type: u8,
    pub(crate) s_encryption_level: u8,
    pub(crate) s_reserved_pad: u8,
    pub(crate) s_kbytes_written: U64,
    pub(crate) s_snapshot_inum: U32,
    pub(crate) s_snapshot_id: U32,
    pub(crate) s_snapshot_r_blocks_count: U64,
    pub(crate) s_snapshot_list: U32,
    pub(crate) s_error_count: U32,
    pub(crate) s_first_error_time: U32,
    pub(crate) s_first_error_ino: U32,
    pub(crate) s_first_error_block: U64,
    pub(crate) s_first_error_func: [u8; 32],
    pub(crate) s_first_error_line: U32,
    pub(crate) s_last_error_time: U32,
    pub(crate) s_last_error_ino: U32,
    pub(crate) s_last_error_line: U32,
    pub(crate) s_last_error_block: U64,
    pub(crate) s_last_error_func: [u8; 32],
    pub(crate) s_mount_opts: [u8; 64],
    pub(crate) s_usr_quota_inum: U32,
    pub(crate) s_grp_quota_inum: U32,
    pub(crate) s_overhead_blocks: U32,
    pub(crate) s_backup_bgs: [U32; 2],
    pub(crate) s_encrypt_algos: [u8; 4],
    pub(crate) s_encrypt_pw_salt: [u8; 16],
    pub(crate) s_lpf_ino: U32,
    pub(crate) s_prj_quota_inum: U32,
    pub(crate) s_checksum_seed: U32,
    pub(crate) s_wtime_hi: u8,
    pub(crate) s_mtime_hi: u8,
    pub(crate) s_mkfs_time_hi: u8,
    pub(crate) s_lastcheck_hi: u8,
    pub(crate) s_first_error_time_hi: u8,
    pub(crate) s_last_error_time_hi: u8,
    pub(crate) s_first_error_errcode: u8,
    pub(crate) s_last_error_errcode: u8,
    pub(crate) s_encoding: U16,
    pub(crate) s_encoding_flags: U16,
    pub(crate) s_orphan_file_inum: U32,
    pub(crate) s_reserved: [U32; 94],
    pub(crate) s_checksum: U32,
}

/// A group descriptor: <https://www.kernel.org/doc/html/latest/filesystems/ext4/group_descr.html>.
///
/// Descriptors are 32 bytes without the 64bit feature, and then end before `bg_block_bitmap_hi`.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawGroup {
    pub(crate) bg_block_bitmap_lo: U32,
    pub(crate) bg_inode_bitmap_lo: U32,
    pub(crate) bg_inode_table_lo: U32,
    pub(crate) bg_free_blocks_count_lo: U16,
    pub(crate) bg_free_inodes_count_lo: U16,
    pub(crate) bg_used_dirs_count_lo: U16,
    pub(crate) bg_flags: U16,
    pub(crate) bg_exclude_bitmap_lo: U32,
    pub(crate) bg_block_bitmap_csum_lo: U16,
    pub(crate) bg_inode_bitmap_csum_lo: U16,
    pub(crate) bg_itable_unused_lo: U16,
    pub(crate) bg_checksum: U16,
    pub(crate) bg_block_bitmap_hi: U32,
    pub(crate) bg_inode_bitmap_hi: U32,
    pub(crate) bg_inode_table_hi: U32,
    pub(crate) bg_free_blocks_count_hi: U16,
    pub(crate) bg_free_inodes_count_hi: U16,
    pub(crate) bg_used_dirs_count_hi: U16,
    pub(crate) bg_itable_unused_hi: U16,
    pub(crate) bg_exclude_bitmap_hi: U32,
    pub(crate) bg_block_bitmap_csum_hi: U16,
    pub(crate) bg_inode_bitmap_csum_hi: U16,
    pub(crate) bg_reserved: U32,
}

/// An inode's fixed part: <https://www.kernel.org/doc/html/latest/filesystems/ext4/inodes.html>.
///
/// Inodes of 128 bytes end before `i_extra_isize`; in larger ones `i_extra_isize` says how many bytes
/// after the first 128 are fields.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawInode {
    pub(crate) i_mode: U16,
    pub(crate) i_uid: U16,
    pub(crate) i_size_lo: U32,
    pub(crate) i_atime: U32,
    pub(crate) i_ctime: U32,
    pub(crate) i_mtime: U32,
    pub(crate) i_dtime: U32,
    pub(crate) i_gid: U16,
    pub(crate) i_links_count: U16,
    pub(crate) i_blocks_lo: U32,
    pub(crate) i_flags: U32,
    pub(crate) i_version: U32,
    pub(crate) i_block: [u8; 60],
    pub(crate) i_generation: U32,
    pub(crate) i_file_acl_lo: U32,
    pub(crate) i_size_high: U32,
    pub(crate) i_obso_faddr: U32,
    pub(crate) l_i_blocks_high: U16,
    pub(crate) l_i_file_acl_high: U16,
    pub(crate) l_i_uid_high: U16,
    pub(crate) l_i_gid_high: U16,
    pub(crate) l_i_checksum_lo: U16,
    pub(crate) l_i_reserved: U16,
    pub(crate) i_extra_isize: U16,
    pub(crate) i_checksum_hi: U16,
    pub(crate) i_ctime_extra: U32,
    pub(crate) i_mtime_extra: U32,
    pub(crate) i_atime_extra: U32,
    pub(crate) i_crtime: U32,
    pub(crate) i_crtime_extra: U32,
    pub(crate) i_version_hi: U32,
    pub(crate) i_projid: U32,
}

/// The head of a node of an extent tree:
/// <https://www.kernel.org/doc/html/latest/filesystems/ext4/ifork.html#extent-tree>.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawExtentHeader {
    pub(crate) eh_magic: U16,
    pub(crate) eh_entries: U16,
    pub(crate) eh_max: U16,
    pub(crate) eh_depth: U16,
    pub(crate) eh_generation: U32,
}

/// `eh_magic`.
pub(crate) const EXTENT_MAGIC: u16 = 0xf30a;

/// An entry of an inner node of an extent tree.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawExtentIndex {
    pub(crate) ei_block: U32,
    pub(crate) ei_leaf_lo: U32,
    pub(crate) ei_leaf_hi: U16,
    pub(crate) ei_unused: U16,
}

/// An entry of a leaf of an extent tree.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawExtent {
    pub(crate) ee_block: U32,
    pub(crate) ee_len: U16,
    pub(crate) ee_start_hi: U16,
    pub(crate) ee_start_lo: U32,
}

/// The size of an inode's classic part, before `i_extra_isize`.
pub(crate) const CLASSIC_INODE_SIZE: usize = 128;

const _: () = {
    assert!(size_of::<RawSuperblock>() == 1024);
    assert!(std::mem::offset_of!(RawSuperblock, s_uuid) == 0x68);
    assert!(std::mem::offset_of!(RawSuperblock, s_journal_inum) == 0xe0);
    assert!(std::mem::offset_of!(RawSuperblock, s_blocks_count_hi) == 0x150);
    assert!(std::mem::offset_of!(RawSuperblock, s_kbytes_written) == 0x178);
    assert!(std::mem::offset_of!(RawSuperblock, s_error_count) == 0x194);
    assert!(std::mem::offset_of!(RawSuperblock, s_usr_quota_inum) == 0x240);
    assert!(std::mem::offset_of!(RawSuperblock, s_checksum_seed) == 0x270);
    assert!(std::mem::offset_of!(RawSuperblock, s_orphan_file_inum) == 0x280);
    assert!(std::mem::offset_of!(RawSuperblock, s_checksum) == 0x3fc);
    assert!(size_of::<RawGroup>() == 64);
    assert!(std::mem::offset_of!(RawGroup, bg_checksum) == 0x1e);
    assert!(std::mem::offset_of!(RawGroup, bg_block_bitmap_hi) == 0x20);
    assert!(size_of::<RawInode>() == 160);
    assert!(std::mem::offset_of!(RawInode, i_block) == 0x28);
    assert!(std::mem::offset_of!(RawInode, l_i_checksum_lo) == 0x7c);
    assert!(std::mem::offset_of!(RawInode, i_extra_isize) == CLASSIC_INODE_SIZE);
    assert!(size_of::<RawExtentHeader>() == 12);
    assert!(size_of::<RawExtentIndex>() == 12);
    assert!(size_of::<RawExtent>() == 12);
};
