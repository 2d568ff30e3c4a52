//! Where the structures of a small volume are, and their checksums made right after a change.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bits of features.
const METADATA_CSUM: u32 = 0x400;
const GDT_CSUM: u32 = 0x10;

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

/// The kernel's CRC-32C: nothing is inverted.
fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

fn crc16(seed: u16, bytes: &[u8]) -> u16 {
    let step = |crc: u16, _| if crc & 1 == 1 { (crc >> 1) ^ 0xa001 } else { crc >> 1 };
    bytes.iter().fold(seed, |crc, &byte| (0..8).fold(crc ^ u16::from(byte), step))
}

/// The first group of a volume.
pub(crate) struct Layout {
    bytes: Vec<u8>,
    ro_compat: u32,
    descriptors: usize,
    desc_size: usize,
    groups: usize,
    table: usize,
    inode_size: usize,
    inodes: usize,
}

impl Layout {
    pub(crate) fn of(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let sb = &bytes[1024..2048];
        let block_size = 1024_usize << word(sb, 0x18);
        let descriptors = (1024 / block_size + 1) * block_size;
        let wide = word(sb, 0x60) & 0x80 != 0;
        let blocks = word(sb, 0x04) - word(sb, 0x14);
        Self {
            ro_compat: word(sb, 0x64),
            descriptors,
            desc_size: if wide { half(sb, 0xfe).into() } else { 32 },
            groups: blocks.div_ceil(word(sb, 0x20)) as usize,
            table: word(&bytes, descriptors + 8) as usize * block_size,
            inode_size: half(sb, 0x58).into(),
            inodes: word(sb, 0x28) as usize,
            bytes,
        }
    }

    fn has_checksums(&self) -> bool {
        self.ro_compat & METADATA_CSUM != 0
    }

    /// Every word worth damaging, with a name for messages.
    pub(crate) fn words(&self) -> Vec<(String, usize)> {
        let mut words = Vec::new();
        // Neither the UUID nor the seed, on which every other checksum depends, nor the checksum itself.
        let kept = |at: &usize| !(0x68..0x78).contains(at) && *at != 0x270 && *at != 0x3fc;
        for at in (0..0x290).step_by(4).filter(kept) {
            words.push((format!("superblock + {at:#x}"), 1024 + at));
        }
        for group in 0..self.groups {
            for at in (0..self.desc_size.min(64)).step_by(4) {
                words.push((
                    format!("group {group} + {at:#x}"),
                    self.descriptors + group * self.desc_size + at,
                ));
            }
        }
        for index in 0..self.inodes {
            let start = self.table + index * self.inode_size;
            let used = self.bytes[start..start + self.inode_size].iter().any(|byte| *byte != 0);
            // Of those that are all alike some are enough.
            if used && (index < 30 || index % 40 == 0) {
                let end = self.inode_size.min(256);
                words.extend(
                    (0..end).step_by(4).map(|at| (format!("inode {} + {at:#x}", index + 1), start + at)),
                );
            }
        }
        if !self.has_checksums() {
            let rest = self.table + self.inodes * self.inode_size;
            let behind = (rest..self.bytes.len()).step_by(4).filter(|at| word(&self.bytes, *at) != 0);
            words.extend(behind.map(|at| ("block".to_owned(), at)));
        }
        words
    }

    /// The checksums of what was changed, as they must be now.
    pub(crate) fn seals(&self, file: &File, changes: &[(u64, Vec<u8>)]) -> Vec<(u64, Vec<u8>)> {
        let (offset, _) = changes[0];
        let at = offset as usize;
        let read = |start: usize, len: usize| {
            let mut bytes = vec![0; len];
            file.read_exact_at(&mut bytes, start as u64).unwrap();
            bytes
        };
        let group = at.wrapping_sub(self.descriptors) / self.desc_size;
        let index = at.wrapping_sub(self.table) / self.inode_size;
        if (1024..2048).contains(&at) && self.has_checksums() {
            let crc = crc32c(!0, &read(1024, 1020));
            vec![(2044, crc.to_le_bytes().to_vec())]
        } else if at >= self.descriptors && group < self.groups {
            let start = self.descriptors + group * self.desc_size;
            let crc = self.group(group as u32, &read(start, self.desc_size));
            crc.map(|crc| (start as u64 + 0x1e, crc.to_le_bytes().to_vec())).into_iter().collect()
        } else if at >= self.table && index < self.inodes && self.has_checksums() {
            let start = self.table + index * self.inode_size;
            self.inode(index as u32 + 1, start as u64, &read(start, self.inode_size))
        } else {
            Vec::new()
        }
    }

    /// The seed of all checksums.
    fn seed(&self) -> u32 {
        let sb = &self.bytes[1024..2048];
        match word(sb, 0x60) & 0x2000 != 0 {
            true => word(sb, 0x270),
            false => crc32c(!0, &sb[0x68..0x78]),
        }
    }

    fn group(&self, number: u32, bytes: &[u8]) -> Option<u16> {
        let number = number.to_le_bytes();
        if self.has_checksums() {
            let crc = crc32c(crc32c(self.seed(), &number), &bytes[..0x1e]);
            return Some(crc32c(crc32c(crc, &[0; 2]), &bytes[0x20..]) as u16);
        }
        let crc = crc16(crc16(!0, &self.bytes[1024 + 0x68..1024 + 0x78]), &number);
        (self.ro_compat & GDT_CSUM != 0).then(|| crc16(crc16(crc, &bytes[..0x1e]), &bytes[0x20..]))
    }

    fn inode(&self, number: u32, start: u64, bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
        let high = self.inode_size > 128 && half(bytes, 0x80) >= 4;
        let mut zeroed = bytes.to_vec();
        zeroed[0x7c..0x7e].fill(0);
        if high {
            zeroed[0x82..0x84].fill(0);
        }
        let seed = crc32c(crc32c(self.seed(), &number.to_le_bytes()), &bytes[0x64..0x68]);
        let crc = crc32c(seed, &zeroed);
        let mut seals = vec![(start + 0x7c, (crc as u16).to_le_bytes().to_vec())];
        if high {
            seals.push((start + 0x82, ((crc >> 16) as u16).to_le_bytes().to_vec()));
        }
        seals
    }
}
