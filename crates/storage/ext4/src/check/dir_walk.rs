//! The entries of one block of a directory, each checked against what is known of inodes.

use std::collections::HashMap;

use super::dir_index::{Index, Kind};
use super::facts::{Directory, DirectoryBlock, mark};
use super::{Checker, Place, Problem};
use crate::checksum::crc32c;
use crate::dir_block::{
    DirFormat, TYPE_DIRECTORY, decode_rec_len, encode_rec_len, get_u16, get_u32, put_u16, put_u32,
};
use crate::error::Result;
use crate::features::incompat;
use crate::fold;
use crate::group::INODE_UNINIT;
use crate::inode::{ROOT_INODE, flags};

/// The bytes of an entry before its name.
const HEADER: usize = 8;

/// The size of the entry that carries a block's checksum.
const TAIL: usize = 12;

/// The first inode that is not reserved in any volume that was ever made.
const FIRST_FREE: u32 = 11;

/// The shortest encrypted name.
const ENCRYPTED_NAME: usize = 16;

/// `s_encoding_flags`: names that are no valid text are refused.
const STRICT: u16 = 1;

/// The walk through one directory.
pub(super) struct Walk {
    pub(super) format: DirFormat,
    index: usize,
    directory: Directory,
    /// Entries but the first two hold a hash behind their name.
    extended: bool,
    /// Names must be valid text.
    text: bool,
    block_size: usize,
}

/// The names of one block, and where they lead.
type Seen = HashMap<Vec<u8>, u32>;

/// What becomes of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Keep,
    Remove,
}

/// The bytes that an entry with a name of this length needs.
fn needed(name_len: usize, extended: bool) -> usize {
    (HEADER + name_len).next_multiple_of(4) + if extended { 8 } else { 0 }
}

fn name(record: &[u8]) -> &[u8] {
    let end = HEADER + usize::from(record[6]);
    record.get(HEADER..end).unwrap_or_default()
}

impl Walk {
    pub(super) fn new(checker: &Checker, index: usize, directory: &Directory) -> Self {
        let both = flags::ENCRYPT | flags::CASEFOLD;
        let strict = checker.superblock.raw().s_encoding_flags.get() & STRICT != 0;
        Self {
            format: super::directories::format(checker, directory),
            index,
            directory: *directory,
            extended: directory.flags & both == both,
            text: strict && super::directories::folds(&checker.superblock, directory.flags),
            block_size: checker.superblock.block_size as usize,
        }
    }

    fn content(&self, at: &DirectoryBlock) -> Place {
        Place::Content { inode: self.directory.inode, block: at.logical.into() }
    }

    fn place(&self, name: &[u8]) -> Place {
        Place::Entry { directory: self.directory.inode, name: name.to_vec() }
    }

    /// Checks a block; where the check repairs, it is written as it should be.
    pub(super) fn block(
        &mut self,
        checker: &mut Checker,
        at: &DirectoryBlock,
        mut content: Vec<u8>,
        mut tree: Option<&mut Index>,
    ) -> Result<()> {
        let before = content.clone();
        let kind = match tree.as_deref_mut() {
            Some(tree) => tree.kind(checker, at.logical, &content, self.format.seed.is_some()),
            None => Kind::Leaf,
        };
        let mut room = content.len();
        let mut resealed = false;
        if let (Kind::Leaf, Some(seed)) = (kind, self.format.seed) {
            let (names, tail) = content.split_at(room - TAIL);
            if tail[..8] != [0, 0, 0, 0, TAIL as u8, 0, 0, 0xde] {
                checker.findings.field(Problem::DirectoryChecksum, self.content(at), "missing", 0);
                checker.repairs.rebuild(self.directory.inode);
            } else {
                room -= TAIL;
                let (expected, found) = (crc32c(seed, names), get_u32(tail, 8));
                if expected != found {
                    let (expected, found) = (expected.into(), found.into());
                    let place = self.content(at);
                    checker.findings.mismatch(Problem::DirectoryChecksum, place, "", expected, found);
                    resealed = true;
                }
            }
        }
        let first = if at.logical == 0 { 0 } else { 2 };
        let hashes = tree.as_deref_mut().filter(|_| kind == Kind::Leaf);
        self.chain(checker, Some(at), &mut content[..room], first, hashes);
        match tree {
            Some(tree) if kind == Kind::Leaf => tree.leaf(at.logical),
            Some(tree) => tree.node(checker, at.logical, &content, &self.format),
            None => {}
        }
        if resealed || content != before {
            checker.put_directory_block(&self.format, at, kind, content)?;
        }
        Ok(())
    }

    /// Takes over where an inline directory says that its parent is.
    pub(super) fn inline_parent(&mut self, checker: &mut Checker, parent: u32) {
        let mut record = [0; 12];
        put_u32(&mut record, 0, parent);
        put_u16(&mut record, 4, 12);
        record[6..10].copy_from_slice(&[2, TYPE_DIRECTORY, b'.', b'.']);
        // It has no entry for itself, which counts all the same.
        checker.tree.count(self.directory.inode);
        self.format.file_types = true;
        self.entry(checker, 1, &mut record, &mut Seen::new(), None);
        self.format.file_types = checker.superblock.features.has_incompat(incompat::FILETYPE);
    }

    /// Checks one of the two chains of an inline directory, and puts it right.
    pub(super) fn inline_chain(&mut self, checker: &mut Checker, chain: &mut [u8]) {
        self.chain(checker, None, chain, 2, None);
    }

    /// Walks a chain of entries. `state` is 0 where the first is that of the directory itself.
    fn chain(
        &mut self,
        checker: &mut Checker,
        at: Option<&DirectoryBlock>,
        block: &mut [u8],
        mut state: usize,
        mut tree: Option<&mut Index>,
    ) {
        let (mut offset, mut previous, mut seen) = (0, None, Seen::new());
        loop {
            if offset >= block.len() {
                // The entry of the directory itself may cover all, and its parent's be missing.
                if state != 1 || block.len() < 24 {
                    return;
                }
                put_u16(block, 4, 12);
                empty(&mut block[12..]);
                offset = 12;
            }
            let extended = state > 1 && self.extended;
            let Some(rec_len) = fits(&block[offset..], extended, self.block_size) else {
                let place = at.map_or(Place::Inode(self.directory.inode), |at| self.content(at));
                checker.findings.field(Problem::DirectoryEntry, place, "rec_len", offset as u64);
                let absorbing = previous.filter(|_| state != 1);
                let length = length(&block[offset..], self.block_size);
                offset = salvage(block, offset, length, absorbing, extended);
                continue;
            };
            let record = &mut block[offset..offset + rec_len];
            self.entry(checker, state, record, &mut seen, tree.as_deref_mut());
            previous = Some(offset);
            offset += rec_len;
            state = (state + 1).min(2);
        }
    }

    /// Checks one entry, whose record fits.
    fn entry(
        &mut self,
        checker: &mut Checker,
        state: usize,
        record: &mut [u8],
        seen: &mut Seen,
        tree: Option<&mut Index>,
    ) {
        if state < 2 {
            self.own_entry(checker, state, record);
        }
        let inode = get_u32(record, 0);
        if inode == 0 {
            return;
        }
        if let Some(problem) = self.misled(checker, state, inode, name(record)) {
            checker.findings.field(problem, self.place(name(record)), "inode", inode.into());
            if state < 2 {
                checker.tree.dotdots[self.index] = 0;
            } else if problem.is_repairable() {
                put_u32(record, 0, 0);
                return;
            }
        }
        self.file_type(checker, record);
        if self.name(checker, state, record) == Fate::Remove
            || state > 1 && self.directory_again(checker, record) == Fate::Remove
            || self.again(checker, record, seen) == Fate::Remove
        {
            put_u32(record, 0, 0);
            return;
        }
        if let Some(tree) = tree {
            let hash = self.extended.then(|| needed(name(record).len(), false));
            let hash = hash.filter(|_| state > 1).map(|at| get_u32(record, at));
            tree.name(name(record), hash);
        }
        checker.tree.count(inode);
    }

    /// Checks the entries that a directory has for itself and its parent.
    fn own_entry(&mut self, checker: &mut Checker, state: usize, record: &mut [u8]) {
        let dots = &b".."[..state + 1];
        let named = get_u32(record, 0) != 0 && name(record) == dots && record[HEADER + dots.len()] == 0;
        let (own, problem) = match state {
            0 => (self.directory.inode, Problem::DirectorySelf),
            // The parent is made right when it is known.
            _ => (ROOT_INODE, Problem::DirectoryParent),
        };
        if !named {
            checker.findings.add(problem, self.place(dots));
            put_u32(record, 0, own);
            record[6] = dots.len() as u8;
            record[7] = if self.format.file_types { TYPE_DIRECTORY } else { 0 };
            record[HEADER..HEADER + 4].fill(0);
            record[HEADER..HEADER + dots.len()].copy_from_slice(dots);
        } else if state == 1 {
            checker.tree.dotdots[self.index] = get_u32(record, 0);
        } else if get_u32(record, 0) != own {
            let (expected, found) = (own.into(), get_u32(record, 0).into());
            checker.findings.mismatch(problem, self.place(dots), "inode", expected, found);
            put_u32(record, 0, own);
        }
    }

    /// Whether an entry leads where none may, and why.
    fn misled(&self, checker: &mut Checker, state: usize, inode: u32, name: &[u8]) -> Option<Problem> {
        if state > 1 && inode == self.directory.inode {
            return Some(Problem::EntrySelf);
        }
        let (superblock, raw) = (&checker.superblock, checker.superblock.raw());
        let hidden =
            [&raw.s_usr_quota_inum, &raw.s_grp_quota_inum, &raw.s_prj_quota_inum, &raw.s_orphan_file_inum];
        let reserved = inode != ROOT_INODE && inode < superblock.first_inode();
        if reserved || inode > superblock.inodes || hidden.iter().any(|hidden| hidden.get() == inode) {
            // Whether the entry or the superblock is wrong cannot be told where there is something.
            let something = inode >= FIRST_FREE && checker.facts.is_used(inode);
            return Some(if something { Problem::EntryReserved } else { Problem::EntryInode });
        }
        if state > 1 && (name == b"." || name == b"..") {
            return Some(Problem::EntryDots);
        }
        if state > 1 && inode == ROOT_INODE {
            return Some(Problem::EntryRoot);
        }
        if state > 1 && name.is_empty() {
            return Some(Problem::EntryNameless);
        }
        if never_used(checker, inode) {
            // Whether it is in use is seen when its group no longer says that it never was.
            checker.findings.field(Problem::EntryUninit, self.place(name), "inode", inode.into());
            checker.repairs.initialise((inode - 1) / checker.superblock.inodes_per_group);
            return None;
        }
        (!checker.facts.is_used(inode)).then_some(Problem::EntryUnused)
    }

    fn file_type(&self, checker: &mut Checker, record: &mut [u8]) {
        let found = record[7];
        let fact = checker.facts.get(get_u32(record, 0));
        let expected = match self.format.file_types {
            true if fact.marks & mark::BAD != 0 || fact.kind == 0 || found == 0 => found,
            true => fact.kind,
            false => 0,
        };
        if found != expected {
            let (expected_type, found) = (expected.into(), found.into());
            let place = self.place(name(record));
            checker.findings.mismatch(Problem::EntryType, place, "file_type", expected_type, found);
            // Where the inode is damaged the entry may be what is right.
            if !checker.repairs.suspects.contains(&get_u32(record, 0)) {
                record[7] = expected;
            }
        }
    }

    fn name(&self, checker: &mut Checker, state: usize, record: &mut [u8]) -> Fate {
        if let Some(policy) = checker.xattrs.policies.get(&self.directory.inode).copied() {
            if state > 1 {
                self.encrypted(checker, record, policy);
            }
            return Fate::Keep;
        }
        if self.text && !fold::is_valid(name(record)) {
            checker.findings.add(Problem::EntryEncoding, self.place(name(record)));
        }
        if name(record).iter().any(|byte| matches!(byte, b'/' | 0)) {
            checker.findings.add(Problem::EntryName, self.place(name(record)));
            let end = HEADER + usize::from(record[6]);
            record[HEADER..end]
                .iter_mut()
                .filter(|byte| matches!(byte, b'/' | 0))
                .for_each(|byte| *byte = b'.');
        }
        Fate::Keep
    }

    /// Checks an entry of an encrypted directory; without the key nothing of it can be put right.
    fn encrypted(&self, checker: &mut Checker, record: &[u8], policy: Option<u32>) {
        let (inode, place) = (get_u32(record, 0), self.place(name(record)));
        if name(record).len() < ENCRYPTED_NAME {
            checker.findings.add(Problem::EncryptedName, place);
            return;
        }
        let kind = match record[7] {
            0 => checker.facts.get(inode).kind,
            kind => kind,
        };
        let same = match checker.xattrs.policies.get(&inode) {
            Some(own) => *own == policy,
            // Only files, directories and links have anything to encrypt.
            None => !matches!(kind, 1 | 2 | 7),
        };
        if !same {
            checker.findings.add(Problem::EncryptionPolicy, place);
        }
    }

    /// A directory has one name; what leads to it again is removed.
    fn directory_again(&self, checker: &mut Checker, record: &[u8]) -> Fate {
        let inode = get_u32(record, 0);
        let Some(index) = checker.facts.is_directory(inode).then(|| checker.directory_index(inode)).flatten()
        else {
            return Fate::Keep;
        };
        if checker.tree.parents[index] == 0 {
            checker.tree.parents[index] = self.directory.inode;
            return Fate::Keep;
        }
        checker.findings.field(Problem::EntryAgain, self.place(name(record)), "inode", inode.into());
        Fate::Remove
    }

    /// A name is in a block once.
    fn again(&self, checker: &mut Checker, record: &[u8], seen: &mut Seen) -> Fate {
        let inode = get_u32(record, 0);
        let folded = if self.text { fold::fold(name(record)) } else { None };
        match seen.insert(folded.unwrap_or_else(|| name(record).to_vec()), inode) {
            None => Fate::Keep,
            Some(first) if first == inode => {
                checker.findings.add(Problem::EntryTwice, self.place(name(record)));
                Fate::Remove
            }
            Some(_) => {
                checker.findings.add(Problem::NameTwice, self.place(name(record)));
                Fate::Keep
            }
        }
    }
}

/// Whether a group says of an inode that it was never used.
fn never_used(checker: &Checker, inode: u32) -> bool {
    let per_group = checker.superblock.inodes_per_group;
    let (group, index) = ((inode - 1) / per_group, (inode - 1) % per_group);
    checker.groups.get(group as usize).is_some_and(|group| {
        group.flags & INODE_UNINIT != 0 || index >= per_group.saturating_sub(group.itable_unused)
    })
}

/// The length of the entry at the beginning of some bytes, if it is possible there.
fn fits(rest: &[u8], extended: bool, block_size: usize) -> Option<usize> {
    let rec_len = length(rest, block_size);
    let possible = rec_len <= rest.len()
        && rec_len >= needed(1, extended)
        && rec_len.is_multiple_of(4)
        && needed(rest[6].into(), extended) <= rec_len;
    possible.then_some(rec_len)
}

/// The length that an entry says it has; zero where there is no room to say it.
fn length(rest: &[u8], block_size: usize) -> usize {
    if rest.len() < HEADER { 0 } else { decode_rec_len(get_u16(rest, 4), block_size) }
}

/// Makes one entry without name of some bytes.
fn empty(rest: &mut [u8]) {
    let len = rest.len() / 4 * 4;
    rest[..4].fill(0);
    put_u16(rest, 4, encode_rec_len(len));
    rest[6..HEADER].fill(0);
}

/// Covers what is no possible entry; answers where to go on.
fn salvage(
    block: &mut [u8],
    offset: usize,
    rec_len: usize,
    previous: Option<usize>,
    extended: bool,
) -> usize {
    let left = block.len() - offset;
    if left >= HEADER + 4 && rec_len > left {
        let name = &block[offset + HEADER..];
        let name_len = usize::from(block[offset + 6]);
        let named = name.get(..name_len).is_some_and(|name| !name.is_empty() && !name.contains(&0));
        if named && needed(name_len, extended) <= left / 4 * 4 {
            put_u16(block, offset + 4, encode_rec_len(left / 4 * 4));
            return offset;
        }
    }
    let within = rec_len > 0 && rec_len.is_multiple_of(4) && rec_len <= left;
    let Some(previous) = previous else {
        if left < HEADER + 4 {
            return block.len();
        }
        empty(&mut block[offset..]);
        return offset;
    };
    let absorbed = if within { rec_len } else { left };
    put_u16(block, previous + 4, encode_rec_len(offset - previous + absorbed / 4 * 4));
    offset + absorbed
}
