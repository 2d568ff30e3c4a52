//! Extended attributes: in the inode behind its fields, and in one block outside.
//!
//! ```text
//! inode: …fields┌magic┬entry┬entry┬0 ─▶      free      ◀─ value┬value┐
//! block: ┌magic·refs·hash·crc┬entry┬entry┬0 ─▶  free   ◀─ value┬value┐
//! ```
//!
//! Entries grow upwards, values downwards. Both areas are decoded, changed and encoded again as a whole. The
//! block may be shared between inodes whose attributes are equal, so changing it may mean leaving it:
//! [`BlockPlan`] tells the caller, who allocates and frees.

use crate::acl;
use crate::checksum::crc32c;
use crate::dir_block::{get_u16, get_u32, put_u16, put_u32};
use crate::error::{Error, ErrorKind, Place, Result};

/// What both areas begin with.
pub(crate) const MAGIC: u32 = 0xea02_0000;

/// The size of the header of a block.
const HEADER: usize = 32;

/// The size of the header of the area in an inode.
const INODE_HEADER: usize = 4;

/// The size of an entry before its name.
const ENTRY: usize = 16;

/// The zero word behind the last entry.
const END: usize = 4;

/// The longest value that Linux lets anybody set.
const VALUE_MAX: usize = 65536;

const INDEX_ACL_ACCESS: u8 = 2;
const INDEX_ACL_DEFAULT: u8 = 3;

/// The index and name of the attribute that carries an inline file's or directory's second part.
pub(crate) const INLINE_DATA: (u8, &[u8]) = (7, b"data");

/// The prefixes that Linux shows, by their index. The ACLs are whole names.
const PREFIXES: [(u8, &[u8]); 3] = [(1, b"user."), (4, b"trusted."), (6, b"security.")];
const WHOLE_NAMES: [(u8, &[u8]); 2] =
    [(INDEX_ACL_ACCESS, b"system.posix_acl_access"), (INDEX_ACL_DEFAULT, b"system.posix_acl_default")];

/// What setting does when the name exists, or does not.
pub(crate) use vmwright_vfs::XattrMode;

/// Where a value is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    /// In the area itself, in the form of the volume.
    Here(Vec<u8>),
    /// In an inode of its own (feature `ea_inode`).
    Inode { inode: u32, size: u32, hash: u32 },
    /// To be put into an inode of its own.
    New(Vec<u8>),
}

/// One attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attribute {
    pub(crate) index: u8,
    /// The name without the prefix that the index stands for.
    pub(crate) name: Vec<u8>,
    pub(crate) value: Value,
}

impl Attribute {
    fn here(&self) -> &[u8] {
        match &self.value {
            Value::Here(value) => value,
            Value::Inode { .. } | Value::New(_) => &[],
        }
    }

    fn space(&self) -> usize {
        (ENTRY + self.name.len()).next_multiple_of(4) + self.here().len().next_multiple_of(4)
    }

    fn is(&self, (index, name): (u8, &[u8])) -> bool {
        self.index == index && self.name == name
    }
}

/// Splits a name as Linux shows it into index and rest.
pub(crate) fn split_name(name: &[u8]) -> Result<(u8, &[u8])> {
    if let Some((index, _)) = WHOLE_NAMES.iter().find(|(_, whole)| *whole == name) {
        return Ok((*index, &[]));
    }
    for (index, prefix) in PREFIXES {
        match name.strip_prefix(prefix) {
            Some([]) => break,
            Some(rest) if rest.len() > 255 => {
                return Err(Error::plain(ErrorKind::InvalidInput, "an attribute's name is too long"));
            }
            Some(rest) => return Ok((index, rest)),
            None => {}
        }
    }
    Err(Error::unsupported("extended attributes of this name are not supported"))
}

/// Joins index and rest to the name that Linux shows, if it shows any.
fn full_name(index: u8, name: &[u8]) -> Option<Vec<u8>> {
    if let Some((_, whole)) = WHOLE_NAMES.iter().find(|(whole, _)| *whole == index) {
        return Some(whole.to_vec());
    }
    let (_, prefix) = PREFIXES.iter().find(|(prefix, _)| *prefix == index)?;
    Some([prefix, name].concat())
}

/// All attributes of an inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attributes {
    place: Place,
    inode: Vec<Attribute>,
    block: Vec<Attribute>,
    /// The bytes that the area in the inode has, zero where it has none.
    inode_room: usize,
    block_size: usize,
    /// How many inodes share the block; zero where there is none.
    references: u32,
    block_changed: bool,
    /// Whether values may be put into inodes of their own.
    outside: bool,
}

/// What is to be done about the block outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BlockPlan {
    /// Nothing: it is as it was, or there is none and none is needed.
    Keep,
    /// Write [`Attributes::encode_block`] over it.
    Rewrite,
    /// Allocate a block for [`Attributes::encode_block`]; with `release`, [`release_block`] the old one.
    Allocate { release: bool },
    /// Others share it: [`release_block`], and name none in the inode.
    Release,
    /// Free it.
    Free,
}

impl Attributes {
    /// Decodes both areas. `area` is the inode's bytes behind its extra fields; `block` is verified already.
    pub(crate) fn decode(inode: u64, area: &[u8], block: Option<&[u8]>, block_size: usize) -> Result<Self> {
        let place = Place::Inode(inode);
        let mut attributes = Self {
            place,
            inode: Vec::new(),
            block: Vec::new(),
            inode_room: area.len(),
            block_size,
            references: 0,
            block_changed: false,
            outside: false,
        };
        if area.len() >= INODE_HEADER + END && get_u32(area, 0) == MAGIC {
            attributes.inode = decode_entries(place, &area[INODE_HEADER..], 0)?;
        }
        if let Some(block) = block {
            attributes.references = block_references(place, block)?;
            attributes.block = decode_entries(place, block, HEADER)?;
        }
        Ok(attributes)
    }

    fn all(&self) -> impl Iterator<Item = &Attribute> {
        self.inode.iter().chain(&self.block)
    }

    /// The names that Linux shows.
    pub(crate) fn names(&self) -> Vec<Vec<u8>> {
        self.all().filter_map(|attribute| full_name(attribute.index, &attribute.name)).collect()
    }

    /// Lets values that fit nowhere else be put into inodes of their own.
    pub(crate) fn allow_outside(&mut self) {
        self.outside = true;
    }

    /// All attributes whose values are in inodes of their own.
    pub(crate) fn outside_values(&self) -> impl Iterator<Item = &Attribute> {
        self.all().filter(|attribute| matches!(attribute.value, Value::Inode { .. }))
    }

    /// The inodes of values that count this inode as their user: one that others share counts for the block.
    pub(crate) fn held(&self) -> Vec<u32> {
        let shared = self.references > 1 && !self.block_changed;
        let block = if shared { &[] } else { self.block.as_slice() };
        let inodes = self.inode.iter().chain(block).filter_map(|attribute| match attribute.value {
            Value::Inode { inode, .. } => Some(inode),
            _ => None,
        });
        inodes.collect()
    }

    /// The same without any value that is kept elsewhere, as for an inode that is removed.
    pub(crate) fn without_values(&self) -> Self {
        let (inode, block) = (Vec::new(), Vec::new());
        Self { inode, block, ..self.clone() }
    }

    /// The values that still need inodes, to be replaced.
    pub(crate) fn new_values(&mut self) -> impl Iterator<Item = &mut Attribute> {
        let all = self.inode.iter_mut().chain(&mut self.block);
        all.filter(|attribute| matches!(attribute.value, Value::New(_)))
    }

    /// Finds a value by index and name, as it is on the volume.
    pub(crate) fn raw(&self, key: (u8, &[u8])) -> Option<&Value> {
        self.all().find(|attribute| attribute.is(key)).map(|attribute| &attribute.value)
    }

    /// Finds an attribute by the name that Linux shows; an ACL comes in the form of Linux.
    pub(crate) fn find(&self, name: &[u8]) -> Result<Option<Attribute>> {
        let key = split_name(name)?;
        let mut found = self.all().find(|attribute| attribute.is(key)).cloned();
        if let Some(Attribute { value: Value::Here(value), .. }) = &mut found
            && is_acl(key.0)
        {
            let malformed = || Error::corrupt(self.place, "an access control list is malformed");
            *value = acl::to_linux(&acl::decode(value).ok_or_else(malformed)?);
        }
        Ok(found)
    }

    /// Sets a value by the name that Linux shows.
    pub(crate) fn set(&mut self, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()> {
        let key = split_name(name)?;
        match (self.raw(key).is_some(), mode) {
            (true, XattrMode::Create) => {
                return Err(Error::plain(ErrorKind::Exists, "the extended attribute exists already"));
            }
            (false, XattrMode::Replace) => return Err(absent()),
            _ => {}
        }
        if value.len() > VALUE_MAX {
            return Err(Error::plain(ErrorKind::InvalidInput, "an attribute's value is longer than 64 KiB"));
        }
        if !is_acl(key.0) {
            return self.set_raw(key, value.to_vec());
        }
        match acl::from_linux(value)? {
            Some(value) => self.set_raw(key, value),
            None if self.raw(key).is_some() => self.remove_raw(key),
            None => Ok(()),
        }
    }

    /// Removes a value by the name that Linux shows.
    pub(crate) fn remove(&mut self, name: &[u8]) -> Result<()> {
        self.remove_raw(split_name(name)?)
    }

    /// Sets a value by index and name: in the inode if it fits, else in the block.
    pub(crate) fn set_raw(&mut self, key: (u8, &[u8]), value: Vec<u8>) -> Result<()> {
        let before = self.clone();
        if self.raw(key).is_some() {
            self.remove_raw(key)?;
        }
        let was_at = before.inode.iter().position(|attribute| attribute.is(key));
        let outside = (self.outside && !value.is_empty()).then(|| Value::New(value.clone()));
        for value in [Some(Value::Here(value)), outside].into_iter().flatten() {
            let attribute = Attribute { index: key.0, name: key.1.to_vec(), value };
            if self.inode_fits(&attribute) {
                self.inode.insert(was_at.unwrap_or(self.inode.len()), attribute);
                return Ok(());
            }
            if key == INLINE_DATA {
                break;
            }
            if self.block_fits(&attribute) {
                self.block.push(attribute);
                self.block_changed = true;
                return Ok(());
            }
        }
        *self = before;
        Err(Error::plain(ErrorKind::NoSpace, "the inode has no room for the extended attribute"))
    }

    /// Removes a value by index and name.
    pub(crate) fn remove_raw(&mut self, key: (u8, &[u8])) -> Result<()> {
        if self.raw(key).is_none() {
            return Err(absent());
        }
        self.inode.retain(|attribute| !attribute.is(key));
        let count = self.block.len();
        self.block.retain(|attribute| !attribute.is(key));
        self.block_changed |= self.block.len() != count;
        Ok(())
    }

    /// How many bytes of inline content the area in the inode has room for, behind the first 60; a multiple of four.
    pub(crate) fn inline_room(&self) -> usize {
        let others = self.inode.iter().filter(|attribute| !attribute.is(INLINE_DATA)).map(Attribute::space);
        let entry = (ENTRY + INLINE_DATA.1.len()).next_multiple_of(4);
        let used = INODE_HEADER + END + entry + others.sum::<usize>();
        self.inode_room.saturating_sub(used) / 4 * 4
    }

    fn inode_fits(&self, new: &Attribute) -> bool {
        let used: usize = self.inode.iter().map(Attribute::space).sum();
        INODE_HEADER + END + used + new.space() <= self.inode_room
    }

    fn block_fits(&self, new: &Attribute) -> bool {
        let used: usize = self.block.iter().map(Attribute::space).sum();
        HEADER + END + used + new.space() <= self.block_size
    }

    /// What the caller must do about the block.
    pub(crate) fn block_plan(&self) -> BlockPlan {
        match (self.block_changed, self.block.is_empty(), self.references) {
            (false, _, _) | (true, true, 0) => BlockPlan::Keep,
            (true, true, 1) => BlockPlan::Free,
            (true, true, _) => BlockPlan::Release,
            (true, false, 1) => BlockPlan::Rewrite,
            (true, false, references) => BlockPlan::Allocate { release: references > 1 },
        }
    }

    /// Fills the area in the inode, whose length is the one it was decoded from.
    pub(crate) fn encode_inode(&self, area: &mut [u8]) {
        area.fill(0);
        if self.inode.is_empty() || area.len() < INODE_HEADER + END {
            return;
        }
        put_u32(area, 0, MAGIC);
        encode_entries(&self.inode, &mut area[INODE_HEADER..], 0, false);
    }

    /// Makes the block outside, to be written at `number`; `seed` is the volume's where there are checksums.
    pub(crate) fn encode_block(&self, number: u64, seed: Option<u32>) -> Vec<u8> {
        let mut block = vec![0; self.block_size];
        put_u32(&mut block, 0, MAGIC);
        put_u32(&mut block, 4, 1);
        put_u32(&mut block, 8, 1);
        let mut sorted = self.block.clone();
        sorted.sort_by(|a, b| (a.index, a.name.len(), &a.name).cmp(&(b.index, b.name.len(), &b.name)));
        let hash = encode_entries(&sorted, &mut block, HEADER, true);
        put_u32(&mut block, 12, hash);
        seal_block(&mut block, number, seed);
        block
    }
}

fn absent() -> Error {
    Error::plain(ErrorKind::NotFound, "there is no extended attribute of that name")
}

/// How many inodes share a block.
pub(crate) fn block_references(place: Place, block: &[u8]) -> Result<u32> {
    let (magic, references, blocks) = (get_u32(block, 0), get_u32(block, 4), get_u32(block, 8));
    if magic != MAGIC {
        let (expected, actual) = (MAGIC.into(), magic.into());
        return Err(Error::mismatch(place, "the magic of the attribute block", expected, actual));
    }
    if blocks != 1 {
        return Err(Error::mismatch(place, "the length of the attribute block", 1, blocks.into()));
    }
    if references == 0 {
        return Err(Error::corrupt(place, "the attribute block is in use and says that nobody uses it"));
    }
    Ok(references)
}

/// Takes one reference from a shared block.
pub(crate) fn release_block(block: &mut [u8], number: u64, seed: Option<u32>) {
    let references = get_u32(block, 4).saturating_sub(1);
    put_u32(block, 4, references);
    seal_block(block, number, seed);
}

fn block_checksum(block: &[u8], number: u64, seed: u32) -> u32 {
    let header = crc32c(crc32c(seed, &number.to_le_bytes()), &block[..16]);
    crc32c(crc32c(header, &[0; 4]), &block[20..])
}

/// Sets the checksum of the block at `number`.
pub(crate) fn seal_block(block: &mut [u8], number: u64, seed: Option<u32>) {
    if let Some(seed) = seed {
        let checksum = block_checksum(block, number, seed);
        put_u32(block, 16, checksum);
    }
}

/// Checks the checksum of the block at `number`; `seed` is the volume's where there are checksums.
pub(crate) fn verify_block(block: &[u8], number: u64, seed: Option<u32>) -> Result<()> {
    let Some(seed) = seed else { return Ok(()) };
    let (expected, actual) = (block_checksum(block, number, seed), get_u32(block, 16));
    if expected != actual {
        let (expected, actual) = (expected.into(), actual.into());
        return Err(Error::mismatch(Place::Block(number), "the attribute checksum", expected, actual));
    }
    Ok(())
}

/// Decodes the entries from `start` on; offsets of values count from the beginning of `area`.
fn decode_entries(place: Place, area: &[u8], start: usize) -> Result<Vec<Attribute>> {
    let outside = || Error::corrupt(place, "an extended attribute reaches past its area");
    let mut entries = Vec::new();
    let mut at = start;
    loop {
        let rest = area.get(at..).filter(|rest| rest.len() >= END).ok_or_else(outside)?;
        if get_u32(rest, 0) == 0 {
            break;
        }
        let entry = rest.get(..ENTRY).ok_or_else(outside)?;
        let name_len = usize::from(entry[0]);
        let name = rest.get(ENTRY..ENTRY + name_len).ok_or_else(outside)?;
        entries.push((entry, name));
        at += (ENTRY + name_len).next_multiple_of(4);
    }
    let values_from = at + END;
    let mut attributes: Vec<Attribute> = Vec::with_capacity(entries.len());
    let mut total = start + END;
    for (entry, name) in entries {
        let attribute = decode_entry(place, area, values_from, (entry, name))?;
        // Values that overlap could otherwise expand one block into megabytes, and not be encoded again.
        total += attribute.space();
        if total > area.len() || attributes.iter().any(|other| other.is((attribute.index, name))) {
            return Err(Error::corrupt(place, "extended attributes overlap or repeat"));
        }
        attributes.push(attribute);
    }
    Ok(attributes)
}

fn decode_entry(
    place: Place,
    area: &[u8],
    values_from: usize,
    (entry, name): (&[u8], &[u8]),
) -> Result<Attribute> {
    let (offset, inode, size) = (get_u16(entry, 2).into(), get_u32(entry, 4), get_u32(entry, 8));
    let value = if inode != 0 {
        Value::Inode { inode, size, hash: get_u32(entry, 12) }
    } else if size == 0 {
        Value::Here(Vec::new())
    } else {
        let end = usize::try_from(size).ok().and_then(|size| size.checked_add(offset));
        let value = end.and_then(|end| area.get(offset..end)).filter(|_| offset >= values_from);
        let value = value.ok_or_else(|| {
            Error::corrupt(place, "the value of an extended attribute does not lie in its area")
        })?;
        Value::Here(value.to_vec())
    };
    Ok(Attribute { index: entry[1], name: name.to_vec(), value })
}

/// Writes entries from `start` on and their values from the end; answers the hash over all of them.
fn encode_entries(attributes: &[Attribute], area: &mut [u8], start: usize, hashed: bool) -> u32 {
    let (mut at, mut end) = (start, area.len() / 4 * 4);
    let (mut total, mut shareable) = (0_u32, true);
    for attribute in attributes {
        let value = attribute.here();
        end -= value.len().next_multiple_of(4);
        area[end..end + value.len()].copy_from_slice(value);
        let (inode, size, hash) = match attribute.value {
            Value::Inode { inode, size, hash } => (inode, size, hash),
            Value::Here(_) if hashed => (0, value.len() as u32, entry_hash(&attribute.name, value)),
            // The kernel leaves the hash of entries in inodes at zero: only blocks are shared.
            Value::Here(_) | Value::New(_) => (0, value.len() as u32, 0),
        };
        let offset = if value.is_empty() { 0 } else { end as u16 };
        area[at] = attribute.name.len() as u8;
        area[at + 1] = attribute.index;
        put_u16(area, at + 2, offset);
        put_u32(area, at + 4, inode);
        put_u32(area, at + 8, size);
        put_u32(area, at + 12, hash);
        area[at + ENTRY..at + ENTRY + attribute.name.len()].copy_from_slice(&attribute.name);
        at += (ENTRY + attribute.name.len()).next_multiple_of(4);
        total = total.rotate_left(16) ^ hash;
        shareable &= hash != 0;
    }
    if shareable { total } else { 0 }
}

/// The hash of an entry whose value is in an inode of its own: of the name and of the value's own hash. Names
/// were once hashed as signed bytes.
pub(crate) fn outside_hash(name: &[u8], value_hash: u32, signed: bool) -> u32 {
    if !signed {
        return entry_hash(name, &value_hash.to_le_bytes());
    }
    let widen = |byte: u8| i32::from(byte.cast_signed()).cast_unsigned();
    let hash = name.iter().fold(0_u32, |hash, &byte| hash.rotate_left(5) ^ widen(byte));
    hash.rotate_left(16) ^ value_hash
}

/// The hash by which equal attributes are found.
pub(crate) fn entry_hash(name: &[u8], value: &[u8]) -> u32 {
    let hash = name.iter().fold(0_u32, |hash, &byte| hash.rotate_left(5) ^ u32::from(byte));
    value.chunks(4).fold(hash, |hash, chunk| {
        let mut word = [0; 4];
        word[..chunk.len()].copy_from_slice(chunk);
        hash.rotate_left(16) ^ u32::from_le_bytes(word)
    })
}

fn is_acl(index: u8) -> bool {
    index == INDEX_ACL_ACCESS || index == INDEX_ACL_DEFAULT
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(area: &[u8], block: Option<&[u8]>) -> Attributes {
        Attributes::decode(12, area, block, 1024).unwrap()
    }

    fn get(attributes: &Attributes, name: &[u8]) -> Result<Option<Value>> {
        Ok(attributes.find(name)?.map(|attribute| attribute.value))
    }

    fn here(value: &[u8]) -> Option<Value> {
        Some(Value::Here(value.to_vec()))
    }

    fn linux_acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut value = 2_u32.to_le_bytes().to_vec();
        for (tag, permissions, id) in entries {
            value.extend(tag.to_le_bytes());
            value.extend(permissions.to_le_bytes());
            value.extend(id.to_le_bytes());
        }
        value
    }

    #[test]
    fn small_values_stay_in_the_inode_and_others_go_to_the_block() {
        let mut area = vec![0; 96];
        let mut attributes = decode(&area, None);
        attributes.set(b"user.small", b"value", XattrMode::Create).unwrap();
        assert_eq!(attributes.block_plan(), BlockPlan::Keep);
        attributes.set(b"security.large", &[7; 500], XattrMode::Set).unwrap();
        assert_eq!(attributes.block_plan(), BlockPlan::Allocate { release: false });
        attributes.encode_inode(&mut area);
        let block = attributes.encode_block(77, Some(5));
        verify_block(&block, 77, Some(5)).unwrap();
        assert!(verify_block(&block, 78, Some(5)).is_err(), "the checksum covers the place");
        let mut again = decode(&area, Some(&block));
        assert_eq!(get(&again, b"user.small").unwrap(), here(b"value"));
        assert_eq!(get(&again, b"security.large").unwrap(), here(&[7; 500]));
        assert_eq!(again.names(), [b"user.small".to_vec(), b"security.large".to_vec()]);
        again.remove(b"security.large").unwrap();
        assert_eq!(again.block_plan(), BlockPlan::Free);
        again.remove(b"user.small").unwrap();
        again.encode_inode(&mut area);
        assert_eq!(area, [0; 96], "an empty area has no magic");
    }

    #[test]
    fn values_that_share_bytes_are_corrupt_where_they_would_not_fit_apart() {
        let mut area = vec![0; 96];
        put_u32(&mut area, 0, MAGIC);
        for (slot, index) in [1, 4, 6, 7].into_iter().enumerate() {
            let at = INODE_HEADER + slot * ENTRY;
            area[at + 1] = index;
            put_u16(&mut area, at + 2, 68);
            put_u32(&mut area, at + 8, 21);
        }
        let error = Attributes::decode(12, &area, None, 4096).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn a_shared_block_is_left_and_not_changed() {
        let mut attributes = decode(&[], None);
        attributes.set(b"user.a", b"1", XattrMode::Set).unwrap();
        let mut block = attributes.encode_block(9, None);
        put_u32(&mut block, 4, 3);
        let mut shared = decode(&[], Some(&block));
        assert_eq!(shared.block_plan(), BlockPlan::Keep);
        shared.set(b"user.a", b"2", XattrMode::Replace).unwrap();
        assert_eq!(shared.block_plan(), BlockPlan::Allocate { release: true });
        shared.remove(b"user.a").unwrap();
        assert_eq!(shared.block_plan(), BlockPlan::Release);
        release_block(&mut block, 9, None);
        assert_eq!(block_references(Place::Inode(12), &block).unwrap(), 2);
    }

    #[test]
    fn what_fits_nowhere_is_refused_and_changes_nothing() {
        let mut attributes = decode(&[0; 96], None);
        attributes.set(b"user.a", b"old", XattrMode::Set).unwrap();
        let before = attributes.clone();
        let error = attributes.set(b"user.a", &[1; 1000], XattrMode::Set).unwrap_err();
        assert_eq!((error.kind(), attributes), (ErrorKind::NoSpace, before));
    }

    #[test]
    fn a_value_moves_between_inode_and_block_as_it_changes_size() {
        let mut attributes = decode(&[0; 96], None);
        for size in [10, 400, 10, 0] {
            attributes.set(b"user.a", &vec![1; size], XattrMode::Set).unwrap();
            assert_eq!(get(&attributes, b"user.a").unwrap(), here(&vec![1; size]));
            assert_eq!(attributes.block.is_empty(), size < 400);
            assert_eq!(attributes.names().len(), 1);
        }
    }

    #[test]
    fn create_and_replace_hold_what_they_promise() {
        let mut attributes = decode(&[0; 96], None);
        let kind = |result: Result<()>| result.unwrap_err().kind();
        assert_eq!(kind(attributes.set(b"user.a", b"", XattrMode::Replace)), ErrorKind::NotFound);
        attributes.set(b"user.a", b"", XattrMode::Create).unwrap();
        assert_eq!(kind(attributes.set(b"user.a", b"", XattrMode::Create)), ErrorKind::Exists);
        assert_eq!(kind(attributes.set(b"user.", b"", XattrMode::Set)), ErrorKind::Unsupported);
        assert_eq!(kind(attributes.set(b"system.data", b"", XattrMode::Set)), ErrorKind::Unsupported);
        assert_eq!(kind(attributes.remove(b"user.b")), ErrorKind::NotFound);
    }

    #[test]
    fn inline_data_is_hidden_and_survives() {
        let mut area = vec![0; 96];
        let mut attributes = decode(&area, None);
        attributes.set_raw(INLINE_DATA, b"rest of a file".to_vec()).unwrap();
        attributes.set(b"user.a", b"b", XattrMode::Set).unwrap();
        attributes.encode_inode(&mut area);
        let again = decode(&area, None);
        assert_eq!(again.names(), [b"user.a".to_vec()]);
        assert_eq!(again.raw(INLINE_DATA).cloned(), here(b"rest of a file"));
    }

    #[test]
    fn acls_change_form_on_their_way() {
        let linux = linux_acl(&[(1, 7, !0), (2, 6, 1000), (4, 5, !0), (0x10, 7, !0), (0x20, 0, !0)]);
        let mut attributes = decode(&[0; 96], None);
        attributes.set(b"system.posix_acl_access", &linux, XattrMode::Set).unwrap();
        assert_eq!(
            attributes.raw((2, b"")).map(|value| matches!(value, Value::Here(v) if v.len() == 28)),
            Some(true)
        );
        assert_eq!(get(&attributes, b"system.posix_acl_access").unwrap(), here(&linux));
        assert_eq!(attributes.names(), [b"system.posix_acl_access".to_vec()]);
        let (mode, kept) = acl::apply_to_mode(&linux, 0o4644).unwrap();
        assert_eq!((mode, kept.as_ref()), (0o4770, Some(&linux)));
        let after = acl::after_chmod(&linux, 0o751).unwrap();
        assert_eq!(after, linux_acl(&[(1, 7, !0), (2, 6, 1000), (4, 5, !0), (0x10, 5, !0), (0x20, 1, !0)]));
        let minimal = linux_acl(&[(1, 7, !0), (4, 5, !0), (0x20, 0, !0)]);
        assert_eq!(acl::apply_to_mode(&minimal, 0).unwrap(), (0o750, None));
        attributes.set(b"system.posix_acl_access", &[], XattrMode::Set).unwrap();
        assert!(attributes.names().is_empty());
    }

    #[test]
    fn malformed_acls_are_refused() {
        let bad: [&[(u16, u16, u32)]; 4] = [
            &[(1, 7, 0), (4, 5, 0)],
            &[(1, 7, 0), (2, 7, 5), (4, 5, 0), (0x20, 0, 0)],
            &[(4, 5, 0), (1, 7, 0), (0x20, 0, 0)],
            &[(1, 8, 0), (4, 5, 0), (0x20, 0, 0)],
        ];
        for entries in bad {
            assert_eq!(acl::from_linux(&linux_acl(entries)).unwrap_err().kind(), ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn a_value_in_an_inode_of_its_own_is_told_and_kept() {
        let mut area = vec![0; 96];
        let mut attributes = decode(&area, None);
        let value = Value::Inode { inode: 33, size: 100_000, hash: 5 };
        attributes.inode.push(Attribute { index: 1, name: b"big".to_vec(), value: value.clone() });
        attributes.set(b"user.a", b"b", XattrMode::Set).unwrap();
        attributes.encode_inode(&mut area);
        let mut again = decode(&area, None);
        assert_eq!(get(&again, b"user.big").unwrap(), Some(value));
        assert_eq!(again.held(), [33]);
        again.remove(b"user.big").unwrap();
        assert!(again.held().is_empty());
    }

    #[test]
    fn a_value_goes_outside_only_where_it_fits_nowhere_else() {
        let mut attributes = decode(&[0; 96], None);
        let error = attributes.set(b"user.big", &[1; 5000], XattrMode::Set).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        attributes.allow_outside();
        attributes.set(b"user.big", &[1; 5000], XattrMode::Set).unwrap();
        attributes.set(b"user.small", &[1; 500], XattrMode::Set).unwrap();
        assert_eq!(attributes.new_values().count(), 1);
        for attribute in attributes.new_values() {
            attribute.value = Value::Inode { inode: 40, size: 5000, hash: 6 };
        }
        assert_eq!((attributes.held(), attributes.outside_values().count()), (vec![40], 1));
        assert_eq!(attributes.block_plan(), BlockPlan::Allocate { release: false });
        attributes.set(b"user.big", &[1; 5], XattrMode::Set).unwrap();
        assert!(attributes.held().is_empty());
    }

    #[test]
    fn a_shared_block_holds_its_values_itself() {
        let mut attributes = decode(&[], None);
        let value = Value::Inode { inode: 33, size: 100_000, hash: 5 };
        attributes.block.push(Attribute { index: 1, name: b"big".to_vec(), value });
        let mut block = attributes.encode_block(9, None);
        assert_eq!(decode(&[], Some(&block)).held(), [33]);
        put_u32(&mut block, 4, 2);
        let mut shared = decode(&[], Some(&block));
        assert!(shared.held().is_empty());
        shared.set(b"user.a", b"b", XattrMode::Set).unwrap();
        assert_eq!(shared.held(), [33], "a block of its own counts anew");
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(mut bytes in prop::collection::vec(any::<u8>(), 1024)) {
            put_u32(&mut bytes, 0, MAGIC);
            let area = Attributes::decode(12, &bytes, None, 1024);
            put_u32(&mut bytes, 4, 1);
            put_u32(&mut bytes, 8, 1);
            let block = Attributes::decode(12, &[], Some(&bytes), 1024);
            for attributes in area.into_iter().chain(block) {
                let total: usize = attributes.all().map(|attribute| attribute.here().len()).sum();
                prop_assert!(total <= 1024);
            }
        }

        #[test]
        fn both_areas_hold_what_was_set(
            steps in prop::collection::vec((0_usize..12, prop::option::of(0_usize..300)), 1..60),
        ) {
            let mut area = vec![0; 96];
            let mut attributes = decode(&area, None);
            let mut model = std::collections::BTreeMap::new();
            for (number, size) in steps {
                let name = format!("user.{}", "n".repeat(number + 1)).into_bytes();
                match size {
                    Some(size) => match attributes.set(&name, &vec![number as u8; size], XattrMode::Set) {
                        Ok(()) => {
                            model.insert(name, vec![number as u8; size]);
                        }
                        Err(error) => prop_assert_eq!(error.kind(), ErrorKind::NoSpace),
                    },
                    None => prop_assert_eq!(attributes.remove(&name).is_ok(), model.remove(&name).is_some()),
                }
                attributes.encode_inode(&mut area);
                let block = (!attributes.block.is_empty()).then(|| attributes.encode_block(7, Some(1)));
                attributes = decode(&area, block.as_deref());
                for (name, value) in &model {
                    prop_assert_eq!(get(&attributes, name).unwrap(), here(value));
                }
                prop_assert_eq!(attributes.names().len(), model.len());
            }
        }
    }
}
