//! Making a volume smaller.
//!
//! 1. Inodes of groups that go away get numbers in those that stay; their records are copied.
//! 2. The metadata of groups that go away is free by then, where it lies in what stays.
//! 3. Bitmaps and tables of groups that stay leave what goes away, then the blocks of all inodes do.
//! 4. Names, parents and attributes lead to the new numbers.
//! 5. The groups that are left get the new heads; descriptors, copies and last the superblock are written.
//!
//! Blocks are copied before anything leads to their new places, and what they leave is not used again.

use std::ops::Range;

use super::relocate::{self, Mover};
use super::renumber::Numbers;
use super::reserved::{self, RESIZE_INODE};
use super::space::{Ranges, Space};
use super::{finish, grow};
use crate::bitmap;
use crate::error::{Error, ErrorKind, Result};
use crate::features::{compat, incompat};
use crate::group::{BLOCK_UNINIT, Groups, INODE_UNINIT};
use crate::inode::Inode;
use crate::reseal;
use crate::superblock::Superblock;
use crate::volume::Ext4;

/// The inode of damaged blocks, which has no content that could move.
const BAD_BLOCKS_INODE: u32 = 1;

/// `s_feature_ro_compat`: several files may share a block.
const SHARED_BLOCKS: u32 = 0x4000;

/// What shrinking did.
pub(crate) struct Moved {
    pub(crate) blocks: u64,
    pub(crate) inodes: u64,
    /// Inodes that count for a quota and take more or less than the sectors that they had.
    pub(crate) sectors: Vec<(u32, u64)>,
}

/// Turns the volume, which nothing is pending in, into the smaller one that `new` describes, which its content
/// fits into.
pub(crate) fn shrink(mut volume: Ext4, new: Superblock) -> Result<Moved> {
    check(&volume, &new)?;
    // Records move without anybody owning more; what maps take is counted in the end.
    let quota = volume.quota.take().is_some();
    volume.cache.flush()?;
    let old = volume.superblock.clone();
    let mut space = Space::new(&volume, vacated(&old, &new));
    let mut numbers = Numbers::default();
    numbers.empty_groups(&mut volume, &mut space, new.groups)?;
    free_groups(&mut volume, &mut space, &new)?;
    move_metadata(&mut volume, &mut space, &new)?;
    let resize_inode = move_resize_inode(&mut volume, &mut space)?;
    let mut mover = Mover::new(numbers.reversed(), quota);
    each_inode(&mut volume, new.groups, &mut |volume, number| mover.inode(volume, &mut space, number))?;
    if !numbers.is_empty() {
        each_inode(&mut volume, new.groups, &mut |volume, number| {
            let old = mover.old_numbers.get(&number).copied().unwrap_or(number);
            numbers.fix(volume, number, old)
        })?;
    }
    numbers.settle(&mut volume)?;
    cut(&mut volume, &mut space, new, &numbers, &mut mover)?;
    grow::free_heads(&mut volume, &old, &mut space)?;
    if let Some((inode, block)) = resize_inode {
        reserved::rebuild(&mut volume, inode, block)?;
    }
    finish(&mut volume, &mut space)?;
    Ok(Moved { blocks: mover.moved, inodes: numbers.len(), sectors: mover.sectors.unwrap_or_default() })
}

/// Brings quotas up to date, in the volume that is smaller now.
pub(crate) fn count(mut volume: Ext4, moved: &Moved) -> Result<()> {
    for (number, sectors) in &moved.sectors {
        let inode = volume.any_inode(*number)?;
        let before = Inode { sectors: *sectors, ..inode.clone() }.encode(&volume.superblock);
        volume.count_change(*number, &before, &inode)?;
    }
    volume.changed = true;
    volume.sync_volume()
}

/// Refuses what cannot be moved.
fn check(volume: &Ext4, new: &Superblock) -> Result<()> {
    if volume.superblock.features.has_ro_compat(SHARED_BLOCKS) {
        return Err(Error::unsupported("shrinking where files share blocks (shared_blocks)"));
    }
    let bad = reseal::record(volume, BAD_BLOCKS_INODE)?;
    if bad.get(40..100).is_some_and(|map| map.iter().any(|byte| *byte != 0)) {
        return Err(Error::unsupported("shrinking where damaged blocks are listed"));
    }
    if volume.superblock.features.has_compat(compat::STABLE_INODES) {
        for group in new.groups..volume.superblock.groups {
            if !reseal::used_inodes(volume, group)?.is_empty() {
                return Err(Error::unsupported("moving inodes whose numbers must stay (stable_inodes)"));
            }
        }
    }
    Ok(())
}

/// What is to become free: everything behind the end, and where groups that stay get a longer head.
fn vacated(old: &Superblock, new: &Superblock) -> Ranges {
    let cluster = u64::from(old.cluster_blocks);
    let heads = (0..new.groups).map(|group| {
        let (start, had, has) = (old.group_start(group), old.head_blocks(group), new.head_blocks(group));
        start + had.next_multiple_of(cluster)..start + has.next_multiple_of(cluster)
    });
    let end = new.blocks..old.blocks.next_multiple_of(cluster);
    Ranges::new(heads.filter(|range| range.start < range.end).chain([end]).collect())
}

/// Calls `each` for every inode in use that may have blocks to move.
fn each_inode(
    volume: &mut Ext4,
    groups: u32,
    each: &mut dyn FnMut(&mut Ext4, u32) -> Result<()>,
) -> Result<()> {
    for group in 0..groups {
        for number in reseal::used_inodes(volume, group)? {
            if number != BAD_BLOCKS_INODE && number != RESIZE_INODE {
                each(volume, number)?;
            }
        }
    }
    Ok(())
}

/// The blocks of a group's metadata, its head left aside.
fn own_metadata(volume: &Ext4, number: u32) -> Result<[Range<u64>; 3]> {
    let group = volume.groups.get(number)?;
    let table = group.inode_table..group.inode_table + volume.superblock.inode_table_blocks();
    Ok([group.block_bitmap..group.block_bitmap + 1, group.inode_bitmap..group.inode_bitmap + 1, table])
}

/// Frees what groups that go away have in those that stay.
fn free_groups(volume: &mut Ext4, space: &mut Space, new: &Superblock) -> Result<()> {
    let cluster = u64::from(new.cluster_blocks);
    let mut kept = Vec::new();
    for number in 0..new.groups {
        let start = new.group_start(number);
        kept.push(start..start + volume.superblock.head_blocks(number));
        kept.extend(own_metadata(volume, number)?);
    }
    let kept = Ranges::new(kept);
    let mut freed = Vec::new();
    for number in new.groups..volume.superblock.groups {
        freed.extend(own_metadata(volume, number)?);
    }
    for range in Ranges::new(freed).into_vec() {
        let end = range.end.min(new.blocks);
        let mut at = range.start / cluster * cluster;
        if cluster == 1 && at < end {
            volume.cache.forget(at, end - at);
            space.mark(volume, &(at..end), false)?;
            continue;
        }
        while at < end {
            // A cluster may hold other metadata too.
            if !kept.touches(&(at..at + cluster)) {
                space.mark(volume, &(at..at + cluster), false)?;
            }
            at += cluster;
        }
    }
    Ok(())
}

/// Moves bitmaps and tables of groups that stay out of what goes away.
fn move_metadata(volume: &mut Ext4, space: &mut Space, new: &Superblock) -> Result<()> {
    let anywhere = volume.superblock.features.has_incompat(incompat::FLEX_BG);
    for number in 0..new.groups {
        let places = own_metadata(volume, number)?;
        if !places.iter().any(|place| space.forbidden().touches(place)) {
            continue;
        }
        // Its bitmap is made at its old place where it was never written.
        space.touch(volume, number)?;
        let within = (!anywhere).then_some(number);
        for (index, place) in places.into_iter().enumerate() {
            if !space.forbidden().touches(&place) {
                continue;
            }
            let len = place.end - place.start;
            let found = space.take_whole(volume, len, within)?;
            let found = found.ok_or_else(|| {
                let problem = "no room in one piece for a bitmap or an inode table that has to move";
                Error::plain(ErrorKind::NoSpace, problem)
            })?;
            move_blocks(volume, place, found.start)?;
            let group = volume.groups.modify(number)?;
            match index {
                0 => group.block_bitmap = found.start,
                1 => group.inode_bitmap = found.start,
                _ => group.inode_table = found.start,
            }
        }
    }
    Ok(())
}

/// Moves blocks of metadata, changed ones included.
fn move_blocks(volume: &mut Ext4, from: Range<u64>, to: u64) -> Result<()> {
    volume.cache.flush()?;
    let len = from.end - from.start;
    relocate::copy(volume, from.start, to, len)?;
    volume.cache.forget(from.start, len);
    Ok(())
}

/// Finds the resize inode's block of pointers another place where it has to leave.
fn move_resize_inode(volume: &mut Ext4, space: &mut Space) -> Result<Option<(Inode, u64)>> {
    if !reserved::exists(volume) {
        return Ok(None);
    }
    let (inode, block) = reserved::pointer_block(volume)?;
    let block = match space.forbidden().contains(block) {
        true => space.take(volume, 1)?.start,
        false => block,
    };
    Ok(Some((inode, block)))
}

/// Takes over the new superblock, with the groups that are left.
fn cut(
    volume: &mut Ext4,
    space: &mut Space,
    new: Superblock,
    numbers: &Numbers,
    mover: &mut Mover,
) -> Result<()> {
    let len = volume.cache.disk().len();
    let mut new = relink(volume, new, numbers, len)?;
    if let Some(block) = mmp_block(volume).filter(|block| space.forbidden().contains(*block)) {
        let place = space.take(volume, 1)?.start;
        move_blocks(volume, block..block + 1, place)?;
        mover.moved += 1;
        new = new.edited(len, |raw| raw.s_mmp_block.set(place))?;
    }
    let last = new.groups - 1;
    space.touch(volume, last)?;
    let end = new.group_blocks(last).div_ceil(new.cluster_blocks);
    let bits = volume.cache.modify(volume.groups.get(last)?.block_bitmap)?;
    // What is no block is marked as taken.
    bitmap::fill(bits, end, new.block_size * 8, true);
    space.changed.insert(last);
    let groups = std::mem::replace(&mut volume.groups, Groups::of(&new, Vec::new(), Vec::new())?);
    let (mut groups, mut raw) = groups.into_parts();
    for group in new.groups..groups.len() as u32 {
        space.forget_group(group);
    }
    groups.truncate(new.groups as usize);
    raw.truncate(new.groups as usize * usize::from(new.desc_size));
    if new.features.group_csum() {
        let group = &mut groups[last as usize];
        debug_assert_eq!(group.flags & BLOCK_UNINIT, 0);
        if group.flags & INODE_UNINIT != 0 {
            group.itable_unused = new.inodes_per_group;
        }
    }
    volume.groups = Groups::of(&new, groups, raw)?;
    volume.superblock = new;
    volume.changed = true;
    Ok(())
}

fn mmp_block(volume: &Ext4) -> Option<u64> {
    let block = volume.superblock.raw().s_mmp_block.get();
    (volume.superblock.features.has_incompat(incompat::MMP) && block != 0).then_some(block)
}

/// Leads the superblock to inodes that have other numbers, and to the journal's blocks.
fn relink(volume: &mut Ext4, new: Superblock, numbers: &Numbers, len: u64) -> Result<Superblock> {
    let features = volume.superblock.features;
    let orphans = numbers.of(volume.superblock.orphan_file_inode());
    if features.has_compat(compat::ORPHAN_FILE) && orphans != 0 {
        let inode = volume.inode(orphans)?;
        reseal::reseal_orphans(volume, &inode, inode.checksum_seed(&volume.superblock))?;
    }
    let journal = match (features.has_compat(compat::HAS_JOURNAL), volume.superblock.journal_inode()) {
        (true, number) if number != 0 => Some(volume.inode(numbers.of(number))?),
        _ => None,
    };
    new.edited(len, |raw| {
        for field in [
            &mut raw.s_orphan_file_inum,
            &mut raw.s_prj_quota_inum,
            &mut raw.s_usr_quota_inum,
            &mut raw.s_grp_quota_inum,
            &mut raw.s_lpf_ino,
            &mut raw.s_journal_inum,
        ] {
            field.set(numbers.of(field.get()));
        }
        if let Some(journal) = journal {
            for (word, bytes) in raw.s_jnl_blocks.iter_mut().zip(journal.block.chunks_exact(4)) {
                word.set(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
            }
        }
    })
}
