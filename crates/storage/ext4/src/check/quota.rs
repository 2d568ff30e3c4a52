//! Quota files: what they say that users, groups and projects use.
//!
//! ```text
//! block 0: magic · version · times · blocks      block 1: root of a tree over the four bytes of an identity
//! leaf: 16 bytes · entries of 72 bytes (identity, limits, use)
//! ```

use std::collections::{BTreeMap, HashSet};

use super::inodes::Found;
use super::{Checker, Place, Problem};
use crate::block_cache::BlockCache;
use crate::dir_block::get_u32;
use crate::error::Result;
use crate::features::ro_compat;
use crate::inode::Inode;

/// The size of a block of a quota file, whatever that of the volume.
const BLOCK: u64 = 1024;

/// The levels of the tree.
const LEVELS: u32 = 4;

/// The magic of the files of users, groups and projects.
const MAGICS: [u32; 3] = [0xd9c0_1f11, 0xd9c0_1927, 0xd9c0_3f14];

/// The largest file.
const MAX_SIZE: u64 = 1 << 31;

/// What somebody uses.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Use {
    pub(super) bytes: u64,
    pub(super) inodes: u64,
}

/// What was counted for each user, group and project.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    counted: [BTreeMap<u32, Use>; 3],
}

/// Counts an inode in use: `bytes` is the space that it takes.
pub(super) fn account(checker: &mut Checker, inode: &Found<'_>, bytes: u64) {
    if !checker.superblock.features.has_ro_compat(ro_compat::QUOTA) {
        return;
    }
    let raw = &inode.raw;
    let join = |low: u16, high: u16| u32::from(low) | u32::from(high) << 16;
    let with_project = usize::from(inode.extra_isize) + crate::layout::CLASSIC_INODE_SIZE >= 0xa0;
    let ids = [
        join(raw.i_uid.get(), raw.l_i_uid_high.get()),
        join(raw.i_gid.get(), raw.l_i_gid_high.get()),
        if with_project { raw.i_projid.get() } else { 0 },
    ];
    let inodes = checker.xattrs.charged_inodes.saturating_add(1);
    for (counted, id) in checker.quota.counted.iter_mut().zip(ids) {
        let used = counted.entry(id).or_default();
        used.bytes = used.bytes.saturating_add(bytes);
        used.inodes = used.inodes.saturating_add(inodes);
    }
}

/// Compares the quota files with what was counted.
pub(super) fn check(checker: &mut Checker) -> Result<()> {
    if !checker.superblock.features.has_ro_compat(ro_compat::QUOTA) {
        return Ok(());
    }
    let raw = checker.superblock.raw();
    let numbers = [raw.s_usr_quota_inum.get(), raw.s_grp_quota_inum.get(), raw.s_prj_quota_inum.get()];
    let counted = std::mem::take(&mut checker.quota.counted);
    for ((number, counted), magic) in numbers.into_iter().zip(&counted).zip(MAGICS) {
        if number != 0 {
            one(checker, number, counted, magic);
        }
    }
    checker.quota.counted = counted;
    Ok(())
}

fn one(checker: &mut Checker, number: u32, counted: &BTreeMap<u32, Use>, magic: u32) {
    let place = Place::Inode(number);
    let stated = checker.fields(number).ok().and_then(|inode| QuotaFile::open(checker, inode, magic)?.read());
    let Some(mut stated) = stated else {
        checker.findings.add(Problem::QuotaFile, place);
        return;
    };
    for (id, counted) in counted {
        let stated = stated.remove(id);
        if stated.is_none_or(|stated| stated != *counted) {
            differs(checker, number, *id, *counted, stated.unwrap_or_default());
        }
    }
    for (id, stated) in stated.into_iter().filter(|(_, stated)| *stated != Use::default()) {
        differs(checker, number, id, Use::default(), stated);
    }
}

fn differs(checker: &mut Checker, number: u32, id: u32, counted: Use, stated: Use) {
    let place = Place::Quota { inode: number, id };
    let (field, expected, found) = match counted.bytes != stated.bytes {
        true => ("bytes", counted.bytes, stated.bytes),
        false => ("inodes", counted.inodes, stated.inodes),
    };
    checker.findings.mismatch(Problem::QuotaUsage, place, field, expected, found);
    let more = |counted: u64, stated: u64| counted.wrapping_sub(stated).cast_signed();
    let by = (more(counted.bytes, stated.bytes), more(counted.inodes, stated.inodes));
    checker.repairs.quota(number, id, by);
}

/// A quota file that is read.
struct QuotaFile<'a> {
    checker: &'a Checker,
    cache: BlockCache,
    inode: Inode,
    blocks: u32,
    /// The size of an entry: the first version has a shorter one.
    entry: usize,
    seen: HashSet<u32>,
    found: BTreeMap<u32, Use>,
}

impl<'a> QuotaFile<'a> {
    /// Reads the head of a file.
    fn open(checker: &'a Checker, inode: Inode, magic: u32) -> Option<Self> {
        let (size, cache) = (inode.size, checker.reader.cache());
        let (seen, found) = (HashSet::new(), BTreeMap::new());
        let mut file = Self { checker, cache, inode, blocks: 1, entry: 72, seen, found };
        let head = file.block(0).filter(|head| get_u32(head, 0) == magic)?;
        let (version, blocks) = (get_u32(&head, 4), get_u32(&head, 20));
        file.entry = match version {
            0 => 48,
            1 => 72,
            _ => return None,
        };
        let (free_block, free_entry) = (get_u32(&head, 24), get_u32(&head, 28));
        let fits = size <= MAX_SIZE && u64::from(blocks) <= size.div_ceil(BLOCK);
        file.blocks = blocks;
        (fits && free_block < blocks && free_entry < blocks).then_some(file)
    }

    fn block(&self, number: u32) -> Option<Vec<u8>> {
        let at = u64::from(number) * BLOCK;
        let block_size = u64::from(self.checker.superblock.block_size);
        if at >= self.inode.size || number >= self.blocks {
            return None;
        }
        let Some(block) = self.checker.content_block(&self.cache, &self.inode, at / block_size).ok()? else {
            return Some(vec![0; BLOCK as usize]);
        };
        let content = self.checker.reader.block(block).ok()?;
        let at = (at % block_size) as usize;
        Some(content[at..at + BLOCK as usize].to_vec())
    }

    /// Reads all that it says.
    fn read(mut self) -> Option<BTreeMap<u32, Use>> {
        self.node(1, 0)?;
        Some(self.found)
    }

    fn node(&mut self, number: u32, level: u32) -> Option<()> {
        // A block that is reached again says nothing new, and might never end.
        if !self.seen.insert(number) {
            return Some(());
        }
        let node = self.block(number)?;
        for child in (0..BLOCK as usize).step_by(4).map(|at| get_u32(&node, at)).filter(|child| *child != 0) {
            if child >= self.blocks {
                return None;
            }
            match level + 1 == LEVELS {
                true => self.leaf(child)?,
                false => self.node(child, level + 1)?,
            }
        }
        Some(())
    }

    fn leaf(&mut self, number: u32) -> Option<()> {
        if !self.seen.insert(number) {
            return Some(());
        }
        let leaf = self.block(number)?;
        // Entries in use are told by not being zeros.
        for entry in leaf[16..].chunks_exact(self.entry).filter(|entry| entry.iter().any(|byte| *byte != 0)) {
            let wide = |at: usize| u64::from(get_u32(entry, at)) | u64::from(get_u32(entry, at + 4)) << 32;
            let used = match self.entry {
                72 => Use { inodes: wide(24), bytes: wide(48) },
                _ => Use { inodes: get_u32(entry, 12).into(), bytes: wide(24) },
            };
            self.found.insert(get_u32(entry, 0), used);
        }
        Some(())
    }
}
