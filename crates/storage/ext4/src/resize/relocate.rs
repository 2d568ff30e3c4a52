//! Moving the blocks of inodes out of what is to be vacated.

use std::collections::HashMap;

use super::space::Space;
use crate::error::Result;
use crate::extents::Extent;
use crate::inode::Inode;
use crate::maps;
use crate::reseal;
use crate::volume::Ext4;
use crate::xattr;

/// How much is copied at once.
const CHUNK: u64 = 1 << 20;

/// What is known while blocks move. It grows with what moves, not with the volume.
pub(crate) struct Mover {
    /// New inode numbers, with the ones that the seeds of their metadata still come from.
    pub(crate) old_numbers: HashMap<u32, u32>,
    /// Where blocks of attributes went, which several inodes may share.
    xattr_blocks: HashMap<u64, u64>,
    /// Inodes whose maps need more or less room now, with the sectors that they had, where that is counted.
    pub(crate) sectors: Option<Vec<(u32, u64)>>,
    /// How many blocks moved.
    pub(crate) moved: u64,
    /// The cluster that the last run ended in, and where it went: the next run may begin in it.
    last_cluster: Option<(u64, u64)>,
}

impl Mover {
    /// Begins with the inodes that have new numbers.
    pub(crate) fn new(old_numbers: HashMap<u32, u32>, quota: bool) -> Self {
        let sectors = quota.then(Vec::new);
        Self { old_numbers, sectors, xattr_blocks: HashMap::new(), moved: 0, last_cluster: None }
    }

    /// Moves what an inode has in the way, and makes its map one of its present number.
    pub(crate) fn inode(&mut self, volume: &mut Ext4, space: &mut Space, number: u32) -> Result<()> {
        let bytes = reseal::record(volume, number)?;
        let Some(mut inode) = reseal::made(volume, number, &bytes)? else { return Ok(()) };
        let renumbered = self.old_numbers.get(&number).copied();
        let mut changed = self.xattr_block(volume, space, &mut inode)?;
        if inode.has_blocks(&volume.superblock) {
            changed |= self.content(volume, space, &mut inode, renumbered)?;
        }
        if changed {
            volume.put_inode(&inode)?;
        }
        Ok(())
    }

    fn content(
        &mut self,
        volume: &mut Ext4,
        space: &mut Space,
        inode: &mut Inode,
        renumbered: Option<u32>,
    ) -> Result<bool> {
        let map = match renumbered {
            Some(old) => maps::load(volume, &Inode { number: old, ..inode.clone() })?,
            None => maps::load(volume, inode)?,
        };
        let away = |start: u64, len: u64| space.forbidden().touches(&(start..start + len));
        let moves = map.runs.iter().any(|run| away(run.start, run.len.into()))
            || map.nodes.iter().any(|node| away(*node, 1));
        if !moves && (renumbered.is_none() || map.nodes.is_empty()) {
            return Ok(false);
        }
        self.last_cluster = None;
        let mut runs = Vec::with_capacity(map.runs.len());
        for run in &map.runs {
            self.run(volume, space, *run, &mut runs)?;
        }
        let needed = maps::nodes_needed(volume, inode, &runs);
        let (mut nodes, mut spare) = (Vec::new(), Vec::new());
        for node in &map.nodes {
            volume.cache.forget(*node, 1);
            match space.forbidden().contains(*node) {
                true => self.moved += 1,
                false if (nodes.len() as u64) < needed => nodes.push(*node),
                false => spare.push(*node),
            }
        }
        while (nodes.len() as u64) < needed {
            nodes.push(space.take(volume, 1)?.start);
        }
        maps::store(volume, inode, &runs, &nodes)?;
        for node in spare {
            space.mark(volume, &(node..node + 1), false)?;
        }
        let unit = u64::from(volume.superblock.cluster_blocks) * (volume.block_size() / 512);
        let (had, has) = (map.nodes.len() as u64 * unit, needed * unit);
        let before = inode.sectors;
        inode.sectors = before.saturating_add(has).saturating_sub(had);
        if let Some(list) = self.sectors.as_mut().filter(|_| before != inode.sectors) {
            list.push((inode.number, before));
        }
        Ok(true)
    }

    /// Adds a run to `runs`, in as many pieces as its new places make.
    fn run(
        &mut self,
        volume: &mut Ext4,
        space: &mut Space,
        run: Extent,
        runs: &mut Vec<Extent>,
    ) -> Result<()> {
        let mut logical = u64::from(run.logical);
        while logical < run.end() {
            let rest = run.part(logical..run.end());
            let (away, len) = space.forbidden().step(&(rest.start..rest.start + u64::from(rest.len)));
            let part = rest.part(logical..logical + len);
            logical += len;
            match away {
                true => self.piece(volume, space, part, runs)?,
                false => push(runs, part),
            }
        }
        Ok(())
    }

    /// Moves a run all of which is in the way.
    fn piece(
        &mut self,
        volume: &mut Ext4,
        space: &mut Space,
        mut part: Extent,
        runs: &mut Vec<Extent>,
    ) -> Result<()> {
        let cluster = u64::from(volume.superblock.cluster_blocks);
        while part.len > 0 {
            let base = part.start / cluster * cluster;
            let within = part.start - base;
            let wanted = (within + u64::from(part.len)).next_multiple_of(cluster);
            let new = match self.last_cluster {
                Some((old, new)) if old == base => new..new + cluster,
                _ => space.take(volume, wanted)?,
            };
            let len = (new.end - new.start - within).min(part.len.into());
            let moved = Extent { len: len as u32, start: new.start + within, ..part };
            if !part.unwritten {
                copy(volume, part.start, moved.start, len)?;
            }
            self.moved += len;
            let last = (within + len - 1) / cluster * cluster;
            self.last_cluster = Some((base + last, new.start + last));
            push(runs, moved);
            part = Extent {
                logical: part.logical.saturating_add(len as u32),
                len: part.len - len as u32,
                start: part.start + len,
                ..part
            };
        }
        Ok(())
    }

    fn xattr_block(&mut self, volume: &mut Ext4, space: &mut Space, inode: &mut Inode) -> Result<bool> {
        let old = inode.xattr_block;
        if old == 0 || !space.forbidden().contains(old) {
            return Ok(false);
        }
        if let Some(new) = self.xattr_blocks.get(&old) {
            inode.xattr_block = *new;
            return Ok(true);
        }
        let seed = volume.superblock.features.metadata_csum().then_some(volume.superblock.checksum_seed);
        let mut bytes = volume.cache.read(old)?.to_vec();
        xattr::verify_block(&bytes, old, seed)?;
        let new = space.take(volume, 1)?.start;
        xattr::seal_block(&mut bytes, new, seed);
        volume.cache.put(new, bytes)?;
        volume.cache.forget(old, 1);
        self.moved += 1;
        self.xattr_blocks.insert(old, new);
        inode.xattr_block = new;
        Ok(true)
    }
}

/// Appends a run, joined with the last one where it goes on with it.
fn push(runs: &mut Vec<Extent>, run: Extent) {
    if let Some(last) = runs.last_mut()
        && last.end() == u64::from(run.logical)
        && last.start + u64::from(last.len) == run.start
        && last.unwritten == run.unwritten
        && let Some(len) = last.len.checked_add(run.len)
    {
        last.len = len;
        return;
    }
    runs.push(run);
}

/// Copies blocks to where nothing is; what is zeros stays a hole beneath where it can.
pub(crate) fn copy(volume: &mut Ext4, from: u64, to: u64, len: u64) -> Result<()> {
    let size = volume.block_size();
    volume.cache.forget(to, len);
    let (mut done, end) = (0, len * size);
    while done < end {
        let step = CHUNK.min(end - done);
        let mut bytes = vec![0; step as usize];
        volume.cache.read_data(&mut bytes, from * size + done)?;
        match bytes.iter().all(|byte| *byte == 0) {
            true => volume.cache.zero_data(to * size + done, step)?,
            false => volume.cache.write_data(&bytes, to * size + done)?,
        }
        done += step;
    }
    Ok(())
}
