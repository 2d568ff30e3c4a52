//! Values of extended attributes that are kept in inodes of their own (feature `ea_inode`).
//!
//! ```text
//! entry (e_value_inum, e_value_size, e_hash of name and value) ──▶ inode: i_atime hash · i_ctime, i_version users
//! ```
//!
//! The owner's block count includes such values, as if they were its own. An older form, which Lustre made, has
//! neither hash nor count of users: its inode names the one owner in `i_mtime` and has its generation.

use std::collections::BTreeMap;

use vmwright_vfs::FileType;

use crate::checksum::crc32c;
use crate::error::{Error, Place, Result};
use crate::inode::{Inode, flags};
use crate::volume::Ext4;
use crate::xattr::{self, Attribute, Attributes, Value};

/// The longest value that Linux hands out.
const MAX_VALUE: u64 = 1 << 16;

/// Whether an inode holds its value in the form that names the owner.
fn is_legacy(value: &Inode, owner: &Inode) -> bool {
    value.modified.seconds == i64::from(owner.number) && value.generation == owner.generation
}

impl Ext4 {
    /// Reads the inode that an attribute says to hold its value.
    fn value_inode(&self, owner: &Inode, number: u32) -> Result<Inode> {
        let inode = self.inode(number)?;
        let sound = inode.has_flag(flags::EA_INODE)
            && !inode.has_flag(flags::INLINE_DATA | flags::ENCRYPT)
            && inode.file_type == FileType::Regular
            && inode.number >= self.superblock.first_inode()
            && inode.number != owner.number
            && inode.xattr_block == 0;
        if sound { Ok(inode) } else { Err(wrong(number)) }
    }

    /// Reads a value and holds it to its hashes.
    pub(crate) fn outside_value(&self, owner: &Inode, attribute: &Attribute) -> Result<Vec<u8>> {
        let Value::Inode { inode: number, size, hash } = attribute.value else { return Ok(Vec::new()) };
        let inode = self.value_inode(owner, number)?;
        if inode.size != u64::from(size) {
            return Err(wrong(number));
        }
        let value = self.read_whole(&inode, MAX_VALUE)?;
        if is_legacy(&inode, owner) {
            return Ok(value);
        }
        let found = crc32c(self.superblock.checksum_seed, &value);
        if found != inode.value_hash() {
            let (place, expected) = (Place::Inode(number.into()), inode.value_hash().into());
            return Err(Error::mismatch(place, "the hash of an attribute's value", expected, found.into()));
        }
        let expected = [false, true].map(|signed| xattr::outside_hash(&attribute.name, found, signed));
        if !expected.contains(&hash) {
            let (place, expected) = (Place::Inode(owner.number.into()), expected[0].into());
            return Err(Error::mismatch(place, "the hash of an attribute", expected, hash.into()));
        }
        Ok(value)
    }

    /// Makes inodes for the values that need them; none where that fails.
    pub(crate) fn make_values(&mut self, owner: &Inode, attributes: &mut Attributes) -> Result<Vec<u32>> {
        let mut made = Vec::new();
        for attribute in attributes.new_values() {
            let Value::New(value) = &attribute.value else { continue };
            match self.make_value(owner, value) {
                Ok(inode) => {
                    let hash = xattr::outside_hash(&attribute.name, inode.value_hash(), false);
                    attribute.value = Value::Inode { inode: inode.number, size: inode.size as u32, hash };
                    made.push(inode.number);
                }
                Err(error) => {
                    for number in made {
                        self.remove_value(number)?;
                    }
                    return Err(error);
                }
            }
        }
        Ok(made)
    }

    fn make_value(&mut self, owner: &Inode, value: &[u8]) -> Result<Inode> {
        let number = self.allocate_inode(owner, false)?;
        let mut inode = Inode::new(&self.superblock, number, FileType::Regular, self.now);
        (inode.permissions, inode.uid, inode.gid, inode.links) = (0o600, owner.uid, owner.gid, 1);
        inode.generation = self.generation(number);
        inode.flags = flags::EA_INODE;
        inode.set_value_users(1);
        inode.set_value_hash(crc32c(self.superblock.checksum_seed, value));
        self.start_map(&mut inode);
        let (_, result) = self.write_blocks(&mut inode, value, 0);
        inode.size = value.len() as u64;
        self.put_inode(&inode)?;
        match result {
            Ok(()) => Ok(inode),
            Err(error) => {
                self.remove_value(number)?;
                Err(error)
            }
        }
    }

    /// Does away with an inode that holds a value.
    pub(crate) fn remove_value(&mut self, number: u32) -> Result<()> {
        let inode = self.inode(number)?;
        self.remove_inode(inode)
    }

    /// What a value adds to its owner's count of space, in units of 512 bytes.
    fn value_sectors(&self, owner: &Inode, attributes: &Attributes) -> Result<u64> {
        let mut sectors = 0_u64;
        for attribute in attributes.outside_values() {
            let Value::Inode { inode, size, .. } = attribute.value else { continue };
            if !is_legacy(&self.value_inode(owner, inode)?, owner) {
                let cluster = self.superblock.cluster_sectors() * 512;
                sectors += u64::from(size).next_multiple_of(cluster) / 512;
            }
        }
        Ok(sectors)
    }

    /// The inodes of values whose number of users changes, with the number that each then has, all of them
    /// checked. Those just made have their first user already.
    pub(crate) fn holder_changes(
        &self,
        owner: &Inode,
        before: &Attributes,
        after: &Attributes,
        made: &[u32],
    ) -> Result<Vec<(Inode, u64)>> {
        let mut changes = BTreeMap::<u32, i64>::new();
        for (numbers, step) in [(before.held(), -1), (after.held(), 1), (made.to_vec(), -1)] {
            for number in numbers {
                *changes.entry(number).or_default() += step;
            }
        }
        let mut checked = Vec::new();
        for (number, change) in changes.into_iter().filter(|(_, change)| *change != 0) {
            let inode = self.value_inode(owner, number)?;
            let users = if is_legacy(&inode, owner) { 1 } else { inode.value_users() };
            let Some(users) = users.checked_add_signed(change) else {
                let place = Place::Inode(number.into());
                return Err(Error::corrupt(place, "it holds the value of more attributes than it counts"));
            };
            checked.push((inode, users));
        }
        Ok(checked)
    }

    /// Counts the inodes of values for another owner than before.
    pub(crate) fn move_values(&mut self, before: &Inode, after: &Inode) -> Result<()> {
        let owners = |inode: &Inode| (inode.uid, inode.gid, inode.project);
        if self.quota.is_none() || owners(before) == owners(after) {
            return Ok(());
        }
        let count = self.attributes(after)?.outside_values().count() as i64;
        self.count_values(before, -count)?;
        self.count_values(after, count)
    }

    /// Lets `place` change where attributes are, and values follow with their users and what they take.
    pub(crate) fn change_holders(
        &mut self,
        owner: &mut Inode,
        before: &Attributes,
        after: &Attributes,
        made: &[u32],
        place: impl FnOnce(&mut Self, &mut Inode) -> Result<()>,
    ) -> Result<()> {
        let changes = self.holder_changes(owner, before, after, made)?;
        let (less, more) = (self.value_sectors(owner, before)?, self.value_sectors(owner, after)?);
        let count = |attributes: &Attributes| attributes.outside_values().count() as i64;
        let counted = count(after) - count(before);
        place(self, owner)?;
        self.count_values(owner, counted)?;
        owner.sectors = owner.sectors.saturating_add(more).saturating_sub(less);
        for (mut inode, users) in changes {
            if users == 0 {
                self.remove_inode(inode)?;
            } else {
                inode.set_value_users(users);
                self.put_inode(&inode)?;
            }
        }
        Ok(())
    }
}

fn wrong(number: u32) -> Error {
    let place = Place::Inode(number.into());
    Error::corrupt(place, "it does not hold the attribute that is said to be in it")
}
