//! Which bytes of the volume hold nothing that anyone needs.

use std::ops::Range;

use vmwright_disk::FreeMap;

use crate::bitmap;
use crate::error::{Error, ErrorKind, Place, Result};
use crate::features::{compat, incompat};
use crate::group_bitmaps::StoredBitmap;
use crate::volume::Ext4;

impl FreeMap for Ext4 {
    /// The blocks that the block bitmaps call free once the journal is replayed.
    ///
    /// Replaying it on the disk later may write to some of them, which is harmless: what is free afterwards holds
    /// nothing. Metadata is looked for by itself as well; a bitmap that calls it free is corrupt.
    ///
    /// # Errors
    ///
    /// Kind `Unsupported` where the volume was not unmounted cleanly without a journal or has errors recorded;
    /// `InvalidInput` where it has changes that were not synced; `Corrupt` where a bitmap is not
    /// what its descriptor says.
    fn free_ranges(
        &self,
        each: &mut dyn FnMut(Range<u64>) -> vmwright_disk::Result<()>,
    ) -> vmwright_disk::Result<()> {
        self.check_trusted().map_err(to_disk)?;
        let metadata = self.metadata().map_err(to_disk)?;
        let size = self.block_size();
        let mut open: Option<Range<u64>> = None;
        let mut rest = metadata.as_slice();
        for group in 0..self.groups.count() {
            let len = self.superblock.group_blocks(group);
            let start = self.superblock.group_start(group);
            let own = within(&mut rest, start, start + u64::from(len));
            let bits = self.settled_bitmap(group, &own).map_err(to_disk)?;
            let (cluster, bits_used) =
                (self.superblock.cluster_blocks, self.superblock.group_clusters(group));
            let mut at = bitmap::find(&bits, 0, bits_used, false);
            while at < bits_used {
                let end = bitmap::find(&bits, at, bits_used, true);
                // The volume may end within its last cluster.
                let block = |bit: u32| start + u64::from((bit * cluster).min(len));
                let range = block(at) * size..block(end) * size;
                match &mut open {
                    Some(open) if open.end == range.start => open.end = range.end,
                    _ => {
                        if let Some(done) = open.replace(range) {
                            each(done)?;
                        }
                    }
                }
                at = bitmap::find(&bits, end, bits_used, false);
            }
        }
        open.map_or(Ok(()), each)
    }
}

fn to_disk(error: Error) -> vmwright_disk::Error {
    vmwright_disk::Error::layer(error.kind(), error)
}

/// The parts of sorted ranges that lie in `start..end`; those that end before its end are left out from then on.
fn within(rest: &mut &[Range<u64>], start: u64, end: u64) -> Vec<Range<u64>> {
    while let Some((first, more)) = rest.split_first()
        && first.end <= start
    {
        *rest = more;
    }
    let inside = rest.iter().take_while(|range| range.start < end);
    inside.map(|range| range.start.max(start) - start..range.end.min(end) - start).collect()
}

impl Ext4 {
    /// Whether the bitmaps can be believed.
    fn check_trusted(&self) -> Result<()> {
        let refuse = |problem| Err(Error::plain(ErrorKind::Unsupported, problem));
        if !self.superblock.is_clean() {
            return refuse(
                "the filesystem has errors or was not unmounted cleanly: what is free is not certain",
            );
        }
        if self.superblock.features.has_compat(compat::HAS_JOURNAL) {
            match self.superblock.journal_inode() {
                0 if self.superblock.features.has_incompat(incompat::RECOVER) => {
                    return refuse("the journal is on another device: what is free is not certain");
                }
                0 => {}
                number if self.journal_superblock(&self.inode(number)?)?.has_error() => {
                    return refuse("the journal records an error: what is free is not certain");
                }
                _ => {}
            }
        }
        // A volume that is open for reading may hold changes too: those that its journal describes.
        if self.changed && self.writable {
            let problem = "the filesystem has changes that were not synced";
            return Err(Error::plain(ErrorKind::InvalidInput, problem));
        }
        Ok(())
    }

    /// Every block that holds metadata of a group, in ranges that are sorted and do not touch.
    pub(crate) fn metadata(&self) -> Result<Vec<Range<u64>>> {
        let superblock = &self.superblock;
        let table = superblock.inode_table_blocks();
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for number in 0..self.groups.count() {
            let start = superblock.group_start(number);
            let group = self.groups.get(number)?;
            ranges.push(start..start + superblock.head_blocks(number));
            ranges.push(group.block_bitmap..group.block_bitmap + 1);
            ranges.push(group.inode_bitmap..group.inode_bitmap + 1);
            ranges.push(group.inode_table..group.inode_table + table);
        }
        ranges.sort_unstable_by_key(|range| range.start);
        let mut merged: Vec<Range<u64>> = Vec::new();
        for range in ranges.into_iter().filter(|range| !range.is_empty()) {
            match merged.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        Ok(merged)
    }

    /// The block bitmap of a group, sound, in which the metadata at `own` must be taken.
    fn settled_bitmap(&self, group: u32, own: &[Range<u64>]) -> Result<Vec<u8>> {
        let (len, own) = (self.superblock.group_clusters(group), own.iter());
        let cluster = u64::from(self.superblock.cluster_blocks);
        let own = own.map(|range| ((range.start / cluster) as u32, range.end.div_ceil(cluster) as u32));
        match self.stored_block_bitmap(group)? {
            StoredBitmap::NeverWritten => {
                let mut bits = vec![0; self.superblock.block_size as usize];
                own.for_each(|(from, to)| bitmap::fill(&mut bits, from, to.min(len), true));
                Ok(bits)
            }
            StoredBitmap::Stored(bits) => {
                for (from, to) in own {
                    if bitmap::find(&bits, from, to.min(len), false) < to.min(len) {
                        let problem = "the block bitmap calls metadata free";
                        return Err(Error::corrupt(Place::Group(group), problem));
                    }
                }
                Ok(bits)
            }
        }
    }
}
