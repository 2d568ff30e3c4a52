//! Where bitmaps and inode tables are put: the same places as mke2fs finds.

use super::no_room;
use super::space::Space;
use crate::error::Result;
use crate::superblock::Superblock;

/// The places of a group's metadata.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tables {
    pub(super) block_bitmap: u64,
    pub(super) inode_bitmap: u64,
    pub(super) inode_table: u64,
}

/// Where everything of some sort is looked for.
struct Flex {
    /// Groups that keep their metadata together, more than one.
    size: u32,
    /// The last group of the one that is being placed.
    last: u32,
    /// Groups from the one being placed to the last.
    rest: u32,
    /// How far the first table is from the first bitmap of the other sort.
    offset: u64,
}

struct Placer<'a> {
    superblock: &'a Superblock,
    space: &'a mut Space,
    table: u64,
    stride: u64,
    placed: Vec<Tables>,
}

/// Places the metadata of every group and takes its blocks.
pub(super) fn place(
    superblock: &Superblock,
    space: &mut Space,
    log_flex: u8,
    stride: u32,
) -> Result<Vec<Tables>> {
    let table = superblock.inode_table_blocks();
    let placed = Vec::with_capacity(superblock.groups as usize);
    let mut placer = Placer { superblock, space, table, stride: stride.into(), placed };
    for group in 0..superblock.groups {
        let tables = match log_flex {
            0 => placer.alone(group)?,
            log => placer.together(group, 1_u32.checked_shl(log.into()).unwrap_or(1 << 31))?,
        };
        placer.placed.push(tables);
    }
    Ok(placer.placed)
}

/// Places the metadata of all groups together at the volume's beginning.
pub(super) fn place_packed(superblock: &Superblock, space: &mut Space) -> Result<Vec<Tables>> {
    let groups = u64::from(superblock.groups);
    let table = superblock.inode_table_blocks();
    let mut placed = vec![Tables::default(); superblock.groups as usize];
    let mut goal = 0;
    let mut next = |space: &mut Space, len| {
        let at = space.find(goal..superblock.blocks, len).ok_or_else(no_room)?;
        space.take(at, len);
        goal = at;
        Ok::<u64, crate::Error>(at)
    };
    debug_assert_eq!(groups, placed.len() as u64);
    for tables in &mut placed {
        tables.block_bitmap = next(space, 1)?;
    }
    for tables in &mut placed {
        tables.inode_bitmap = next(space, 1)?;
    }
    for tables in &mut placed {
        tables.inode_table = next(space, table)?;
    }
    Ok(placed)
}

impl Placer<'_> {
    fn group_end(&self, group: u32) -> u64 {
        self.superblock.group_start(group) + u64::from(self.superblock.group_blocks(group))
    }

    /// The first place in the blocks from `start` to the last of a group, which itself begins nothing.
    fn search(&self, start: u64, last: u64, len: u64) -> Option<u64> {
        match start < last {
            true => self.space.find(start..last, len),
            // As mke2fs goes about it: to the volume's end, and from its beginning.
            false => {
                let wrapped = || self.space.find(self.superblock.first_data_block..last, len);
                self.space.find(start..self.superblock.blocks, len).or_else(wrapped)
            }
        }
    }

    fn take(&mut self, found: Option<u64>, len: u64) -> Result<u64> {
        let at = found.ok_or_else(no_room)?;
        self.space.take(at, len);
        Ok(at)
    }

    /// Places a group's metadata within the group.
    fn alone(&mut self, group: u32) -> Result<Tables> {
        let (start, last) = (self.superblock.group_start(group), self.group_end(group) - 1);
        let mut from = start;
        if self.stride > 0 {
            // Bitmaps of successive groups come to stand on different disks of the set.
            from = self.search(start, last, 1).ok_or_else(no_room)? + self.table;
            if from <= last {
                from += self.stride * u64::from(group) % (last - from + 1);
            }
            if from >= last {
                from = start;
            }
        }
        let bitmap = |placer: &mut Self| {
            let found = placer.search(from, last, 1).or_else(|| placer.search(start, last, 1));
            placer.take(found, 1)
        };
        let block_bitmap = bitmap(self)?;
        let inode_bitmap = bitmap(self)?;
        let found = self.search(start, last, self.table);
        let inode_table = self.take(found, self.table)?;
        Ok(Tables { block_bitmap, inode_bitmap, inode_table })
    }

    /// Places a group's metadata with that of its neighbours.
    fn together(&mut self, group: u32, size: u32) -> Result<Tables> {
        let last = (group | (size - 1)).min(self.superblock.groups - 1);
        let final_flex = last == self.superblock.groups - 1;
        let offset = match group.is_multiple_of(size) && final_flex {
            // Those of the last groups, fewer than the others, stand close together too.
            true if last & (size - 1) == 0 => size,
            true => (last & (size - 1)) + 1,
            false => size,
        };
        let flex = Flex { size, last, rest: last - group + 1, offset: offset.into() };
        let before = match group.is_multiple_of(size) {
            true => None,
            false => self.placed.last().copied(),
        };
        let own = self.superblock.group_start(group);
        let end = self.group_end(last) - 1;
        let bitmap = |placer: &mut Self, goal: Option<u64>| {
            let start = placer.flex_start(group, &flex, goal, 1);
            let found = placer.search(start, end, 1).or_else(|| placer.search(own, end, 1));
            placer.take(found, 1)
        };
        let block_bitmap = bitmap(self, before.map(|tables| tables.block_bitmap + 1))?;
        let goal = before.map_or(block_bitmap + flex.offset, |tables| tables.inode_bitmap + 1);
        let inode_bitmap = bitmap(self, Some(goal))?;
        let table = self.table;
        let goal = before.map_or(inode_bitmap + flex.offset, |tables| tables.inode_table + table);
        let start = self.flex_start(group, &flex, Some(goal), table);
        let found = self.search(start, end, table);
        let inode_table = self.take(found, table)?;
        Ok(Tables { block_bitmap, inode_bitmap, inode_table })
    }

    /// Where pieces of `len` blocks for all groups to come may begin.
    fn flex_start(&self, group: u32, flex: &Flex, goal: Option<u64>, len: u64) -> u64 {
        let most = u64::from(self.superblock.blocks_per_group / 4);
        let all = (u64::from(flex.rest) * len).min(most);
        if let Some(goal) = goal.filter(|goal| *goal < self.superblock.blocks)
            && let Some(found) = self.search(goal, goal + all, len)
        {
            return found;
        }
        let start = self.superblock.group_start(group / flex.size * flex.size);
        let last = self.group_end(flex.last) - 1;
        let found = self.search(start, last, all).or_else(|| self.search(start, last, len));
        found.or_else(|| self.search(0, last, len)).unwrap_or(0)
    }
}
