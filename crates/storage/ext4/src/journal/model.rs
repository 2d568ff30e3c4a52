//! A journal written out of a list of transactions, and what following it must show; for tests and fuzzing.
#![allow(clippy::panic, clippy::unwrap_used)]

use std::collections::BTreeMap;

use zerocopy::{FromZeros, IntoBytes};

use super::checksum::{crc32_be, crc32c_without};
use super::layout::{
    CHECKSUM_CRC32, CHECKSUM_CRC32C, COMPAT_CHECKSUM, Commit, Header, INCOMPAT_64BIT, INCOMPAT_CSUM_V2,
    INCOMPAT_CSUM_V3, INCOMPAT_REVOKE, MAGIC, RawSuperblock, Revoke, TAG_ESCAPED, TAG_LAST, TAG_SAME_UUID,
    TYPE_COMMIT, TYPE_DESCRIPTOR, TYPE_REVOKE, TYPE_SUPERBLOCK_V2, Tag, Tag3,
};
use super::superblock::Checksums;
use super::{JournalSuperblock, recover};
use crate::checksum::crc32c;
use crate::error::{ErrorKind, Result};

const BLOCK: usize = 1024;
const BLOCKS: u32 = 64;
/// How many blocks the volume has.
const VOLUME: u64 = 40;

/// What one transaction holds: blocks with the byte that fills them, and blocks revoked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Transaction {
    writes: Vec<(u64, u8)>,
    revokes: Vec<u64>,
}

/// A journal with its script.
struct Model {
    checksums: Checksums,
    is_64bit: bool,
    first_sequence: u32,
    start: u32,
    transactions: Vec<Transaction>,
    /// Whether the last transaction has its commit block.
    finished: bool,
}

/// Makes a journal out of arbitrary bytes, damages it as they say, and checks what following it shows.
///
/// A journal that is not damaged must show every complete transaction. One that is may be refused as corrupt or
/// show those up to some point; where blocks have no checksums, damage to content may go unseen.
pub fn check(bytes: &[u8]) {
    let mut bytes = bytes.iter().copied();
    let mut next = || bytes.next().unwrap_or(0);
    let checksums = [Checksums::None, Checksums::Transaction, Checksums::Blocks16, Checksums::Blocks32]
        [usize::from(next() % 4)];
    let (is_64bit, finished) = (next() % 2 == 1, next() % 4 != 0);
    // Numbers close to the end wrap around.
    let first_sequence = if next() % 2 == 1 { u32::MAX - 1 } else { 7 };
    let start = 1 + u32::from(next()) % (BLOCKS - 1);
    let (damage_at, damage) = (usize::from(next()) << 8 | usize::from(next()), next());
    let transactions = (0..1 + next() % 5).map(|_| transaction(&mut next)).collect();
    let model = Model { checksums, is_64bit, first_sequence, start, transactions, finished };
    let (mut blocks, used) = model.write();
    let at = BLOCK + damage_at % (blocks.len() - BLOCK);
    let damaged = damage != 0 && used.contains(&(at / BLOCK));
    blocks[at] ^= damage;
    model.compare(&blocks, damaged);
}

fn transaction(next: &mut dyn FnMut() -> u8) -> Transaction {
    let mut transaction = Transaction::default();
    for _ in 0..next() % 8 {
        let block = u64::from(next()) % VOLUME;
        if !transaction.writes.iter().any(|(other, _)| *other == block) {
            transaction.writes.push((block, next()));
        }
    }
    for _ in 0..next() % 3 {
        let block = u64::from(next()) % VOLUME;
        // Within one transaction a block is either written or revoked.
        if !transaction.writes.iter().any(|(other, _)| *other == block) {
            transaction.revokes.push(block);
        }
    }
    transaction
}

/// What a block filled with `byte` holds; one byte stands for content that begins as the journal's blocks do.
fn content(byte: u8) -> Vec<u8> {
    let mut content = vec![byte; BLOCK];
    if byte == 0xc0 {
        content[..4].copy_from_slice(&MAGIC.to_be_bytes());
    }
    content
}

impl Model {
    fn superblock(&self) -> Vec<u8> {
        let mut raw = RawSuperblock::new_zeroed();
        raw.header.h_magic = MAGIC.into();
        raw.header.h_blocktype = TYPE_SUPERBLOCK_V2.into();
        raw.s_blocksize = (BLOCK as u32).into();
        raw.s_maxlen = BLOCKS.into();
        raw.s_first = 1.into();
        raw.s_start = self.start.into();
        raw.s_sequence = self.first_sequence.into();
        let checksums = match self.checksums {
            Checksums::Blocks16 => INCOMPAT_CSUM_V2,
            Checksums::Blocks32 => INCOMPAT_CSUM_V3,
            _ => 0,
        };
        let wide = if self.is_64bit { INCOMPAT_64BIT } else { 0 };
        raw.s_feature_incompat = (INCOMPAT_REVOKE | checksums | wide).into();
        raw.s_feature_compat =
            if self.checksums == Checksums::Transaction { COMPAT_CHECKSUM } else { 0 }.into();
        raw.s_checksum_type = if checksums == 0 { 0 } else { CHECKSUM_CRC32C };
        raw.s_uuid = *b"sixteen bytes...";
        raw.s_checksum = crc32c_without(!0, raw.as_bytes(), 0xfc).into();
        raw.as_bytes().to_vec()
    }

    /// Writes the whole journal; answers it and which of its blocks the transactions fill.
    fn write(&self) -> (Vec<u8>, Vec<usize>) {
        let mut log = Log { model: self, blocks: self.superblock(), used: Vec::new(), position: self.start };
        log.blocks.resize(BLOCK * BLOCKS as usize, 0);
        for (number, transaction) in self.transactions.iter().enumerate() {
            let sequence = self.first_sequence.wrapping_add(number as u32);
            let commits = self.finished || number + 1 < self.transactions.len();
            log.transaction(transaction, sequence, commits);
        }
        (log.blocks, log.used)
    }

    /// The volume's blocks after the first so many transactions.
    fn after(&self, transactions: usize) -> BTreeMap<u64, u8> {
        let mut volume = BTreeMap::new();
        for (number, transaction) in self.transactions[..transactions].iter().enumerate() {
            for &(block, byte) in &transaction.writes {
                let revoked = self.transactions[number..transactions].iter();
                if !revoked.clone().any(|later| later.revokes.contains(&block)) {
                    volume.insert(block, byte);
                }
            }
        }
        volume
    }

    fn complete(&self) -> usize {
        self.transactions.len() - usize::from(!self.finished)
    }

    fn follow(&self, blocks: &[u8]) -> Result<BTreeMap<u64, Vec<u8>>> {
        let read = |index: u32| Ok(blocks[index as usize * BLOCK..(index as usize + 1) * BLOCK].to_vec());
        let journal = JournalSuperblock::parse(&blocks[..1024], BLOCK as u32, BLOCKS.into())?;
        let recovery = recover(&journal, &read, VOLUME, 256)?;
        let shown = recovery.blocks.iter().map(|(&block, replayed)| {
            let mut content = read(replayed.index)?;
            if replayed.escaped {
                content[..4].copy_from_slice(&MAGIC.to_be_bytes());
            }
            Ok((block, content))
        });
        shown.collect()
    }

    fn compare(&self, blocks: &[u8], damaged: bool) {
        let expected = |transactions: usize| -> BTreeMap<u64, Vec<u8>> {
            self.after(transactions).into_iter().map(|(block, byte)| (block, content(byte))).collect()
        };
        let guarded = matches!(self.checksums, Checksums::Blocks16 | Checksums::Blocks32);
        match self.follow(blocks) {
            Ok(shown) if !damaged => assert!(shown == expected(self.complete())),
            Ok(shown) if guarded => assert!((0..=self.complete()).any(|count| shown == expected(count))),
            Ok(_) => {}
            Err(error) => {
                assert!(damaged, "{error}");
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            }
        }
    }
}

/// The log while it is written.
struct Log<'a> {
    model: &'a Model,
    blocks: Vec<u8>,
    used: Vec<usize>,
    position: u32,
}

impl Log<'_> {
    fn put(&mut self, block: &[u8]) {
        let at = self.position as usize;
        self.blocks[at * BLOCK..(at + 1) * BLOCK].copy_from_slice(block);
        self.used.push(at);
        self.position = if self.position + 1 == BLOCKS { 1 } else { self.position + 1 };
    }

    fn seed(&self) -> Option<u32> {
        let guarded = matches!(self.model.checksums, Checksums::Blocks16 | Checksums::Blocks32);
        guarded.then(|| crc32c(!0, b"sixteen bytes..."))
    }

    fn seal(&self, mut block: Vec<u8>, at: usize) -> Vec<u8> {
        if let Some(seed) = self.seed() {
            let checksum = crc32c_without(seed, &block, at);
            block[at..at + 4].copy_from_slice(&checksum.to_be_bytes());
        }
        block
    }

    fn transaction(&mut self, transaction: &Transaction, sequence: u32, commits: bool) {
        let mut crc = !0;
        if !transaction.revokes.is_empty() {
            let block = self.revoke(transaction, sequence);
            self.put(&block);
        }
        if !transaction.writes.is_empty() {
            let blocks = self.descriptor(transaction, sequence);
            for block in blocks {
                crc = crc32_be(crc, &block);
                self.put(&block);
            }
        }
        if commits {
            let mut commit = Commit::new_zeroed();
            commit.header = header(TYPE_COMMIT, sequence);
            commit.h_commit_sec = 1000.into();
            if self.model.checksums == Checksums::Transaction {
                (commit.h_chksum_type, commit.h_chksum_size) = CHECKSUM_CRC32;
                commit.h_chksum[0] = crc.into();
            }
            let mut block = commit.as_bytes().to_vec();
            block.resize(BLOCK, 0);
            let block = self.seal(block, std::mem::offset_of!(Commit, h_chksum));
            self.put(&block);
        }
    }

    fn revoke(&self, transaction: &Transaction, sequence: u32) -> Vec<u8> {
        let mut records = Vec::new();
        for &block in &transaction.revokes {
            match self.model.is_64bit {
                true => records.extend(block.to_be_bytes()),
                false => records.extend((block as u32).to_be_bytes()),
            }
        }
        let count = (size_of::<Revoke>() + records.len()) as u32;
        let revoke = Revoke { header: header(TYPE_REVOKE, sequence), r_count: count.into() };
        let mut block = revoke.as_bytes().to_vec();
        block.extend(records);
        block.resize(BLOCK, 0);
        self.seal(block, BLOCK - 4)
    }

    /// The descriptor and the blocks behind it.
    fn descriptor(&self, transaction: &Transaction, sequence: u32) -> Vec<Vec<u8>> {
        let mut descriptor = header(TYPE_DESCRIPTOR, sequence).as_bytes().to_vec();
        let mut data = Vec::new();
        let last = transaction.writes.len() - 1;
        for (number, &(block, byte)) in transaction.writes.iter().enumerate() {
            let mut held = content(byte);
            let mut flags = if number == last { TAG_LAST } else { 0 };
            if held[..4] == MAGIC.to_be_bytes() {
                held[..4].fill(0);
                flags |= TAG_ESCAPED;
            }
            if number > 0 {
                flags |= TAG_SAME_UUID;
            }
            let checksum = self.seed().map_or(0, |seed| crc32c(crc32c(seed, &sequence.to_be_bytes()), &held));
            descriptor.extend(self.tag(block, flags, checksum));
            if number == 0 {
                descriptor.extend(b"sixteen bytes...");
            }
            data.push(held);
        }
        descriptor.resize(BLOCK, 0);
        let descriptor = self.seal(descriptor, BLOCK - 4);
        std::iter::once(descriptor).chain(data).collect()
    }

    fn tag(&self, block: u64, flags: u32, checksum: u32) -> Vec<u8> {
        let (low, high) = (block as u32, (block >> 32) as u32);
        if self.model.checksums == Checksums::Blocks32 {
            let tag = Tag3 {
                t_blocknr: low.into(),
                t_flags: flags.into(),
                t_blocknr_high: high.into(),
                t_checksum: checksum.into(),
            };
            return tag.as_bytes().to_vec();
        }
        let tag = Tag {
            t_blocknr: low.into(),
            t_checksum: (checksum as u16).into(),
            t_flags: (flags as u16).into(),
        };
        let mut bytes = tag.as_bytes().to_vec();
        if self.model.is_64bit {
            bytes.extend(high.to_be_bytes());
        }
        if self.model.checksums == Checksums::Blocks16 {
            bytes.extend([0; 2]);
        }
        bytes
    }
}

fn header(kind: u32, sequence: u32) -> Header {
    Header { h_magic: MAGIC.into(), h_blocktype: kind.into(), h_sequence: sequence.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn journals_show_what_was_written_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 8..120)) {
            check(&bytes);
        }
    }

    #[test]
    fn a_full_undamaged_journal_of_every_form_shows_its_last_state() {
        for form in 0..4 {
            for wide in 0..2 {
                let writes = [3, 9, 1, 0xc0, 2, 5];
                let script = [form, wide, 1, 1, 60, 0, 0, 0, 3];
                let transactions = [3, writes[0], 7, writes[1], 8, writes[2], 0xc0, 1, 9, 2];
                check(&[&script[..], &transactions, &transactions].concat());
            }
        }
    }
}
