//! Extended attributes, in inodes, in blocks, in inodes of their own.
//!
//! A block may be shared by many inodes and an inode of a value by many attributes; both say by how many, and
//! that is compared when every inode was seen.

use std::collections::HashMap;

use super::inodes::Found;
use super::xattr_entries::{Area, Sums, Trouble};
use super::{Checker, Place, Problem};
use crate::dir_block::get_u32;
use crate::error::Result;
use crate::features::incompat;
use crate::inode::flags;
use crate::layout::CLASSIC_INODE_SIZE;
use crate::xattr;

/// What both areas begin with.
const MAGIC: u32 = 0xea02_0000;

/// The bit of `s_feature_compat` for blocks of attributes.
const EXT_ATTR: u32 = 0x8;

/// The size of the header of a block.
const HEADER: usize = 32;

/// What is known of attributes outside their inodes.
#[derive(Debug, Default)]
pub(crate) struct Attributes {
    /// The blocks met so far.
    blocks: HashMap<u64, Shared>,
    /// How many attributes have their values in an inode.
    pub(super) values: HashMap<u32, u64>,
    /// Inodes of values that the inode seen last pays for.
    pub(super) charged_inodes: u64,
    /// The encryption policy of each encrypted inode, as a number; `None` for one that is not understood.
    pub(super) policies: HashMap<u32, Option<u32>>,
    /// The policies that have numbers.
    known: HashMap<Vec<u8>, u32>,
}

/// A block of attributes.
#[derive(Debug, Clone, Copy)]
struct Shared {
    /// How many inodes it says that it has.
    stated: u32,
    /// How many it has.
    found: u32,
    /// What each of them pays for values in inodes.
    sums: Sums,
}

/// Checks what is left to check once all inodes were seen: how many inodes share each block.
pub(super) fn check(checker: &mut Checker) -> Result<()> {
    let mut wrong: Vec<(u64, Shared)> = Vec::new();
    wrong.extend(
        checker.xattrs.blocks.iter().filter(|(_, at)| at.stated != at.found).map(|(b, at)| (*b, *at)),
    );
    wrong.sort_unstable_by_key(|(block, _)| *block);
    for (block, Shared { stated, found, .. }) in wrong {
        let (expected, found) = (found.into(), stated.into());
        let place = Place::Block(block);
        checker.findings.mismatch(Problem::AttributeReferences, place, "h_refcount", expected, found);
    }
    Ok(())
}

/// Checks the attributes of an inode in use, in it and in its block, which is claimed here when it is first
/// met. Answers how many clusters it adds to those of the inode, values in inodes of their own included.
pub(super) fn inode(checker: &mut Checker, inode: &Found<'_>) -> u64 {
    let mut sums = in_inode(checker, inode);
    let in_block = in_block(checker, inode);
    let own = u64::from(in_block.is_some());
    if let Some(more) = in_block {
        sums.add(more);
    }
    checker.xattrs.charged_inodes = sums.inodes;
    encryption(checker, inode);
    own + sums.clusters
}

/// The bytes of a record that attributes may fill, and what attributes they are.
fn area<'a>(inode: &Found<'a>) -> Option<&'a [u8]> {
    let area = inode.record.get(CLASSIC_INODE_SIZE + usize::from(inode.extra_isize)..)?;
    (area.len() > 4 && get_u32(area, 0) == MAGIC).then_some(area)
}

fn in_inode(checker: &mut Checker, inode: &Found<'_>) -> Sums {
    let Some(bytes) = area(inode) else { return Sums::default() };
    let area = Area { bytes, start: 4, values: 4, in_inode: true };
    let (sums, trouble) = entries(checker, inode, &area);
    if let Some(trouble) = trouble {
        let place = Place::Inode(inode.number);
        checker.findings.field(trouble.problem, place, trouble.field, trouble.found);
    }
    sums
}

/// Checks the block of an inode, if it has one. Answers what its values add.
fn in_block(checker: &mut Checker, inode: &Found<'_>) -> Option<Sums> {
    let block = block_number(checker, inode);
    if block == 0 {
        return None;
    }
    let superblock = &checker.superblock;
    let known = superblock.features.has_compat(EXT_ATTR);
    if !known || block < superblock.first_data_block || block >= superblock.blocks {
        if inode.number == crate::inode::ROOT_INODE || inode.number >= superblock.first_inode() {
            let place = Place::Inode(inode.number);
            checker.findings.field(Problem::AttributeBlock, place, "i_file_acl", block);
        }
        return None;
    }
    if let Some(shared) = checker.xattrs.blocks.get_mut(&block) {
        shared.found = shared.found.saturating_add(1);
        return Some(shared.sums);
    }
    checker.claims.claim(block, 1);
    let (stated, sums) = match checker.reader.block(block) {
        Ok(content) => check_block(checker, inode, block, &content),
        Err(_) => {
            checker.findings.add(Problem::Unreadable, Place::Block(block));
            (1, Sums::default())
        }
    };
    checker.xattrs.blocks.insert(block, Shared { stated, found: 1, sums });
    Some(sums)
}

fn block_number(checker: &Checker, inode: &Found<'_>) -> u64 {
    let wide = checker.superblock.features.has_incompat(incompat::BIT64);
    let high = if wide { inode.raw.l_i_file_acl_high.get() } else { 0 };
    u64::from(inode.raw.i_file_acl_lo.get()) | u64::from(high) << 32
}

/// Checks a block that was not met before. Answers how many inodes it says that it has.
fn check_block(checker: &mut Checker, inode: &Found<'_>, block: u64, content: &[u8]) -> (u32, Sums) {
    let place = Place::Block(block);
    let (magic, stated, blocks) = (get_u32(content, 0), get_u32(content, 4), get_u32(content, 8));
    if magic != MAGIC {
        let (expected, found) = (MAGIC.into(), magic.into());
        checker.findings.mismatch(Problem::AttributeBlock, place, "h_magic", expected, found);
        return (1, Sums::default());
    }
    if blocks != 1 {
        checker.findings.mismatch(Problem::AttributeBlock, place.clone(), "h_blocks", 1, blocks.into());
    }
    let area = Area { bytes: content, start: HEADER, values: 0, in_inode: false };
    let (sums, trouble) = entries(checker, inode, &area);
    let seed = checker.superblock.checksum_seed;
    let seed = checker.superblock.features.metadata_csum().then_some(seed);
    match trouble {
        Some(trouble) => checker.findings.field(trouble.problem, place, trouble.field, trouble.found),
        None if xattr::verify_block(content, block, seed).is_err() => {
            checker.findings.add(Problem::AttributeChecksum, place);
        }
        None => {}
    }
    (stated, sums)
}

/// Walks the entries of an area; values in inodes of their own are counted.
fn entries(checker: &mut Checker, inode: &Found<'_>, area: &Area<'_>) -> (Sums, Option<Trouble>) {
    let (mut sums, mut trouble) = (Sums::default(), None);
    let walk = area.walk(&mut |_, entry, rest| {
        let outside = get_u32(entry, 4);
        if outside == 0 {
            return;
        }
        let count = checker.xattrs.values.entry(outside).or_default();
        *count = count.saturating_add(1);
        match value_inode(checker, inode, entry, rest) {
            Ok(clusters) => sums.add(Sums { clusters, inodes: 1 }),
            Err(found) => trouble = trouble.or(Some(found)),
        }
    });
    (sums, walk.err().or(trouble))
}

/// Checks an entry whose value is in an inode of its own; answers how many clusters its owner pays for.
fn value_inode(checker: &Checker, inode: &Found<'_>, entry: &[u8], name: &[u8]) -> Result<u64, Trouble> {
    let superblock = &checker.superblock;
    let (number, size, hash) = (get_u32(entry, 4), get_u32(entry, 8), get_u32(entry, 12));
    let trouble =
        |field, found: u32| Trouble { problem: Problem::AttributeInode, field, found: found.into() };
    if !superblock.features.has_incompat(incompat::EA_INODE) {
        return Err(trouble("ea_inode", number));
    }
    if number < superblock.first_inode() || number > superblock.inodes {
        return Err(trouble("e_value_inum", number));
    }
    let Ok(record) = checker.record(number) else { return Err(trouble("e_value_inum", number)) };
    let word = |at: usize| get_u32(&record, at);
    let (mtime, generation, flag) = (word(0x10), word(0x64), word(0x20) & flags::EA_INODE != 0);
    // The hash of the value stands in the place of the access time.
    let by_sign =
        [false, true].map(|signed| super::xattr_entries::hash(name, &word(8).to_le_bytes(), signed));
    let mut clusters = 0;
    if by_sign.contains(&hash) {
        let cluster = u64::from(superblock.block_size) * u64::from(superblock.cluster_blocks);
        clusters = u64::from(size).div_ceil(cluster);
    } else if mtime != inode.number || generation != inode.raw.i_generation.get() {
        // An older form says whose the value is instead, and nobody pays for it.
        return Err(trouble(if flag { "e_hash" } else { "e_value_inum" }, if flag { hash } else { number }));
    }
    if !flag {
        return Err(trouble("i_flags", number));
    }
    if u64::from(size) != u64::from(word(4)) | u64::from(word(0x6c)) << 32 {
        return Err(trouble("e_value_size", size));
    }
    Ok(clusters)
}

/// Notes under which policy an encrypted inode is.
fn encryption(checker: &mut Checker, inode: &Found<'_>) {
    if inode.raw.i_flags.get() & flags::ENCRYPT == 0 {
        return;
    }
    let value = area(inode).and_then(|bytes| {
        Area { bytes, start: 4, values: 4, in_inode: true }.find(super::xattr_entries::ENCRYPTION)
    });
    let value = value.or_else(|| {
        let content = checker.reader.block(Some(block_number(checker, inode)).filter(|block| *block != 0)?);
        Area { bytes: &content.ok()?, start: HEADER, values: 0, in_inode: false }
            .find(super::xattr_entries::ENCRYPTION)
    });
    let place = Place::Inode(inode.number);
    let Some(value) = value else {
        checker.findings.field(Problem::EncryptionContext, place, "missing", 0);
        return;
    };
    // A context is a policy and a nonce of sixteen bytes.
    let policy = match (value.first(), value.len()) {
        (None | Some(0), _) => Err(()),
        (Some(1), 28) | (Some(2), 40) => Ok(Some(&value[..value.len() - 16])),
        (Some(1 | 2), _) => Err(()),
        (Some(_), _) => Ok(None),
    };
    let Ok(policy) = policy else {
        checker.findings.field(Problem::EncryptionContext, place, "damaged", value.len() as u64);
        return;
    };
    let next = checker.xattrs.known.len() as u32;
    let number = policy.map(|policy| *checker.xattrs.known.entry(policy.to_vec()).or_insert(next));
    checker.xattrs.policies.insert(inode.number, number);
}
