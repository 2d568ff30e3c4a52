//! Block maps: twelve blocks, then trees of pointers of one, two and three levels.

use super::content::{self, Walk, claim, is_possible, remember};
use super::extent_tree::is_long;
use super::inodes::Found;
use super::{Checker, Problem};
use crate::error::Result;

/// How many blocks are mapped without a tree.
const DIRECT: usize = 12;

/// The most blocks that a map can hold.
pub(super) fn most_blocks(block_size: u64) -> u64 {
    let per_block = block_size / 4;
    let two = per_block.saturating_mul(per_block);
    (DIRECT as u64 + per_block + two).saturating_add(two.saturating_mul(per_block))
}

/// What a block of a map is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Content, by its logical number.
    Content(u64),
    /// Pointers, with so many levels below.
    Pointers(u32),
}

/// Checks the map of an inode and claims its blocks.
pub(super) fn check(checker: &mut Checker, found: &Found<'_>, walk: &mut Walk) -> Result<()> {
    if found.is_directory() && found.word(0) == 0 {
        remember(checker, found, walk, 0, 0, 1)?;
    }
    let mut result = Ok(());
    let limit = 1_u64 << (31 - checker.superblock.raw().s_log_block_size.get().min(31));
    for_each_followed(checker, found, &mut |checker, block, role| {
        if result.is_err() {
            return false;
        }
        if let Some(field) = problem(checker, found, walk, block, role, limit) {
            checker.findings.field(Problem::BlockMap, place_of(found, role), field, block);
            return false;
        }
        match take(checker, found, walk, block, role) {
            Ok(follow) => follow,
            Err(error) => {
                result = Err(error);
                false
            }
        }
    });
    walk.written_end = walk.end;
    result
}

fn place_of(found: &Found<'_>, role: Role) -> super::report::Place {
    match role {
        Role::Content(logical) => content::place(found, logical),
        Role::Pointers(_) => found.place(),
    }
}

/// What is wrong with a block of a map, if anything is.
fn problem(
    checker: &Checker,
    found: &Found<'_>,
    walk: &Walk,
    block: u64,
    role: Role,
    limit: u64,
) -> Option<&'static str> {
    let logical = if let Role::Content(logical) = role { logical } else { 0 };
    let (directory, regular) = (found.is_directory(), found.is_regular());
    if !is_possible(checker, block) {
        Some("block")
    } else if directory && is_long(checker, found, logical) {
        Some("a directory too long")
    } else if (directory || regular) && walk.clusters + 1 >= limit {
        Some("too many blocks")
    } else if !directory && !regular && logical > 0 {
        Some("too many blocks of a link")
    } else {
        None
    }
}

/// Takes a block; answers whether pointers are to be followed.
fn take(checker: &mut Checker, found: &Found<'_>, walk: &mut Walk, block: u64, role: Role) -> Result<bool> {
    let ratio = u64::from(checker.superblock.cluster_blocks);
    let mut free = true;
    walk.fragmented |= walk.previous != 0 && walk.previous + 1 != block && !content::is_resize(found);
    if content::is_resize(found) {
        // All but the first block of pointers are descriptors to be, and in use as such.
        match role {
            Role::Pointers(2) => free = claim(checker, found, block, 1),
            Role::Pointers(3) => free = false,
            _ => {}
        }
        walk.clusters += 1;
    } else {
        let logical = if let Role::Content(logical) = role { logical } else { u64::MAX };
        let goes_on = ratio > 1
            && walk.previous != 0
            && block / ratio == walk.previous / ratio
            && block % ratio == logical % ratio;
        if !goes_on {
            free = claim(checker, found, block, 1);
            walk.clusters += 1;
        }
    }
    walk.previous = block;
    if let Role::Content(logical) = role {
        walk.end = logical + 1;
        remember(checker, found, walk, logical, block, 1)?;
    }
    Ok(free)
}

/// Calls `visit` for each block of a map that cannot be trusted; `false` keeps from following its pointers.
fn for_each_followed(
    checker: &mut Checker,
    found: &Found<'_>,
    visit: &mut dyn FnMut(&mut Checker, u64, Role) -> bool,
) {
    let mut logical = 0;
    for at in 0..DIRECT {
        let block = u64::from(found.word(at));
        if block != 0 {
            visit(checker, block, Role::Content(logical));
        }
        logical += 1;
    }
    for levels in 1..=3 {
        let block = u64::from(found.word(DIRECT - 1 + levels as usize));
        pointers(checker, block, levels, logical, visit);
        logical += span(checker, levels);
    }
}

/// How many blocks a tree of some levels maps.
fn span(checker: &Checker, levels: u32) -> u64 {
    (u64::from(checker.superblock.block_size) / 4).saturating_pow(levels)
}

/// Follows a block of pointers.
fn pointers(
    checker: &mut Checker,
    block: u64,
    levels: u32,
    first: u64,
    visit: &mut dyn FnMut(&mut Checker, u64, Role) -> bool,
) {
    if block == 0 || !visit(checker, block, Role::Pointers(levels)) {
        return;
    }
    let Ok(content) = checker.reader.block(block) else {
        checker.findings.add(Problem::Unreadable, super::report::Place::Block(block));
        return;
    };
    let below = span(checker, levels - 1);
    for (at, bytes) in (0_u64..).zip(content.chunks_exact(4)) {
        let block = u64::from(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
        let logical = first.saturating_add(at.saturating_mul(below));
        match levels {
            1 if block == 0 => {}
            1 => {
                visit(checker, block, Role::Content(logical));
            }
            _ => pointers(checker, block, levels - 1, logical, visit),
        }
    }
}

/// Calls `visit` for each block of a map; pointers are followed as far as they are possible and not in use yet.
pub(super) fn for_each(
    checker: &mut Checker,
    found: &Found<'_>,
    visit: &mut dyn FnMut(&mut Checker, u64, Role),
) {
    for_each_followed(checker, found, &mut |checker, block, role| {
        let follow = is_possible(checker, block) && !checker.claims.is_used(block);
        visit(checker, block, role);
        follow
    });
}
