//! Fast commits: changes to files since the last full commit, as a list of tags.

use super::superblock::JournalSuperblock;
use crate::checksum::crc32c;
use crate::dir_block::{NAME_MAX, get_u16, get_u32};
use crate::error::{Error, Result};

/// The bytes before a tag's value: its number and length.
const TAG_HEADER: usize = 4;

const TAG_ADD_RANGE: u16 = 1;
const TAG_DEL_RANGE: u16 = 2;
const TAG_CREATE: u16 = 3;
const TAG_LINK: u16 = 4;
const TAG_UNLINK: u16 = 5;
const TAG_INODE: u16 = 6;
const TAG_PAD: u16 = 7;
const TAG_TAIL: u16 = 8;
const TAG_HEAD: u16 = 9;

/// The most blocks that an extent maps; longer ones stand for unwritten space.
const INIT_MAX_LEN: u16 = 32768;

/// One change to a file or directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FastCommit {
    /// A range of a file is mapped to these blocks.
    AddRange { inode: u32, logical: u32, physical: u64, len: u32, unwritten: bool },
    /// A range of a file became a hole.
    DelRange { inode: u32, logical: u32, len: u32 },
    /// A new inode got its first name.
    Create { parent: u32, inode: u32, name: Vec<u8> },
    /// An inode got another name.
    Link { parent: u32, inode: u32, name: Vec<u8> },
    /// An inode lost a name.
    Unlink { parent: u32, inode: u32, name: Vec<u8> },
    /// The fields of an inode, as on the volume; its map of blocks counts only for inline data.
    Inode { inode: u32, raw: Vec<u8> },
}

/// Reads the fast commits that follow the transaction before number `tid`; stops like the kernel at the first
/// sign of older or torn ones.
pub(crate) fn read(
    journal: &JournalSuperblock,
    read: &dyn Fn(u32) -> Result<Vec<u8>>,
    inode_size: u16,
    tid: u32,
) -> Result<Vec<FastCommit>> {
    let mut scan = Scan { tid, inode_size, crc: 0, pending: Vec::new(), committed: Vec::new(), any: false };
    for index in journal.fast_commits.clone() {
        let block = read(index)?;
        let first = index == journal.fast_commits.start;
        if first && get_u16(&block, 0) != TAG_HEAD {
            break;
        }
        if !scan.block(&block)? {
            break;
        }
    }
    Ok(scan.committed)
}

struct Scan {
    tid: u32,
    inode_size: u16,
    crc: u32,
    /// The tags since the last tail, which count only with theirs.
    pending: Vec<FastCommit>,
    committed: Vec<FastCommit>,
    /// Whether any tail was met.
    any: bool,
}

impl Scan {
    /// Takes one block; answers whether the next one may continue.
    fn block(&mut self, block: &[u8]) -> Result<bool> {
        let mut rest = block;
        while rest.len() >= TAG_HEADER {
            let (tag, len) = (get_u16(rest, 0), usize::from(get_u16(rest, 2)));
            let Some(value) = rest.get(TAG_HEADER..TAG_HEADER + len) else { return Ok(false) };
            if !self.is_sound(tag, len) || !self.tag(tag, value, &rest[..TAG_HEADER + len])? {
                return Ok(false);
            }
            rest = &rest[TAG_HEADER + len..];
        }
        Ok(true)
    }

    fn is_sound(&self, tag: u16, len: usize) -> bool {
        match tag {
            TAG_ADD_RANGE => len == 16,
            TAG_DEL_RANGE => len == 12,
            TAG_CREATE | TAG_LINK | TAG_UNLINK => (9..=8 + NAME_MAX).contains(&len),
            TAG_INODE => (4 + 128..=4 + usize::from(self.inode_size)).contains(&len),
            TAG_PAD => true,
            TAG_TAIL => len >= 8,
            TAG_HEAD => len == 8,
            _ => false,
        }
    }

    fn tag(&mut self, tag: u16, value: &[u8], whole: &[u8]) -> Result<bool> {
        match tag {
            TAG_TAIL => return Ok(self.tail(value, whole)),
            TAG_HEAD if get_u32(value, 0) != 0 => {
                return Err(Error::unsupported("the journal has fast commits of a kind not supported"));
            }
            TAG_HEAD if get_u32(value, 4) != self.tid => return Ok(false),
            TAG_HEAD | TAG_PAD => {}
            _ => self.pending.push(decode(tag, value)),
        }
        self.crc = crc32c(self.crc, whole);
        Ok(true)
    }

    /// Accepts what is pending if the tail is of this transaction and whole.
    fn tail(&mut self, value: &[u8], whole: &[u8]) -> bool {
        let crc = crc32c(self.crc, &whole[..TAG_HEADER + 4]);
        self.crc = 0;
        let accepted = get_u32(value, 0) == self.tid && get_u32(value, 4) == crc;
        if accepted {
            self.committed.append(&mut self.pending);
            self.any = true;
        }
        accepted
    }
}

/// Decodes a tag whose length is sound.
fn decode(tag: u16, value: &[u8]) -> FastCommit {
    let first = get_u32(value, 0);
    match tag {
        TAG_ADD_RANGE => {
            let len = get_u16(value, 8);
            let high = u64::from(get_u16(value, 10)) << 32;
            FastCommit::AddRange {
                inode: first,
                logical: get_u32(value, 4),
                physical: high | u64::from(get_u32(value, 12)),
                len: u32::from(if len > INIT_MAX_LEN { len - INIT_MAX_LEN } else { len }),
                unwritten: len > INIT_MAX_LEN,
            }
        }
        TAG_DEL_RANGE => {
            FastCommit::DelRange { inode: first, logical: get_u32(value, 4), len: get_u32(value, 8) }
        }
        TAG_INODE => FastCommit::Inode { inode: first, raw: value[4..].to_vec() },
        _ => {
            let (parent, inode, name) = (first, get_u32(value, 4), value[8..].to_vec());
            match tag {
                TAG_CREATE => FastCommit::Create { parent, inode, name },
                TAG_LINK => FastCommit::Link { parent, inode, name },
                _ => FastCommit::Unlink { parent, inode, name },
            }
        }
    }
}
