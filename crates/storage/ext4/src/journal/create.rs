//! The superblock of a journal in which there is nothing yet.

use zerocopy::{FromZeros, IntoBytes};

use super::layout::{MAGIC, RawSuperblock, TYPE_SUPERBLOCK_V2};

/// What a new journal is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewJournal {
    pub(crate) block_size: u32,
    /// Its length with the part for fast commits; on a device of its own the device's.
    pub(crate) blocks: u32,
    /// Blocks at its end for fast commits.
    pub(crate) fast_commits: u32,
    /// The volume's UUID, or that of the journal's device.
    pub(crate) uuid: [u8; 16],
    /// The first block of the log.
    pub(crate) first: u32,
    /// How many volumes use it.
    pub(crate) users: u32,
}

/// The most volumes that can use one journal.
const MAX_USERS: usize = 48;

/// Encodes the 1,024 bytes of the superblock of an empty journal.
pub(crate) fn new_superblock(journal: &NewJournal) -> Vec<u8> {
    let mut raw = RawSuperblock::new_zeroed();
    raw.header.h_magic = MAGIC.into();
    raw.header.h_blocktype = TYPE_SUPERBLOCK_V2.into();
    raw.s_blocksize = journal.block_size.into();
    raw.s_maxlen = journal.blocks.into();
    raw.s_num_fc_blks = journal.fast_commits.into();
    raw.s_first = journal.first.into();
    raw.s_sequence = 1.into();
    raw.s_nr_users = journal.users.into();
    raw.s_uuid = journal.uuid;
    raw.as_bytes().to_vec()
}

/// Adds a volume to those that use a journal on a device of its own; answers `None` where there are too many.
pub(crate) fn with_user(superblock: &[u8; 1024], user: [u8; 16]) -> Option<Vec<u8>> {
    use zerocopy::FromBytes;
    let mut raw = RawSuperblock::read_from_bytes(superblock).ok()?;
    let count = raw.s_nr_users.get() as usize;
    if count > MAX_USERS {
        return None;
    }
    if !raw.s_users[..count].contains(&user) {
        *raw.s_users.get_mut(count)? = user;
        raw.s_nr_users = (count as u32 + 1).into();
    }
    Some(raw.as_bytes().to_vec())
}
