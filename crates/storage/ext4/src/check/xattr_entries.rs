//! The entries of one area of extended attributes: whether they, their names and their values lie within and
//! beside one another.

use std::collections::BTreeMap;
use std::ops::Range;

use super::Problem;
use crate::dir_block::{get_u16, get_u32};

/// The size of an entry before its name.
const ENTRY: usize = 16;

/// The longest value that can be outside of an inode of its own.
const VALUE_MAX: u64 = 1 << 24;

/// The attribute that says how an inode is encrypted.
pub(super) const ENCRYPTION: (u8, &[u8]) = (9, b"c");

/// What the values in inodes of their own add to the inodes that have them.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Sums {
    pub(super) clusters: u64,
    pub(super) inodes: u64,
}

impl Sums {
    pub(super) fn add(&mut self, other: Self) {
        self.clusters = self.clusters.saturating_add(other.clusters);
        self.inodes = self.inodes.saturating_add(other.inodes);
    }
}

/// What is wrong with an area.
#[derive(Debug, Clone, Copy)]
pub(super) struct Trouble {
    pub(super) problem: Problem,
    pub(super) field: &'static str,
    pub(super) found: u64,
}

/// An area of attributes, its header included.
pub(super) struct Area<'a> {
    pub(super) bytes: &'a [u8],
    /// Where the entries begin.
    pub(super) start: usize,
    /// Where the offsets of values count from.
    pub(super) values: usize,
    pub(super) in_inode: bool,
}

fn padded(len: usize) -> usize {
    len.next_multiple_of(4)
}

/// Which bytes are taken.
#[derive(Default)]
struct Taken {
    ranges: BTreeMap<usize, usize>,
}

impl Taken {
    /// Takes a range; answers whether all of it was free and within `len`.
    fn take(&mut self, start: usize, size: usize, len: usize) -> bool {
        let Some(end) = start.checked_add(size).filter(|end| *end <= len && size > 0) else { return false };
        let before = self.ranges.range(..end).next_back().is_none_or(|(_, before)| *before <= start);
        self.ranges.insert(start, end);
        before
    }
}

impl<'a> Area<'a> {
    /// Visits every entry, with its place and its name, up to the first that is wrong.
    pub(super) fn walk(&self, visit: &mut dyn FnMut(usize, &'a [u8], &'a [u8])) -> Result<(), Trouble> {
        let len = self.bytes.len();
        let overlap =
            |at: usize| Trouble { problem: Problem::AttributePlace, field: "entry", found: at as u64 };
        let mut taken = Taken::default();
        taken.take(0, self.start, len);
        // What is left in an inode shrinks with each entry and value; the word behind the last is part of it.
        let (mut at, mut left) = (self.start, len.saturating_sub(4));
        while at + 4 <= len && get_u32(self.bytes, at) != 0 && (!self.in_inode || left >= ENTRY) {
            let Some(entry) = self.bytes.get(at..at + ENTRY) else { return Err(overlap(at)) };
            let name_len = usize::from(entry[0]);
            let size = padded(ENTRY + name_len);
            if !taken.take(at, size, len) {
                return Err(overlap(at));
            }
            let name = &self.bytes[at + ENTRY..at + ENTRY + name_len];
            left = left.checked_sub(size).ok_or_else(|| overlap(at))?;
            self.name(entry)?;
            if get_u32(entry, 4) == 0 {
                self.value(entry, name, &mut taken, &mut left)?;
            }
            visit(at, entry, name);
            at += size;
        }
        if taken.take(at, 4, len) { Ok(()) } else { Err(overlap(at)) }
    }

    fn name(&self, entry: &[u8]) -> Result<(), Trouble> {
        if !self.in_inode && entry[1] == 0 {
            return Err(Trouble { problem: Problem::AttributeName, field: "e_name_index", found: 0 });
        }
        Ok(())
    }

    /// Checks a value that is in the area.
    fn value(&self, entry: &[u8], name: &[u8], taken: &mut Taken, left: &mut usize) -> Result<(), Trouble> {
        let (offset, size) = (usize::from(get_u16(entry, 2)), get_u32(entry, 8));
        let trouble = |field, found| Trouble { problem: Problem::AttributeValue, field, found };
        let too_large = || trouble("e_value_size", size.into());
        if u64::from(size) > VALUE_MAX {
            return Err(too_large());
        }
        let size = size as usize;
        if self.in_inode {
            *left = left.checked_sub(size).ok_or_else(too_large)?;
        }
        let start = self.values + offset;
        if size > 0 && !taken.take(start, padded(size), self.bytes.len()) {
            return Err(trouble("e_value_offs", offset as u64));
        }
        let value = if size > 0 { &self.bytes[start..start + padded(size)] } else { &[] };
        let stated = get_u32(entry, 12);
        let unhashed = self.in_inode && stated == 0;
        if !unhashed && ![false, true].iter().any(|signed| hash(name, value, *signed) == stated) {
            let problem = Problem::AttributeHash;
            return Err(Trouble { problem, field: "e_hash", found: stated.into() });
        }
        if matches!(entry[1], 2 | 3) && name.is_empty() && !acl_is_sound(&value[..size]) {
            return Err(Trouble { problem: Problem::AttributeAcl, field: "", found: size as u64 });
        }
        Ok(())
    }

    /// Finds where the entry of an attribute is, and its value, that is in the area.
    pub(super) fn range(&self, key: (u8, &[u8])) -> Option<(usize, Range<usize>)> {
        let mut found = None;
        // What comes behind an entry that is wrong is not looked at; that it is wrong is said elsewhere.
        let _ = self.walk(&mut |at, entry, name| {
            if (entry[1], name) == key && get_u32(entry, 4) == 0 {
                let start = self.values + usize::from(get_u16(entry, 2));
                let end = start.saturating_add(get_u32(entry, 8) as usize);
                let range = if start == end { 0..0 } else { start..end };
                found = (range.end <= self.bytes.len()).then_some((at, range));
            }
        });
        found
    }

    /// Finds the value of an attribute that is in the area.
    pub(super) fn find(&self, key: (u8, &[u8])) -> Option<Vec<u8>> {
        self.range(key).map(|(_, range)| self.bytes[range].to_vec())
    }
}

/// The hash of an entry; older kernels took the bytes of names for signed ones.
pub(super) fn hash(name: &[u8], value: &[u8], signed: bool) -> u32 {
    let widen = |byte: u8| match signed {
        true => i32::from(byte.cast_signed()).cast_unsigned(),
        false => byte.into(),
    };
    let hash = name.iter().fold(0_u32, |hash, &byte| hash.rotate_left(5) ^ widen(byte));
    value.chunks_exact(4).fold(hash, |hash, word| hash.rotate_left(16) ^ get_u32(word, 0))
}

/// Whether a list of permissions has the form of the volume.
fn acl_is_sound(value: &[u8]) -> bool {
    if value.len() < 4 || get_u32(value, 0) != 1 {
        return false;
    }
    let mut rest = &value[4..];
    while rest.len() >= 4 {
        let size = match get_u16(rest, 0) {
            0x02 | 0x08 => 8,
            0x01 | 0x04 | 0x10 | 0x20 => 4,
            _ => return false,
        };
        let Some(next) = rest.get(size..) else { return false };
        rest = next;
    }
    rest.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An area in an inode with attributes of index 1, values packed from the end.
    fn area(attributes: &[(&[u8], &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; 128];
        bytes[..4].copy_from_slice(&0xea02_0000_u32.to_le_bytes());
        let (mut at, mut end) = (4, 128);
        for (name, value) in attributes {
            end -= padded(value.len());
            bytes[end..end + value.len()].copy_from_slice(value);
            bytes[at] = name.len() as u8;
            bytes[at + 1] = 1;
            bytes[at + 2..at + 4].copy_from_slice(&(end as u16 - 4).to_le_bytes());
            bytes[at + 8..at + 12].copy_from_slice(&(value.len() as u32).to_le_bytes());
            bytes[at + ENTRY..at + ENTRY + name.len()].copy_from_slice(name);
            at += padded(ENTRY + name.len());
        }
        bytes
    }

    fn problem(bytes: &[u8]) -> Option<Problem> {
        let area = Area { bytes, start: 4, values: 4, in_inode: true };
        area.walk(&mut |_, _, _| ()).err().map(|trouble| trouble.problem)
    }

    #[test]
    fn attributes_beside_one_another_are_sound() {
        let bytes = area(&[(b"first", b"value"), (b"second", b""), (b"third", b"12345678")]);
        assert_eq!(problem(&bytes), None);
        let found = Area { bytes: &bytes, start: 4, values: 4, in_inode: true }.find((1, b"third"));
        assert_eq!(found.as_deref(), Some(&b"12345678"[..]));
    }

    #[test]
    fn what_overlaps_or_reaches_out_is_found() {
        let sound = area(&[(b"first", b"value"), (b"third", b"12345678")]);
        let with = |at: usize, byte: u8| {
            let mut bytes = sound.clone();
            bytes[at] = byte;
            problem(&bytes)
        };
        assert_eq!(with(4, 200), Some(Problem::AttributePlace));
        assert_eq!(with(6, 0), Some(Problem::AttributeValue));
        assert_eq!(with(12, 127), Some(Problem::AttributeValue));
        assert_eq!(with(16, 1), Some(Problem::AttributeHash));
    }

    #[test]
    fn lists_of_permissions_have_their_form() {
        let sound = [1, 0, 0, 0, 1, 0, 7, 0, 2, 0, 7, 0, 5, 0, 0, 0, 0x20, 0, 4, 0];
        assert!(acl_is_sound(&sound));
        assert!(!acl_is_sound(&sound[..14]) && !acl_is_sound(&sound[..3]));
        assert!(!acl_is_sound(&[2, 0, 0, 0]) && !acl_is_sound(&[1, 0, 0, 0, 3, 0, 0, 0]));
    }
}
