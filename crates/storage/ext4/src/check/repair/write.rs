//! Writing single structures: blocks of directories, records of inodes, descriptors, the superblock.

use crate::check::Checker;
use crate::check::dir_index::Kind;
use crate::check::facts::DirectoryBlock;
use crate::checksum::crc32c;
use crate::dir_block::{DirFormat, decode_rec_len, get_u16, get_u32, put_u16, put_u32};
use crate::error::{Error, Result};
use crate::group::{self, Group};
use crate::inode;
use crate::layout::SUPERBLOCK_OFFSET;

/// The size of the entry that carries a block's checksum.
const TAIL: usize = 12;

impl Checker {
    /// Writes a block, should it be allowed.
    pub(super) fn put_block(&mut self, block: u64, content: &[u8]) -> Result<()> {
        if !self.may_write(block) {
            return Ok(());
        }
        let offset = block * u64::from(self.superblock.block_size);
        self.reader.disk().write_at(content, offset).map_err(|source| Error::disk("write", source))?;
        self.written += 1;
        Ok(())
    }

    /// Writes a directory's block as it should be, where the check repairs.
    pub(in crate::check) fn put_directory_block(
        &mut self,
        format: &DirFormat,
        at: &DirectoryBlock,
        kind: Kind,
        mut content: Vec<u8>,
    ) -> Result<()> {
        match kind {
            Kind::Leaf => {
                if format.seed.is_some() && !has_tail(&content) && !make_tail(&mut content) {
                    return Ok(());
                }
                format.seal(&mut content);
            }
            _ => seal_node(format, at.logical, &mut content),
        }
        self.put_block(at.block, &content)
    }

    /// Writes the record of an inode with its checksum, where the check repairs.
    pub(in crate::check) fn put_record(&mut self, number: u32, mut record: Vec<u8>) -> Result<()> {
        inode::seal(&self.superblock, number, &mut record);
        let (block, at) = self.record_place(number)?;
        let mut content = self.reader.block(block)?;
        let place = &mut content[at..at + record.len()];
        if place == record {
            return Ok(());
        }
        place.copy_from_slice(&record);
        self.put_block(block, &content)
    }

    /// Changes the record of an inode.
    pub(super) fn change_record(&mut self, number: u32, change: impl FnOnce(&mut [u8])) -> Result<()> {
        let mut record = self.record(number)?;
        change(&mut record);
        self.put_record(number, record)
    }

    /// Writes a descriptor with its checksum.
    pub(super) fn put_group(&mut self, number: u32, group: &Group) -> Result<()> {
        let size = usize::from(self.superblock.desc_size);
        let per_block = self.superblock.block_size as usize / size;
        let block = self.superblock.descriptor_block((number as usize / per_block) as u64);
        let at = number as usize % per_block * size;
        let mut content = self.reader.block(block)?;
        let before = content.clone();
        group::encode(&self.superblock, number, group, &mut content[at..at + size]);
        if content != before {
            self.put_block(block, &content)?;
        }
        self.groups[number as usize] = group.clone();
        Ok(())
    }

    /// Changes the superblock, which gets its checksum.
    pub(super) fn change_superblock(&mut self, change: impl FnOnce(&mut [u8])) -> Result<()> {
        let mut bytes = [0; 1024];
        let disk = self.reader.disk().clone();
        disk.read_at(&mut bytes, SUPERBLOCK_OFFSET).map_err(|source| Error::disk("read", source))?;
        let before = bytes;
        change(&mut bytes);
        if self.superblock.features.metadata_csum() {
            let checksum = crc32c(!0, &bytes[..1020]);
            put_u32(&mut bytes, 1020, checksum);
        }
        if bytes != before && self.repairing && !self.reader.is_redirected() {
            disk.write_at(&bytes, SUPERBLOCK_OFFSET).map_err(|source| Error::disk("write", source))?;
            self.written += 1;
        }
        Ok(())
    }
}

/// Whether a leaf ends with the entry that carries its checksum.
fn has_tail(content: &[u8]) -> bool {
    content[content.len() - TAIL..][..8] == [0, 0, 0, 0, TAIL as u8, 0, 0, 0xde]
}

/// Makes room for the checksum behind the last name, if there is.
fn make_tail(content: &mut [u8]) -> bool {
    let end = content.len();
    let mut at = 0;
    loop {
        let rec_len = decode_rec_len(get_u16(content, at + 4), end);
        if rec_len < TAIL || at + rec_len > end {
            return false;
        }
        if at + rec_len == end {
            let used = if get_u32(content, at) == 0 { TAIL } else { 8 + usize::from(content[at + 6]) };
            let room = rec_len.saturating_sub(TAIL);
            if used.next_multiple_of(4) > room {
                return false;
            }
            put_u16(content, at + 4, room as u16);
            return true;
        }
        at += rec_len;
        if at + TAIL > end {
            return false;
        }
    }
}

/// Sets the checksum of a root or node, as far as it can be one.
fn seal_node(format: &DirFormat, logical: u32, content: &mut [u8]) {
    let Some(seed) = format.seed else { return };
    let entries = if logical == 0 { 24 + usize::from(content[29]) } else { 8 };
    let (limit, count) = (usize::from(get_u16(content, entries)), usize::from(get_u16(content, entries + 2)));
    let at = entries + limit * 8;
    if count > limit || at + 8 > content.len() {
        return;
    }
    let used = crc32c(seed, &content[..entries + count * 8]);
    let checksum = crc32c(crc32c(used, &content[at..at + 4]), &[0; 4]);
    put_u32(content, at + 4, checksum);
}
