use zerocopy::{FromBytes, IntoBytes};

use super::checksum::crc32c_without;
use super::layout::{
    CHECKSUM_CRC32C, COMPAT_CHECKSUM, INCOMPAT_64BIT, INCOMPAT_ASYNC_COMMIT, INCOMPAT_CSUM_V2,
    INCOMPAT_CSUM_V3, INCOMPAT_FAST_COMMIT, INCOMPAT_REVOKE, MAGIC, RawSuperblock, TYPE_SUPERBLOCK_V1,
    TYPE_SUPERBLOCK_V2,
};
use crate::checksum::crc32c;
use crate::error::{Error, Place, Result};

/// All incompatible features that are handled.
const INCOMPAT_KNOWN: u32 = INCOMPAT_REVOKE
    | INCOMPAT_64BIT
    | INCOMPAT_ASYNC_COMMIT
    | INCOMPAT_CSUM_V2
    | INCOMPAT_CSUM_V3
    | INCOMPAT_FAST_COMMIT;

/// How many blocks fast commits have where the superblock does not say.
const DEFAULT_FAST_COMMIT_BLOCKS: u32 = 256;

/// The fewest blocks that the other part must keep for fast commits to have theirs.
const MIN_BLOCKS: u32 = 1024;

/// The most blocks of a journal that is followed: 16 GiB with blocks of 4 KiB. Its file may map one block many
/// times, so its length costs whoever made it nothing.
const MAX_BLOCKS: u32 = 1 << 22;

/// Where the checksum is in the superblock.
const CHECKSUM_AT: usize = 0xfc;

/// How descriptor blocks name blocks and guard them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Checksums {
    None,
    /// One CRC-32 over a whole transaction, in its commit block.
    Transaction,
    /// CRC-32C in every block, cut to 16 bits for data.
    Blocks16,
    /// CRC-32C in every block.
    Blocks32,
}

/// The journal's own superblock, validated.
#[derive(Debug, Clone)]
pub(crate) struct JournalSuperblock {
    raw: RawSuperblock,
    pub(crate) checksums: Checksums,
    pub(crate) is_64bit: bool,
    pub(crate) async_commit: bool,
    /// The first block of the log proper.
    pub(crate) first: u32,
    /// The block behind the last one of the log proper.
    pub(crate) end: u32,
    /// The blocks of fast commits, where there are any.
    pub(crate) fast_commits: std::ops::Range<u32>,
}

impl JournalSuperblock {
    /// Validates the first 1,024 bytes of a journal in a file of `file_blocks` blocks.
    pub(crate) fn parse(bytes: &[u8], block_size: u32, file_blocks: u64) -> Result<Self> {
        let corrupt = |problem| Error::corrupt(Place::Journal(0), problem);
        let (raw, _) = RawSuperblock::read_from_prefix(bytes)
            .map_err(|_| corrupt("the superblock of the journal is cut short"))?;
        let mismatch = |what, expected: u32, actual: u32| {
            Error::mismatch(Place::Journal(0), what, expected.into(), actual.into())
        };
        if raw.header.h_magic.get() != MAGIC {
            return Err(mismatch("the journal's magic", MAGIC, raw.header.h_magic.get()));
        }
        if raw.s_blocksize.get() != block_size {
            return Err(mismatch("the journal's block size", block_size, raw.s_blocksize.get()));
        }
        let raw = match raw.header.h_blocktype.get() {
            TYPE_SUPERBLOCK_V2 => raw,
            // Version 1 has no features; what is behind its fields is not to be believed.
            TYPE_SUPERBLOCK_V1 => without_features(raw),
            other => return Err(mismatch("the type of the journal's superblock", TYPE_SUPERBLOCK_V2, other)),
        };
        let checksums = checksums(&raw)?;
        let mut journal = Self {
            checksums,
            is_64bit: raw.s_feature_incompat.get() & INCOMPAT_64BIT != 0,
            async_commit: raw.s_feature_incompat.get() & INCOMPAT_ASYNC_COMMIT != 0,
            first: raw.s_first.get(),
            end: raw.s_maxlen.get(),
            fast_commits: 0..0,
            raw,
        };
        journal.verify()?;
        if u64::from(journal.end) > file_blocks || journal.first == 0 {
            return Err(corrupt("the journal's bounds do not fit its file"));
        }
        if journal.end > MAX_BLOCKS {
            return Err(Error::unsupported("the journal is longer than can be handled"));
        }
        journal.find_fast_commits();
        let start = journal.start();
        if journal.first >= journal.end || (start != 0 && !(journal.first..journal.end).contains(&start)) {
            return Err(corrupt("the journal does not begin within its bounds"));
        }
        Ok(journal)
    }

    fn verify(&self) -> Result<()> {
        if self.seed().is_none() {
            return Ok(());
        }
        let (expected, actual) = (self.checksum(), self.raw.s_checksum.get());
        if expected != actual {
            let (expected, actual) = (expected.into(), actual.into());
            let what = "the checksum of the journal's superblock";
            return Err(Error::mismatch(Place::Journal(0), what, expected, actual));
        }
        Ok(())
    }

    /// Fast commits take the last blocks of the journal; one block before them stays unused.
    fn find_fast_commits(&mut self) {
        if self.raw.s_feature_incompat.get() & INCOMPAT_FAST_COMMIT == 0 {
            return;
        }
        let blocks = match self.raw.s_num_fc_blks.get() {
            0 => DEFAULT_FAST_COMMIT_BLOCKS,
            blocks => blocks,
        };
        if let Some(end) = self.end.checked_sub(blocks).filter(|&end| end >= MIN_BLOCKS) {
            self.fast_commits = end + 1..self.end;
            self.end = end;
        }
    }

    fn checksum(&self) -> u32 {
        crc32c_without(!0, self.raw.as_bytes(), CHECKSUM_AT)
    }

    /// The seed of the checksums in all blocks but this one, where blocks have checksums.
    pub(crate) fn seed(&self) -> Option<u32> {
        let guarded = matches!(self.checksums, Checksums::Blocks16 | Checksums::Blocks32);
        guarded.then(|| crc32c(!0, &self.raw.s_uuid))
    }

    /// The first block of the oldest transaction, or zero where there is nothing to replay.
    pub(crate) fn start(&self) -> u32 {
        self.raw.s_start.get()
    }

    /// The number of the oldest transaction.
    pub(crate) fn sequence(&self) -> u32 {
        self.raw.s_sequence.get()
    }

    /// How many filesystems a journal on a disk of its own is for.
    pub(crate) fn users(&self) -> u32 {
        self.raw.s_nr_users.get()
    }

    /// Whether the kernel gave up on the volume while it was in use.
    pub(crate) fn has_error(&self) -> bool {
        self.raw.s_errno.get() != 0
    }

    /// The superblock of the same journal with nothing in it, whose next transaction has the number given.
    pub(crate) fn emptied(&self, next_sequence: u32) -> Vec<u8> {
        let mut empty = self.clone();
        empty.raw.s_start = 0.into();
        empty.raw.s_sequence = next_sequence.into();
        empty.raw.s_errno = 0.into();
        if empty.raw.header.h_blocktype.get() == TYPE_SUPERBLOCK_V2 {
            empty.raw.s_head = 0.into();
            // The kernel sets this bit again when it writes the first fast commit.
            let incompat = empty.raw.s_feature_incompat.get() & !INCOMPAT_FAST_COMMIT;
            empty.raw.s_feature_incompat = incompat.into();
        }
        if empty.seed().is_some() {
            empty.raw.s_checksum = empty.checksum().into();
        }
        empty.raw.as_bytes().to_vec()
    }
}

fn without_features(mut raw: RawSuperblock) -> RawSuperblock {
    raw.s_feature_compat = 0.into();
    raw.s_feature_incompat = 0.into();
    raw.s_feature_ro_compat = 0.into();
    raw
}

fn checksums(raw: &RawSuperblock) -> Result<Checksums> {
    let incompat = raw.s_feature_incompat.get();
    if incompat & !INCOMPAT_KNOWN != 0 || raw.s_feature_ro_compat.get() != 0 {
        return Err(Error::unsupported("the journal uses features that are not supported"));
    }
    let checksums = match (
        incompat & INCOMPAT_CSUM_V3 != 0,
        incompat & INCOMPAT_CSUM_V2 != 0,
        raw.s_feature_compat.get() & COMPAT_CHECKSUM != 0,
    ) {
        (true, false, false) => Checksums::Blocks32,
        (false, true, false) => Checksums::Blocks16,
        (false, false, true) => Checksums::Transaction,
        (false, false, false) => Checksums::None,
        _ => return Err(Error::corrupt(Place::Journal(0), "the journal has checksums of two versions")),
    };
    let guarded = matches!(checksums, Checksums::Blocks16 | Checksums::Blocks32);
    if guarded && raw.s_checksum_type != CHECKSUM_CRC32C {
        return Err(Error::unsupported("the journal uses a checksum that is not supported"));
    }
    Ok(checksums)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn bytes(incompat: u32) -> Vec<u8> {
        let (mut raw, _) = RawSuperblock::read_from_prefix(&[0; 1024]).unwrap();
        raw.header.h_magic = MAGIC.into();
        raw.header.h_blocktype = TYPE_SUPERBLOCK_V2.into();
        raw.s_blocksize = 4096.into();
        raw.s_maxlen = 4096.into();
        raw.s_first = 1.into();
        raw.s_start = 1.into();
        raw.s_sequence = 7.into();
        raw.s_feature_incompat = incompat.into();
        raw.s_checksum_type = CHECKSUM_CRC32C;
        raw.s_checksum = crc32c_without(!0, raw.as_bytes(), CHECKSUM_AT).into();
        raw.as_bytes().to_vec()
    }

    fn parse(bytes: &[u8]) -> Result<JournalSuperblock> {
        JournalSuperblock::parse(bytes, 4096, 4096)
    }

    #[test]
    fn an_emptied_superblock_is_valid_again() {
        for incompat in [0, INCOMPAT_CSUM_V2 | INCOMPAT_64BIT, INCOMPAT_CSUM_V3 | INCOMPAT_FAST_COMMIT] {
            let emptied = parse(&bytes(incompat)).unwrap().emptied(99);
            let again = parse(&emptied).unwrap();
            assert_eq!((again.start(), again.sequence()), (0, 99));
            assert!(again.fast_commits.is_empty());
        }
    }

    #[test]
    fn a_wrong_checksum_is_told() {
        let mut bytes = bytes(INCOMPAT_CSUM_V3);
        bytes[0x1b] ^= 1;
        assert_eq!(parse(&bytes).unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn fast_commits_take_the_end_of_the_journal() {
        let journal = parse(&bytes(INCOMPAT_CSUM_V3 | INCOMPAT_FAST_COMMIT)).unwrap();
        assert_eq!((journal.end, journal.fast_commits), (3840, 3841..4096));
    }

    #[test]
    fn a_journal_longer_than_memory_allows_is_refused() {
        let mut bytes = bytes(0);
        bytes[0x10..0x14].copy_from_slice(&u32::MAX.to_be_bytes());
        let error = JournalSuperblock::parse(&bytes, 4096, 1 << 32).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn what_is_unknown_or_contradicts_itself_is_refused() {
        assert_eq!(parse(&bytes(0x40)).unwrap_err().kind(), ErrorKind::Unsupported);
        let both = INCOMPAT_CSUM_V2 | INCOMPAT_CSUM_V3;
        assert_eq!(parse(&bytes(both)).unwrap_err().kind(), ErrorKind::Corrupt);
        let short = JournalSuperblock::parse(&bytes(0), 4096, 100).unwrap_err();
        assert_eq!(short.kind(), ErrorKind::Corrupt);
    }
}
