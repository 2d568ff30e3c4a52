//! Inodes whose removal or truncation was under way when the volume was last used.
//!
//! They are found through a list that begins in the superblock and goes on in `i_dtime`, and with the feature
//! `orphan_file` through the content of an inode too:
//!
//! ```text
//! ┌inode┬inode┬0┬inode┬…┬magic┬crc32c┐  each block
//! ```

use std::collections::HashSet;

use vmwright_vfs::FileType;

use crate::checksum::crc32c;
use crate::error::{Error, Place, Result};
use crate::features::ro_compat;
use crate::inode::Inode;
use crate::mapping::RunPlace;
use crate::volume::Ext4;

/// What stands at the end of each block of the orphan file, before its checksum.
const MAGIC: u32 = 0x0b10_ca04;

/// The longest orphan file in blocks; mke2fs makes at most 512.
const MAX_FILE_BLOCKS: u64 = 1 << 16;

/// The size of that magic and the checksum.
const TAIL: usize = 8;

/// A block of an orphan file without entries; `seed` is that of the file's checksums.
pub(crate) fn empty_block(size: usize, block: u64, seed: Option<u32>) -> Vec<u8> {
    let mut bytes = vec![0; size];
    let at = size - TAIL;
    let checksum = seed.map_or(0, |seed| crc32c(crc32c(seed, &block.to_le_bytes()), &bytes[..at]));
    bytes[at..at + 4].copy_from_slice(&MAGIC.to_le_bytes());
    bytes[at + 4..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

impl Ext4 {
    /// Finishes what was under way.
    pub(crate) fn process_orphans(&mut self) -> Result<()> {
        let mut seen = HashSet::new();
        let mut next = self.superblock.last_orphan();
        while next != 0 {
            if !seen.insert(next) {
                return Err(Error::corrupt(
                    Place::Inode(next.into()),
                    "the list of orphans runs into itself",
                ));
            }
            let inode = self.any_inode(next)?;
            next = inode.dtime;
            self.superblock.set_last_orphan(next);
            self.finish_orphan(inode)?;
            self.changed = true;
        }
        if self.superblock.features.has_ro_compat(ro_compat::ORPHAN_PRESENT) {
            self.process_orphan_file()?;
            self.superblock.features.ro_compat &= !ro_compat::ORPHAN_PRESENT;
            self.changed = true;
        }
        Ok(())
    }

    fn finish_orphan(&mut self, mut inode: Inode) -> Result<()> {
        if inode.number < self.superblock.first_inode() {
            let place = Place::Inode(inode.number.into());
            return Err(Error::corrupt(place, "an inode that is reserved is among the orphans"));
        }
        inode.dtime = 0;
        if inode.links == 0 {
            self.check_attributes_removable(&inode)?;
            self.count_orphan(&inode)?;
            return self.remove_inode(inode);
        }
        if inode.has_blocks(&self.superblock) {
            let from = inode.size.div_ceil(self.block_size());
            self.unmap(&mut inode, from..u64::from(u32::MAX) + 1)?;
            if inode.file_type == FileType::Regular {
                self.zero_tail(&inode)?;
            }
        }
        self.put_inode(&inode)
    }

    fn process_orphan_file(&mut self) -> Result<()> {
        let file = self.inode(self.superblock.orphan_file_inode())?;
        let blocks = file.size.div_ceil(self.block_size());
        if blocks > MAX_FILE_BLOCKS {
            let place = Place::Inode(file.number.into());
            let what = "the orphan file's length in blocks, at most";
            return Err(Error::mismatch(place, what, MAX_FILE_BLOCKS, blocks));
        }
        for logical in 0..blocks {
            let RunPlace::Written(block) = self.run_at(&file, logical)?.place else {
                return Err(Error::corrupt(Place::Inode(file.number.into()), "the orphan file has a hole"));
            };
            let bytes = self.cache.read(block)?.to_vec();
            let entries = self.orphan_entries(&file, block, &bytes)?;
            for number in entries.into_iter().filter(|number| *number != 0) {
                let inode = self.any_inode(number)?;
                self.finish_orphan(inode)?;
            }
            let mut empty = vec![0; bytes.len()];
            let at = empty.len() - TAIL;
            empty[at..at + 4].copy_from_slice(&MAGIC.to_le_bytes());
            let checksum = self.orphan_checksum(&file, block, &empty[..at]);
            empty[at + 4..].copy_from_slice(&checksum.to_le_bytes());
            self.cache.put(block, empty)?;
        }
        Ok(())
    }

    fn orphan_entries(&self, file: &Inode, block: u64, bytes: &[u8]) -> Result<Vec<u32>> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let at = bytes.len() - TAIL;
        let mismatch = |what, expected: u32, actual: u32| {
            Err(Error::mismatch(Place::Block(block), what, expected.into(), actual.into()))
        };
        if word(at) != MAGIC {
            return mismatch("the magic of a block of the orphan file", MAGIC, word(at));
        }
        let expected = self.orphan_checksum(file, block, &bytes[..at]);
        if self.superblock.features.metadata_csum() && word(at + 4) != expected {
            return mismatch("the checksum of a block of the orphan file", expected, word(at + 4));
        }
        Ok((0..at / 4).map(|index| word(index * 4)).collect())
    }

    /// Zero where the volume has no checksums.
    fn orphan_checksum(&self, file: &Inode, block: u64, entries: &[u8]) -> u32 {
        let seed = file.checksum_seed(&self.superblock);
        seed.map_or(0, |seed| crc32c(crc32c(seed, &block.to_le_bytes()), entries))
    }
}
