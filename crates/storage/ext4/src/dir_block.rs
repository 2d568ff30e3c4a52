//! One block of names: a chain of entries that covers it wholly.
//!
//! ```text
//! ┌inode┬rec_len┬name_len┬type┬name…┬pad┐┌inode┬rec_len┬…        ┐┌0┬12┬0┬0xde┬crc32c┐
//! └─────┴───────┴────────┴────┴─────┴───┘└─────┴───────┴─ slack ─┘└─ only with metadata_csum
//! ```
//!
//! An entry's `rec_len` reaches to the next entry, so free space is slack behind a name, or an entry whose
//! inode is zero. The names of an inline directory form the same chain, over the inode's own bytes.

use crate::checksum::crc32c;
use crate::error::{Error, Place, Result};
use crate::fold::Wanted;

/// The bytes before the name.
pub(crate) const HEADER: usize = 8;

/// The longest name, in bytes.
pub(crate) const NAME_MAX: usize = 255;

/// The size of the entry that carries a block's checksum.
const TAIL: usize = 12;

/// The file type that marks the checksum's entry.
const TAIL_TYPE: u8 = 0xde;

/// The file type of a directory.
pub(crate) const TYPE_DIRECTORY: u8 = 2;

/// How the names of one directory are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DirFormat {
    /// The directory's inode number, for errors.
    pub(crate) inode: u32,
    /// The inode's checksum seed where blocks carry checksums.
    pub(crate) seed: Option<u32>,
    /// Whether entries say what sort of file they name (feature `filetype`).
    pub(crate) file_types: bool,
    /// Whether names that differ in case alone are the same.
    pub(crate) folding: bool,
}

/// One entry; free where `inode` is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry<'a> {
    pub(crate) offset: usize,
    pub(crate) rec_len: usize,
    pub(crate) inode: u32,
    /// As on the volume; zero (unknown) where the directory has no file types.
    pub(crate) file_type: u8,
    pub(crate) name: &'a [u8],
}

/// The bytes that an entry with a name of this length needs.
pub(crate) fn entry_size(name_len: usize) -> usize {
    (HEADER + name_len).next_multiple_of(4)
}

/// Reads a record length; blocks of 64 KiB need one bit more than the field has.
pub(crate) fn decode_rec_len(field: u16, block_size: usize) -> usize {
    match (block_size, field) {
        (65536, 0 | 0xffff) => 65536,
        (65536.., field) => usize::from(field & 0xfffc) | (usize::from(field & 3) << 16),
        (_, field) => usize::from(field),
    }
}

/// The field for a record length of at most 65,536 bytes.
pub(crate) fn encode_rec_len(rec_len: usize) -> u16 {
    u16::try_from(rec_len).unwrap_or(0xffff)
}

impl DirFormat {
    fn corrupt(&self, problem: &'static str) -> Error {
        Error::corrupt(Place::Inode(self.inode.into()), problem)
    }

    /// The part of a leaf that names may fill.
    fn room(&self, block: &[u8]) -> usize {
        if self.seed.is_some() { block.len().saturating_sub(TAIL) } else { block.len() }
    }

    /// Walks the entries, free ones included, each validated before it is answered.
    pub(crate) fn entries<'a>(&self, block: &'a [u8]) -> Entries<'a> {
        Entries { format: *self, block, offset: 0 }
    }

    /// Finds a name.
    pub(crate) fn find<'a>(&self, block: &'a [u8], name: &[u8]) -> Result<Option<Entry<'a>>> {
        let wanted = Wanted::new(name, self.folding);
        for entry in self.entries(block) {
            let entry = entry?;
            if entry.inode != 0 && wanted.is(entry.name) {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    /// Adds a name that the block does not hold yet; answers whether there was room.
    pub(crate) fn insert(&self, block: &mut [u8], name: &[u8], inode: u32, file_type: u8) -> Result<bool> {
        let need = entry_size(name.len());
        let room = self.room(block);
        let mut place = None;
        for entry in self.entries(&block[..room]) {
            let entry = entry?;
            let used = if entry.inode == 0 { 0 } else { entry_size(entry.name.len()) };
            if entry.rec_len - used >= need {
                place = Some((entry.offset, used, entry.rec_len));
                break;
            }
        }
        let Some((offset, used, rec_len)) = place else { return Ok(false) };
        if used > 0 {
            put_u16(block, offset + 4, encode_rec_len(used));
        }
        self.put(&mut block[offset + used..offset + rec_len], name, inode, file_type);
        self.seal(block);
        Ok(true)
    }

    /// Fills a whole record with one entry.
    fn put(&self, record: &mut [u8], name: &[u8], inode: u32, file_type: u8) {
        let rec_len = record.len();
        record[..entry_size(name.len())].fill(0);
        record[..4].copy_from_slice(&inode.to_le_bytes());
        put_u16(record, 4, encode_rec_len(rec_len));
        // Without file types the name's length has both bytes, the higher of them always zero.
        record[6] = name.len().min(NAME_MAX) as u8;
        record[7] = if self.file_types { file_type } else { 0 };
        record[HEADER..HEADER + name.len()].copy_from_slice(name);
    }

    /// Removes a name; answers the inode that it led to, or `None` where it is absent.
    pub(crate) fn remove(&self, block: &mut [u8], name: &[u8]) -> Result<Option<u32>> {
        let wanted = Wanted::new(name, self.folding);
        let mut previous: Option<(usize, usize)> = None;
        let mut found = None;
        for entry in self.entries(block) {
            let entry = entry?;
            if entry.inode != 0 && wanted.is(entry.name) {
                found = Some((entry.offset, entry.rec_len, entry.inode, entry_size(entry.name.len())));
                break;
            }
            previous = Some((entry.offset, entry.rec_len));
        }
        let Some((offset, rec_len, inode, size)) = found else { return Ok(None) };
        match previous {
            Some((before, before_len)) => {
                block[offset..offset + size].fill(0);
                put_u16(block, before + 4, encode_rec_len(before_len + rec_len));
            }
            None => {
                block[offset..offset + 4].fill(0);
                block[offset + 6..offset + size].fill(0);
            }
        }
        self.seal(block);
        Ok(Some(inode))
    }

    /// Leads a name to another inode; answers whether the name is here. The checksum is left to the caller,
    /// because the first block of an indexed directory has one of another kind.
    pub(crate) fn set_inode(&self, block: &mut [u8], name: &[u8], inode: u32, file_type: u8) -> Result<bool> {
        let Some(offset) = self.find(block, name)?.map(|entry| entry.offset) else { return Ok(false) };
        block[offset..offset + 4].copy_from_slice(&inode.to_le_bytes());
        if self.file_types {
            block[offset + 7] = file_type;
        }
        Ok(true)
    }

    /// Makes a block that holds no names.
    pub(crate) fn empty_block(&self, block_size: usize) -> Vec<u8> {
        let mut block = vec![0; block_size];
        let room = self.room(&block);
        put_u16(&mut block, 4, encode_rec_len(room));
        self.seal(&mut block);
        block
    }

    /// Makes a block with `.` and `..` only: the first of a new directory.
    pub(crate) fn first_block(&self, block_size: usize, this: u32, parent: u32) -> Vec<u8> {
        let mut block = vec![0; block_size];
        let room = self.room(&block);
        self.put(&mut block[..12], b".", this, TYPE_DIRECTORY);
        self.put(&mut block[12..room], b"..", parent, TYPE_DIRECTORY);
        self.seal(&mut block);
        block
    }

    /// Makes a block of the given names, which must fit, packed from its beginning.
    pub(crate) fn packed_block<'a>(
        &self,
        block_size: usize,
        names: impl IntoIterator<Item = Entry<'a>>,
    ) -> Vec<u8> {
        let mut block = self.empty_block(block_size);
        let room = self.room(&block);
        let (mut offset, mut last) = (0, 0);
        for entry in names {
            let size = entry_size(entry.name.len());
            self.put(&mut block[offset..offset + size], entry.name, entry.inode, entry.file_type);
            (last, offset) = (offset, offset + size);
        }
        put_u16(&mut block, last + 4, encode_rec_len(room - last));
        self.seal(&mut block);
        block
    }

    /// Sets the checksum of a leaf.
    pub(crate) fn seal(&self, block: &mut [u8]) {
        let Some(seed) = self.seed else { return };
        let (names, tail) = block.split_at_mut(block.len() - TAIL);
        tail.fill(0);
        put_u16(tail, 4, TAIL as u16);
        tail[7] = TAIL_TYPE;
        tail[8..].copy_from_slice(&crc32c(seed, names).to_le_bytes());
    }

    /// Whether a leaf ends with the entry that carries its checksum.
    pub(crate) fn has_tail(&self, block: &[u8]) -> bool {
        block.len() >= TAIL && block[block.len() - TAIL..][..8] == [0, 0, 0, 0, TAIL as u8, 0, 0, TAIL_TYPE]
    }

    /// Checks the checksum of a leaf.
    pub(crate) fn verify(&self, block: &[u8]) -> Result<()> {
        let Some(seed) = self.seed else { return Ok(()) };
        let (names, tail) = block.split_at(block.len() - TAIL);
        if tail[..8] != [0, 0, 0, 0, TAIL as u8, 0, 0, TAIL_TYPE] {
            return Err(self.corrupt("a directory block has no checksum"));
        }
        let (expected, actual) = (crc32c(seed, names), get_u32(tail, 8));
        if expected != actual {
            let place = Place::Inode(self.inode.into());
            let (expected, actual) = (expected.into(), actual.into());
            return Err(Error::mismatch(place, "the checksum of a directory block", expected, actual));
        }
        Ok(())
    }
}

/// The entries of one block, in order.
#[derive(Debug, Clone)]
pub(crate) struct Entries<'a> {
    format: DirFormat,
    block: &'a [u8],
    offset: usize,
}

impl<'a> Entries<'a> {
    fn parse(&self) -> Result<Entry<'a>> {
        let rest = &self.block[self.offset..];
        if rest.len() < HEADER + 4 {
            return Err(self.format.corrupt("a directory entry begins too close to the block's end"));
        }
        let rec_len = decode_rec_len(u16::from_le_bytes([rest[4], rest[5]]), self.block.len());
        let inode = get_u32(rest, 0);
        let (name_len, file_type) = match self.format.file_types {
            true => (usize::from(rest[6]), rest[7]),
            // A type may have been left by a kernel that knew the feature; the length never needs it.
            false => (usize::from(rest[6]), 0),
        };
        if rec_len < HEADER + 4 || !rec_len.is_multiple_of(4) || rec_len > rest.len() {
            return Err(self.format.corrupt("the record length of a directory entry is impossible"));
        }
        if entry_size(name_len) > rec_len {
            return Err(self.format.corrupt("a name is longer than its directory entry"));
        }
        let name = &rest[HEADER..HEADER + name_len];
        if inode != 0 && (name.is_empty() || has_separator(name)) {
            return Err(self.format.corrupt("a name is empty or has a slash or a zero byte in it"));
        }
        Ok(Entry { offset: self.offset, rec_len, inode, file_type, name })
    }
}

/// Whether a name has a slash or a zero byte in it; eight bytes at a time, since every name on the way is looked at.
fn has_separator(name: &[u8]) -> bool {
    const LOW: u64 = u64::from_le_bytes([1; 8]);
    const HIGH: u64 = u64::from_le_bytes([0x80; 8]);
    const SLASHES: u64 = u64::from_le_bytes([b'/'; 8]);
    let has_zero = |word: u64| word.wrapping_sub(LOW) & !word & HIGH != 0;
    let (words, rest) = name.as_chunks::<8>();
    let bad = words.iter().any(|word| {
        let word = u64::from_le_bytes(*word);
        has_zero(word) || has_zero(word ^ SLASHES)
    });
    bad || rest.iter().any(|&byte| byte == b'/' || byte == 0)
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.offset >= self.block.len() {
            return None;
        }
        let entry = self.parse();
        // After an error nothing that follows can be found.
        self.offset = entry.as_ref().map_or(self.block.len(), |entry| entry.offset + entry.rec_len);
        Some(entry)
    }
}

pub(crate) fn get_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn get_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(crate) fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;
    use proptest::prelude::*;

    const FORMAT: DirFormat = DirFormat { inode: 12, seed: Some(77), file_types: true, folding: false };

    proptest! {
        #[test]
        fn separators_are_seen_wherever_they_are(
            name in prop::collection::vec(prop_oneof![9 => 1_u8..=255, 1 => Just(0), 1 => Just(b'/')], 0..30),
        ) {
            prop_assert_eq!(has_separator(&name), name.contains(&0) || name.contains(&b'/'));
        }
    }

    fn names(format: DirFormat, block: &[u8]) -> Vec<Vec<u8>> {
        let live = format.entries(block).map(Result::unwrap).filter(|entry| entry.inode != 0);
        live.map(|entry| entry.name.to_vec()).collect()
    }

    #[test]
    fn a_new_directory_holds_itself_and_its_parent() {
        let block = FORMAT.first_block(1024, 12, 2);
        FORMAT.verify(&block).unwrap();
        assert_eq!(names(FORMAT, &block), [b".".to_vec(), b"..".to_vec()]);
        assert_eq!(FORMAT.find(&block, b"..").unwrap().unwrap().inode, 2);
    }

    #[test]
    fn slack_and_removed_names_are_used_again() {
        let mut block = FORMAT.first_block(1024, 12, 2);
        let mut added = 0;
        while FORMAT.insert(&mut block, format!("name{added:03}").as_bytes(), 20 + added, 1).unwrap() {
            added += 1;
        }
        assert_eq!(added, (1024 - 12 - 12 - 12) / 16);
        assert_eq!(FORMAT.remove(&mut block, b"name007").unwrap(), Some(27));
        assert_eq!(FORMAT.remove(&mut block, b"name007").unwrap(), None);
        assert!(!FORMAT.insert(&mut block, b"nine bytes", 9, 1).unwrap());
        assert!(FORMAT.insert(&mut block, b"newname", 9, 1).unwrap());
        FORMAT.verify(&block).unwrap();
    }

    #[test]
    fn the_checksum_is_never_taken_for_free_space() {
        let mut block = FORMAT.empty_block(1024);
        assert!(FORMAT.insert(&mut block, &[b'x'; 255], 9, 1).unwrap());
        while FORMAT.insert(&mut block, b"abcd", 9, 1).unwrap() {}
        while FORMAT.insert(&mut block, b"a", 9, 1).unwrap() {}
        FORMAT.verify(&block).unwrap();
    }

    #[test]
    fn the_largest_block_is_covered_by_one_entry() {
        let format = DirFormat { seed: None, ..FORMAT };
        let mut block = format.empty_block(65536);
        assert_eq!(format.entries(&block).next().unwrap().unwrap().rec_len, 65536);
        assert!(format.insert(&mut block, b"name", 9, 1).unwrap());
        assert_eq!(names(format, &block), [b"name".to_vec()]);
        assert_eq!(decode_rec_len(0, 65536), 65536);
    }

    #[test]
    fn a_changed_byte_fails_the_checksum() {
        let mut block = FORMAT.first_block(1024, 12, 2);
        block[100] ^= 1;
        assert_eq!(FORMAT.verify(&block).unwrap_err().kind(), ErrorKind::Corrupt);
    }

    proptest! {
        #[test]
        fn any_bytes_are_walked_to_the_end_or_refused(block in prop::collection::vec(any::<u8>(), 1024)) {
            let mut covered = 0;
            for entry in FORMAT.entries(&block) {
                let Ok(entry) = entry else { return Ok(()) };
                prop_assert_eq!(entry.offset, covered);
                covered += entry.rec_len;
            }
            prop_assert_eq!(covered, 1024);
        }

        #[test]
        fn a_block_holds_what_was_put_into_it(
            steps in prop::collection::vec((any::<bool>(), 0_u32..24, 1_usize..255), 1..200),
            csum in any::<bool>(),
        ) {
            let format = DirFormat { seed: csum.then_some(5), ..FORMAT };
            let mut block = format.empty_block(2048);
            let mut model = std::collections::BTreeMap::new();
            for (add, number, len) in steps {
                let name = format!("{number:0len$}").into_bytes();
                if add && !model.contains_key(&name) {
                    let free = format.room(&block) - model.keys().map(|n: &Vec<u8>| entry_size(n.len())).sum::<usize>();
                    let put = format.insert(&mut block, &name, number + 11, 1).unwrap();
                    prop_assert!(put || free < 2048 - 12, "an empty block takes every name");
                    if put {
                        model.insert(name, number + 11);
                    }
                } else if !add {
                    prop_assert_eq!(format.remove(&mut block, &name).unwrap(), model.remove(&name));
                }
                format.verify(&block).unwrap();
            }
            let mut held = names(format, &block);
            held.sort();
            prop_assert_eq!(held, model.into_keys().collect::<Vec<_>>());
        }
    }
}
