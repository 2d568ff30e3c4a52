use std::collections::{HashMap, HashSet};

use zerocopy::FromBytes;

use super::checksum::{crc32_be, crc32c_without};
use super::fast_commit::{self, FastCommit};
use super::layout::{
    CHECKSUM_CRC32, Commit, Header, MAGIC, Revoke, TAG_ESCAPED, TAG_LAST, TAG_SAME_UUID, TYPE_COMMIT,
    TYPE_DESCRIPTOR, TYPE_REVOKE, Tag, Tag3,
};
use super::superblock::{Checksums, JournalSuperblock};
use crate::checksum::crc32c;
use crate::error::{Error, Place, Result};

/// The size of the checksum at the end of descriptor and revoke blocks.
const TAIL: usize = 4;

/// What the journal holds in place of a block of the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Replayed {
    /// The block of the journal.
    pub(crate) index: u32,
    /// Whether the journal holds zeros in place of the block's first four bytes, the journal's magic.
    pub(crate) escaped: bool,
}

/// What a journal says that its volume does not yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Recovery {
    /// The newest content of blocks of the volume.
    pub(crate) blocks: HashMap<u64, Replayed>,
    /// What happened to files after that, in order.
    pub(crate) fast_commits: Vec<FastCommit>,
    /// The number for the next transaction once the journal is empty.
    pub(crate) next_sequence: u32,
}

/// Whether transaction `a` is later than `b`; numbers wrap around.
fn is_later(a: u32, b: u32) -> bool {
    a.wrapping_sub(b).cast_signed() > 0
}

/// Finds what is to be replayed: everything up to the last complete transaction.
///
/// `read` answers a block of the journal; the volume has `blocks` blocks and inodes of `inode_size` bytes. A
/// transaction that was being written when the crash came is dropped; a complete one whose content fails its
/// checksum is corrupt, as for the kernel.
pub(crate) fn recover(
    journal: &JournalSuperblock,
    read: &dyn Fn(u32) -> Result<Vec<u8>>,
    blocks: u64,
    inode_size: u16,
) -> Result<Recovery> {
    if journal.start() == 0 {
        return Ok(Recovery { next_sequence: journal.sequence().wrapping_add(1), ..Recovery::default() });
    }
    let mut scan = Scan::new(journal, read);
    scan.run()?;
    let end = scan.sequence_end();
    let map = replay(journal, read, blocks, &scan)?;
    let fast_commits = fast_commit::read(journal, read, inode_size, end)?;
    Ok(Recovery { blocks: map, fast_commits, next_sequence: end.wrapping_add(1) })
}

/// One block named by a descriptor.
#[derive(Debug, Clone, Copy)]
struct Logged {
    block: u64,
    index: u32,
    escaped: bool,
    checksum: u32,
    sequence: u32,
}

/// The walk through all transactions, which collects what the complete ones hold.
struct Scan<'a> {
    journal: &'a JournalSuperblock,
    read: &'a dyn Fn(u32) -> Result<Vec<u8>>,
    position: u32,
    walked: u32,
    sequence: u32,
    /// Where a commit failed its checksum: nothing from there on counts.
    failed: Option<u32>,
    /// Whether a block of this transaction failed its checksum; the commit's time tells a stale block from
    /// damage.
    suspect: bool,
    last_commit_time: u64,
    transaction_crc: u32,
    logged: Vec<Logged>,
    /// The revoke blocks, each with its transaction. What they list is read later, when it is known which
    /// blocks matter: a crafted journal could list more than memory holds.
    revokes: Vec<(u32, u32)>,
    /// How many of `logged` and `revokes` belong to complete transactions.
    complete: (usize, usize),
}

/// What the walk does after a block.
enum Step {
    On,
    End,
}

impl<'a> Scan<'a> {
    fn new(journal: &'a JournalSuperblock, read: &'a dyn Fn(u32) -> Result<Vec<u8>>) -> Self {
        Self {
            journal,
            read,
            position: journal.start(),
            walked: 0,
            sequence: journal.sequence(),
            failed: None,
            suspect: false,
            last_commit_time: 0,
            transaction_crc: !0,
            logged: Vec::new(),
            revokes: Vec::new(),
            complete: (0, 0),
        }
    }

    /// The number of the first transaction that is not replayed.
    fn sequence_end(&self) -> u32 {
        self.failed.unwrap_or(self.sequence)
    }

    /// Moves to the next block of the log, which wraps around at its end.
    fn advance(&mut self) -> Result<u32> {
        let index = self.position;
        self.walked += 1;
        if self.walked > self.journal.end - self.journal.first {
            return Err(Error::corrupt(Place::Journal(index.into()), "the journal runs into itself"));
        }
        self.position = if index + 1 >= self.journal.end { self.journal.first } else { index + 1 };
        Ok(index)
    }

    fn run(&mut self) -> Result<()> {
        while self.walked < self.journal.end - self.journal.first {
            let index = self.advance()?;
            let block = (self.read)(index)?;
            let Ok((header, _)) = Header::read_from_prefix(&block) else { break };
            if header.h_magic.get() != MAGIC || header.h_sequence.get() != self.sequence {
                break;
            }
            let step = match header.h_blocktype.get() {
                TYPE_DESCRIPTOR => self.descriptor(&block)?,
                TYPE_REVOKE => self.revoke(index, &block)?,
                TYPE_COMMIT => self.commit(index, &block)?,
                _ => Step::End,
            };
            if matches!(step, Step::End) {
                break;
            }
        }
        Ok(())
    }

    /// Whether the checksum at the end of a descriptor or revoke block is right, or there is none.
    fn tail_is_right(&self, block: &[u8]) -> bool {
        let Some(seed) = self.journal.seed() else { return true };
        let at = block.len() - TAIL;
        crc32c_without(seed, block, at) == be32(block, at)
    }

    fn descriptor(&mut self, block: &[u8]) -> Result<Step> {
        if !self.tail_is_right(block) {
            self.suspect = true;
        }
        self.transaction_crc = match self.journal.checksums {
            Checksums::Transaction => crc32_be(self.transaction_crc, block),
            _ => self.transaction_crc,
        };
        for (block, flags, checksum) in tags(self.journal, block) {
            let index = match self.advance() {
                Ok(index) => index,
                // Tags beyond the log's own length can only come from a stale block.
                Err(_) => return Ok(Step::End),
            };
            if self.journal.checksums == Checksums::Transaction {
                self.transaction_crc = crc32_be(self.transaction_crc, &(self.read)(index)?);
            }
            let escaped = flags & TAG_ESCAPED != 0;
            self.logged.push(Logged { block, index, escaped, checksum, sequence: self.sequence });
        }
        Ok(Step::On)
    }

    fn revoke(&mut self, index: u32, block: &[u8]) -> Result<Step> {
        if !self.tail_is_right(block) {
            self.suspect = true;
            return Ok(Step::On);
        }
        self.revokes.push((index, self.sequence));
        Ok(Step::On)
    }

    fn commit(&mut self, index: u32, block: &[u8]) -> Result<Step> {
        let Ok((commit, _)) = Commit::read_from_prefix(block) else { return Ok(Step::End) };
        let time = commit.h_commit_sec.get();
        let damaged = |problem| Err(Error::corrupt(Place::Journal(index.into()), problem));
        if self.suspect {
            return match time >= self.last_commit_time {
                true => damaged("a transaction has a block with a wrong checksum"),
                // An older transaction lay here, and the newer one never got this far.
                false => Ok(Step::End),
            };
        }
        if self.failed.is_some() && self.journal.checksums == Checksums::Transaction {
            return damaged("a transaction before the last has a wrong checksum");
        }
        if !self.commit_is_right(block, &commit) {
            if time < self.last_commit_time {
                return Ok(Step::End);
            }
            if !self.journal.async_commit {
                return damaged("a commit block has a wrong checksum");
            }
            self.failed = self.failed.or(Some(self.sequence));
        }
        if self.failed.is_none() {
            self.complete = (self.logged.len(), self.revokes.len());
        }
        self.last_commit_time = time;
        self.transaction_crc = !0;
        self.sequence = self.sequence.wrapping_add(1);
        Ok(Step::On)
    }

    fn commit_is_right(&self, block: &[u8], commit: &Commit) -> bool {
        let at = std::mem::offset_of!(Commit, h_chksum);
        let found = commit.h_chksum[0].get();
        let kind = (commit.h_chksum_type, commit.h_chksum_size);
        match (self.journal.checksums, self.journal.seed()) {
            (Checksums::None, _) => true,
            (Checksums::Transaction, _) => {
                (kind == CHECKSUM_CRC32 && found == self.transaction_crc) || (kind == (0, 0) && found == 0)
            }
            (_, Some(seed)) => {
                // Old kernels left what was behind the header, and computed the checksum before that.
                let mut cut = vec![0; block.len()];
                cut[..64].copy_from_slice(&block[..64]);
                crc32c_without(seed, block, at) == found || crc32c_without(seed, &cut, at) == found
            }
            (_, None) => true,
        }
    }
}

/// Decodes the tags of a descriptor: block, flags and checksum of each.
fn tags(journal: &JournalSuperblock, descriptor: &[u8]) -> Vec<(u64, u32, u32)> {
    let tail = if journal.seed().is_some() { TAIL } else { 0 };
    let size = match (journal.checksums, journal.is_64bit) {
        (Checksums::Blocks32, _) => size_of::<Tag3>(),
        (Checksums::Blocks16, true) => 14,
        (Checksums::Blocks16, false) => 10,
        (_, true) => 12,
        (_, false) => 8,
    };
    let mut tags = Vec::new();
    let mut rest = &descriptor[size_of::<Header>()..descriptor.len() - tail];
    while rest.len() >= size {
        let (block, flags, checksum) = decode_tag(journal, &rest[..size]);
        tags.push((block, flags, checksum));
        if flags & TAG_LAST != 0 {
            break;
        }
        let uuid = if flags & TAG_SAME_UUID == 0 { 16 } else { 0 };
        rest = rest.get(size + uuid..).unwrap_or_default();
    }
    tags
}

fn decode_tag(journal: &JournalSuperblock, bytes: &[u8]) -> (u64, u32, u32) {
    if journal.checksums == Checksums::Blocks32 {
        // The caller cut exactly one tag.
        let Ok(tag) = Tag3::read_from_bytes(bytes) else { return (0, TAG_LAST, 0) };
        let high = if journal.is_64bit { u64::from(tag.t_blocknr_high.get()) << 32 } else { 0 };
        return (high | u64::from(tag.t_blocknr.get()), tag.t_flags.get(), tag.t_checksum.get());
    }
    let Ok((tag, rest)) = Tag::read_from_prefix(bytes) else { return (0, TAG_LAST, 0) };
    let high = if journal.is_64bit { u64::from(be32(rest, 0)) << 32 } else { 0 };
    let block = high | u64::from(tag.t_blocknr.get());
    (block, tag.t_flags.get().into(), tag.t_checksum.get().into())
}

/// Builds the map out of the complete transactions: the newest content of each block that was not revoked
/// later.
fn replay(
    journal: &JournalSuperblock,
    read: &dyn Fn(u32) -> Result<Vec<u8>>,
    blocks: u64,
    scan: &Scan<'_>,
) -> Result<HashMap<u64, Replayed>> {
    let revoked = revoked(journal, read, scan)?;
    let mut map = HashMap::new();
    for logged in &scan.logged[..scan.complete.0] {
        let gone = revoked.get(&logged.block).is_some_and(|&revoke| !is_later(logged.sequence, revoke));
        if gone {
            continue;
        }
        let place = Place::Journal(logged.index.into());
        if logged.block >= blocks {
            return Err(Error::mismatch(place, "the block a transaction changes", blocks, logged.block));
        }
        verify_data(journal, read, logged)?;
        map.insert(logged.block, Replayed { index: logged.index, escaped: logged.escaped });
    }
    Ok(map)
}

/// The last transaction that revoked each logged block, of those that any did.
fn revoked(
    journal: &JournalSuperblock,
    read: &dyn Fn(u32) -> Result<Vec<u8>>,
    scan: &Scan<'_>,
) -> Result<HashMap<u64, u32>> {
    let logged: HashSet<u64> = scan.logged[..scan.complete.0].iter().map(|logged| logged.block).collect();
    let mut revoked: HashMap<u64, u32> = HashMap::new();
    for &(index, sequence) in &scan.revokes[..scan.complete.1] {
        let block = read(index)?;
        for number in revoke_records(journal, index, &block)? {
            if logged.contains(&number) {
                // Blocks come in the order of transactions, so the later one replaces the earlier.
                revoked.insert(number, sequence);
            }
        }
    }
    Ok(revoked)
}

/// Decodes the block numbers that a revoke block lists.
fn revoke_records(journal: &JournalSuperblock, index: u32, block: &[u8]) -> Result<Vec<u64>> {
    let corrupt = || Error::corrupt(Place::Journal(index.into()), "a revoke block is longer than a block");
    let tail = if journal.seed().is_some() { TAIL } else { 0 };
    let (revoke, _) = Revoke::read_from_prefix(block).map_err(|_| corrupt())?;
    let used = usize::try_from(revoke.r_count.get()).unwrap_or(usize::MAX);
    if used > block.len() - tail {
        return Err(corrupt());
    }
    let records = block.get(size_of::<Revoke>()..used).ok_or_else(corrupt)?;
    Ok(match journal.is_64bit {
        true => records
            .chunks_exact(8)
            .map(|record| (u64::from(be32(record, 0)) << 32) | u64::from(be32(record, 4)))
            .collect(),
        false => records.chunks_exact(4).map(|record| be32(record, 0).into()).collect(),
    })
}

fn verify_data(
    journal: &JournalSuperblock,
    read: &dyn Fn(u32) -> Result<Vec<u8>>,
    logged: &Logged,
) -> Result<()> {
    let Some(seed) = journal.seed() else { return Ok(()) };
    let content = read(logged.index)?;
    let full = crc32c(crc32c(seed, &logged.sequence.to_be_bytes()), &content);
    let expected = if journal.checksums == Checksums::Blocks16 { full & 0xffff } else { full };
    if expected != logged.checksum {
        let place = Place::Journal(logged.index.into());
        let (expected, actual) = (expected.into(), logged.checksum.into());
        return Err(Error::mismatch(place, "the checksum of a journalled block", expected, actual));
    }
    Ok(())
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
