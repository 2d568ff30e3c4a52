//! The structures of the journal, big-endian throughout, named as in the kernel's documentation,
//! <https://www.kernel.org/doc/html/latest/filesystems/ext4/journal.html>.

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// What each block of the journal that is not data begins with.
pub(crate) const MAGIC: u32 = 0xc03b_3998;

pub(crate) const TYPE_DESCRIPTOR: u32 = 1;
pub(crate) const TYPE_COMMIT: u32 = 2;
pub(crate) const TYPE_SUPERBLOCK_V1: u32 = 3;
pub(crate) const TYPE_SUPERBLOCK_V2: u32 = 4;
pub(crate) const TYPE_REVOKE: u32 = 5;

pub(crate) const COMPAT_CHECKSUM: u32 = 1;

pub(crate) const INCOMPAT_REVOKE: u32 = 0x01;
pub(crate) const INCOMPAT_64BIT: u32 = 0x02;
pub(crate) const INCOMPAT_ASYNC_COMMIT: u32 = 0x04;
pub(crate) const INCOMPAT_CSUM_V2: u32 = 0x08;
pub(crate) const INCOMPAT_CSUM_V3: u32 = 0x10;
pub(crate) const INCOMPAT_FAST_COMMIT: u32 = 0x20;

/// `JBD2_CRC32C_CHKSUM`, the only kind in use with checksums of version 2 and 3.
pub(crate) const CHECKSUM_CRC32C: u8 = 4;

/// `JBD2_CRC32_CHKSUM` and its size, in commit blocks of version 1.
pub(crate) const CHECKSUM_CRC32: (u8, u8) = (1, 4);

/// The tag's block begins with the magic, which the journal holds as zeros.
pub(crate) const TAG_ESCAPED: u32 = 1;
/// No UUID follows the tag.
pub(crate) const TAG_SAME_UUID: u32 = 2;
/// The tag is the descriptor's last.
pub(crate) const TAG_LAST: u32 = 8;

/// `struct journal_header_s`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Header {
    pub(crate) h_magic: U32,
    pub(crate) h_blocktype: U32,
    pub(crate) h_sequence: U32,
}

/// `struct journal_superblock_s`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawSuperblock {
    pub(crate) header: Header,
    pub(crate) s_blocksize: U32,
    pub(crate) s_maxlen: U32,
    pub(crate) s_first: U32,
    pub(crate) s_sequence: U32,
    pub(crate) s_start: U32,
    pub(crate) s_errno: U32,
    pub(crate) s_feature_compat: U32,
    pub(crate) s_feature_incompat: U32,
    pub(crate) s_feature_ro_compat: U32,
    pub(crate) s_uuid: [u8; 16],
    pub(crate) s_nr_users: U32,
    pub(crate) s_dynsuper: U32,
    pub(crate) s_max_transaction: U32,
    pub(crate) s_max_trans_data: U32,
    pub(crate) s_checksum_type: u8,
    pub(crate) s_padding2: [u8; 3],
    pub(crate) s_num_fc_blks: U32,
    pub(crate) s_head: U32,
    pub(crate) s_padding: [U32; 40],
    pub(crate) s_checksum: U32,
    pub(crate) s_users: [[u8; 16]; 48],
}

/// `struct commit_header`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Commit {
    pub(crate) header: Header,
    pub(crate) h_chksum_type: u8,
    pub(crate) h_chksum_size: u8,
    pub(crate) h_padding: [u8; 2],
    pub(crate) h_chksum: [U32; 8],
    pub(crate) h_commit_sec: U64,
    pub(crate) h_commit_nsec: U32,
}

/// `struct jbd2_journal_revoke_header_s`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Revoke {
    pub(crate) header: Header,
    /// The bytes in use, this header among them.
    pub(crate) r_count: U32,
}

/// `struct journal_block_tag3_s`, with checksums of version 3.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Tag3 {
    pub(crate) t_blocknr: U32,
    pub(crate) t_flags: U32,
    pub(crate) t_blocknr_high: U32,
    pub(crate) t_checksum: U32,
}

/// `struct journal_block_tag_s` up to the high half of the block number, which only 64-bit journals have.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Tag {
    pub(crate) t_blocknr: U32,
    pub(crate) t_checksum: U16,
    pub(crate) t_flags: U16,
}

const _: () = {
    assert!(size_of::<RawSuperblock>() == 1024);
    assert!(std::mem::offset_of!(RawSuperblock, s_uuid) == 0x30);
    assert!(std::mem::offset_of!(RawSuperblock, s_num_fc_blks) == 0x54);
    assert!(std::mem::offset_of!(RawSuperblock, s_checksum) == 0xfc);
    assert!(std::mem::offset_of!(Commit, h_commit_sec) == 0x30);
    assert!(size_of::<Revoke>() == 16);
    assert!(size_of::<Tag3>() == 16);
    assert!(size_of::<Tag>() == 8);
};
