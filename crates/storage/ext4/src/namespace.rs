//! Names: making, linking, removing and moving them, with the link counts that follow.

use std::ops::ControlFlow;

use vmwright_vfs::{FileType, NewNode, RenameMode};

use crate::directory::Found;
use crate::error::{Error, ErrorKind, Place, Result};
use crate::features::{compat, incompat, ro_compat};
use crate::fold::{self, Wanted};
use crate::inode::{self, Inode, flags};
use crate::names::{NameChange, WriteBlocks};
use crate::protect;
use crate::volume::Ext4;

/// The most names that an inode can have.
const MAX_LINKS: u16 = 65_000;

/// The deepest directory that is followed upwards.
const MAX_DEPTH: usize = 1 << 16;

fn invalid(detail: &'static str) -> Error {
    Error::plain(ErrorKind::InvalidInput, detail)
}

fn check_name(name: &[u8]) -> Result<()> {
    let reserved = name.is_empty() || name == b"." || name == b"..";
    if reserved || name.len() > crate::dir_block::NAME_MAX || name.iter().any(|byte| matches!(byte, 0 | b'/'))
    {
        return Err(invalid("the name is not one that a file can have"));
    }
    Ok(())
}

impl Ext4 {
    /// Finds a name that must be there.
    fn existing(&self, dir: &Inode, name: &[u8]) -> Result<Found> {
        check_name(name)?;
        let found = self.find_name(dir, name)?;
        let found = found.ok_or_else(|| Error::plain(ErrorKind::NotFound, "there is no such name"))?;
        self.check_nameable(found.inode)?;
        Ok(found)
    }

    /// Refuses names that lead to what the volume itself needs, such as its journal: it would be done away with.
    pub(crate) fn check_nameable(&self, number: u32) -> Result<()> {
        let superblock = &self.superblock;
        let reserved = number < superblock.first_inode() && number != inode::ROOT_INODE;
        let special = superblock.quota_inodes().contains(&number) || superblock.orphan_file_inode() == number;
        match reserved || special {
            true => Err(Error::corrupt(
                Place::Inode(number.into()),
                "a name leads to an inode of the volume's own",
            )),
            false => Ok(()),
        }
    }

    /// Refuses a name that is there already.
    fn check_absent(&self, dir: &Inode, name: &[u8]) -> Result<()> {
        self.check_new_name(dir, name)?;
        match self.find_name(dir, name)? {
            Some(_) => Err(Error::plain(ErrorKind::Exists, "the name exists already")),
            None => Ok(()),
        }
    }

    /// Refuses a name that the directory cannot hold.
    fn check_new_name(&self, dir: &Inode, name: &[u8]) -> Result<()> {
        check_name(name)?;
        let strict = self.superblock.encoding().1 & fold::STRICT != 0;
        if strict && self.folds(dir) && !fold::is_valid(name) {
            return Err(invalid("the directory takes names in UTF-8 alone"));
        }
        Ok(())
    }

    /// Changes a name of a directory and stamps it.
    pub(crate) fn change_names(&mut self, mut dir: Inode, change: NameChange<'_>) -> Result<()> {
        let result = self.change_name_in(&mut dir, change);
        if result.is_ok() {
            dir.modified = self.now;
            dir.changed = self.now;
        }
        // Blocks may have been added even where the change failed.
        self.put_inode(&dir)?;
        result
    }

    fn change_name_in(&mut self, dir: &mut Inode, change: NameChange<'_>) -> Result<()> {
        if dir.has_flag(flags::INLINE_DATA) {
            if self.change_inline_names(dir, change)? {
                return Ok(());
            }
            self.move_inline_out(dir)?;
        }
        let hash = self.hash_of(dir);
        let names = self.names_of(dir, &hash);
        let blocks = &mut WriteBlocks { volume: self, inode: dir };
        match change {
            NameChange::Add { name, inode, file_type } => names.add(blocks, name, inode, file_type),
            NameChange::Remove { name } => names.remove(blocks, name).map(drop),
            NameChange::Lead { name, inode, file_type } => {
                names.set_entry(blocks, name, inode, file_type).map(drop)
            }
            NameChange::Parent(parent) => names.set_parent(blocks, parent),
        }
    }

    /// Adds a name; link counts are left to the caller.
    pub(crate) fn add_name(&mut self, dir: u32, name: &[u8], inode: u32, file_type: FileType) -> Result<()> {
        let dir = self.prepare_directory(dir)?;
        let file_type = inode::entry_type(file_type);
        self.change_names(dir, NameChange::Add { name, inode, file_type })
    }

    fn remove_name(&mut self, dir: u32, name: &[u8]) -> Result<()> {
        let dir = self.prepare_directory(dir)?;
        self.change_names(dir, NameChange::Remove { name })
    }

    fn set_name(&mut self, dir: u32, name: &[u8], inode: u32, file_type: FileType) -> Result<()> {
        let dir = self.prepare_directory(dir)?;
        let file_type = inode::entry_type(file_type);
        self.change_names(dir, NameChange::Lead { name, inode, file_type })
    }

    fn set_parent(&mut self, dir: u32, parent: u32) -> Result<()> {
        let dir = self.prepare_directory(dir)?;
        let (number, modified) = (dir.number, dir.modified);
        self.change_names(dir, NameChange::Parent(parent))?;
        // A directory that moves keeps the time of its own last change.
        let mut dir = self.directory(number)?;
        dir.modified = modified;
        self.put_inode(&dir)
    }

    /// Whether a directory has room for one more directory in it.
    fn check_subdirectory(&self, dir: &Inode) -> Result<()> {
        let features = &self.superblock.features;
        let indexed = features.has_compat(compat::DIR_INDEX) && dir.has_flag(flags::INDEX);
        let uncounted = features.has_ro_compat(ro_compat::DIR_NLINK) && indexed;
        if dir.links >= MAX_LINKS && !uncounted {
            return Err(Error::plain(ErrorKind::NoSpace, "the directory has as many directories as it can"));
        }
        Ok(())
    }

    /// Counts a directory's own directories; beyond the limit they are no longer counted, which one stands for.
    pub(crate) fn count_subdirectory(&mut self, dir: u32, more: bool) -> Result<()> {
        let mut dir = self.directory(dir)?;
        dir.links = match (dir.links, more) {
            (1, _) => 1,
            (MAX_LINKS.., true) => 1,
            (links, true) => links + 1,
            // An empty directory has two; less would make it look removed.
            (links, false) => (links - 1).max(2),
        };
        dir.changed = self.now;
        self.put_inode(&dir)
    }

    /// Makes an inode and names it.
    pub(crate) fn create_node(&mut self, dir: u32, name: &[u8], node: &NewNode) -> Result<u32> {
        let parent = self.prepare_directory(dir)?;
        self.check_absent(&parent, name)?;
        let directory = matches!(node.kind, vmwright_vfs::NodeKind::Directory);
        if directory {
            self.check_subdirectory(&parent)?;
        }
        let inherits = parent.has_flag(flags::PROJECT_INHERIT);
        self.reserve_quota(node.uid, node.gid, if inherits { parent.project } else { 0 })?;
        let inode = self.new_inode(&parent, node)?;
        self.put_inode(&inode)?;
        if let Err(error) = self.add_name(dir, name, inode.number, inode.file_type) {
            self.remove_inode(inode)?;
            return Err(error);
        }
        if directory {
            self.count_subdirectory(dir, true)?;
        }
        Ok(inode.number)
    }

    /// Gives an inode another name.
    pub(crate) fn link_node(&mut self, inode: u32, dir: u32, name: &[u8]) -> Result<()> {
        let parent = self.prepare_directory(dir)?;
        let mut inode = self.inode(inode)?;
        if inode.is_directory() {
            return Err(invalid("a directory has only one name"));
        }
        protect::check_free(&inode)?;
        protect::check_project(&parent, &inode)?;
        if inode.links >= MAX_LINKS {
            return Err(Error::plain(ErrorKind::NoSpace, "the file has as many names as it can"));
        }
        self.check_absent(&parent, name)?;
        self.add_name(dir, name, inode.number, inode.file_type)?;
        inode.links += 1;
        inode.changed = self.now;
        self.put_inode(&inode)
    }

    /// Removes the name of something that is no directory.
    pub(crate) fn unlink_name(&mut self, dir: u32, name: &[u8]) -> Result<()> {
        let parent = self.prepare_directory(dir)?;
        let inode = self.inode(self.existing(&parent, name)?.inode)?;
        if inode.is_directory() {
            return Err(invalid("the name is that of a directory"));
        }
        protect::check_free(&parent)?;
        protect::check_free(&inode)?;
        self.check_droppable(&inode)?;
        self.remove_name(dir, name)?;
        self.drop_link(inode)
    }

    /// Refuses what could not be done away with, before any name is removed.
    fn check_droppable(&self, inode: &Inode) -> Result<()> {
        self.check_map(inode)?;
        if inode.is_directory() || inode.links == 1 { self.check_attributes_removable(inode) } else { Ok(()) }
    }

    /// Counts one name less, and does away with an inode that has none left; for a directory its only one.
    fn drop_link(&mut self, mut inode: Inode) -> Result<()> {
        if inode.is_directory() || inode.links <= 1 {
            return self.remove_inode(inode);
        }
        inode.links -= 1;
        inode.changed = self.now;
        self.put_inode(&inode)
    }

    fn check_empty(&self, dir: &Inode) -> Result<()> {
        let dir = self.directory(dir.number)?;
        let mut empty = true;
        self.visit_names(&dir, &mut |_, _, _| {
            empty = false;
            ControlFlow::Break(())
        })?;
        if empty { Ok(()) } else { Err(invalid("the directory is not empty")) }
    }

    /// Removes an empty directory.
    pub(crate) fn remove_directory(&mut self, dir: u32, name: &[u8]) -> Result<()> {
        let parent = self.prepare_directory(dir)?;
        let inode = self.inode(self.existing(&parent, name)?.inode)?;
        if !inode.is_directory() {
            return Err(invalid("the name is not that of a directory"));
        }
        if inode.number == dir {
            return Err(Error::corrupt(Place::Inode(dir.into()), "the directory holds itself"));
        }
        protect::check_free(&parent)?;
        protect::check_free(&inode)?;
        self.check_empty(&inode)?;
        self.check_droppable(&inode)?;
        self.remove_name(dir, name)?;
        self.drop_link(inode)?;
        self.count_subdirectory(dir, false)
    }

    /// Moves a name.
    pub(crate) fn rename_name(
        &mut self,
        from: (u32, &[u8]),
        to: (u32, &[u8]),
        mode: RenameMode,
    ) -> Result<()> {
        let (from_dir, to_dir) = (self.prepare_directory(from.0)?, self.prepare_directory(to.0)?);
        let moved = self.inode(self.existing(&from_dir, from.1)?.inode)?;
        self.check_new_name(&to_dir, to.1)?;
        let target = match self.find_name(&to_dir, to.1)? {
            Some(found) => {
                self.check_nameable(found.inode)?;
                Some(self.inode(found.inode)?)
            }
            None => None,
        };
        protect::check_free(&from_dir)?;
        protect::check_free(&moved)?;
        protect::check_project(&to_dir, &moved)?;
        if let Some(target) = &target {
            protect::check_free(&to_dir)?;
            protect::check_free(target)?;
            if mode == RenameMode::Exchange {
                protect::check_project(&from_dir, target)?;
            }
        }
        if from.0 == to.0 && from.1 != to.1 && Wanted::new(from.1, self.folds(&from_dir)).is(to.1) {
            // One name in two spellings: there is nothing to swap with or to replace.
            return if mode == RenameMode::Exchange {
                Ok(())
            } else {
                self.respell(&from_dir, &moved, (from.1, to.1))
            };
        }
        match (mode, &target) {
            (RenameMode::NoReplace, Some(_)) => {
                return Err(Error::plain(ErrorKind::Exists, "the name exists already"));
            }
            (RenameMode::Exchange, None) => {
                return Err(Error::plain(ErrorKind::NotFound, "there is nothing to swap with"));
            }
            // Two names of one inode are left as they are, as POSIX has it.
            (_, Some(target)) if target.number == moved.number => return Ok(()),
            _ => {}
        }
        self.check_not_within(&moved, to.0)?;
        match (mode, target) {
            (RenameMode::Exchange, Some(target)) => self.exchange((from, moved), (to, target)),
            (_, target) => self.replace((from, moved), (to, target)),
        }
    }

    /// Gives a name in a folding directory another spelling.
    fn respell(&mut self, dir: &Inode, moved: &Inode, (old, new): (&[u8], &[u8])) -> Result<()> {
        let (wanted, mut before) = (Wanted::new(old, true), old.to_vec());
        self.visit_names(dir, &mut |entry, _, _| match wanted.is(entry) {
            true => {
                before = entry.to_vec();
                ControlFlow::Break(())
            }
            false => ControlFlow::Continue(()),
        })?;
        self.remove_name(dir.number, old)?;
        if let Err(error) = self.add_name(dir.number, new, moved.number, moved.file_type) {
            // What it took before has just become free.
            self.add_name(dir.number, &before, moved.number, moved.file_type)?;
            return Err(error);
        }
        self.stamp(moved.number)
    }

    /// Lets an empty directory fold the case of names, or no longer. What is made in it later does as it does.
    ///
    /// # Errors
    ///
    /// Kind `Unsupported` where the volume lacks the feature `casefold` or names an encoding that is not known,
    /// or where the directory is encrypted; `InvalidInput` where it is not empty.
    pub fn set_casefold(&mut self, dir: vmwright_vfs::InodeNumber, folding: bool) -> Result<()> {
        self.check_writable()?;
        let number = u32::try_from(dir.0)
            .map_err(|_| Error::corrupt(Place::Inode(dir.0), "there is no such inode"))?;
        let mut inode = self.directory(number)?;
        let known = self.superblock.features.has_incompat(incompat::CASEFOLD)
            && self.superblock.encoding().0 == fold::UTF8_12_1;
        if inode.has_flag(flags::ENCRYPT) || !known {
            return Err(Error::unsupported("folding the case of names in this directory"));
        }
        if inode.has_flag(flags::CASEFOLD) == folding {
            return Ok(());
        }
        self.check_empty(&inode)?;
        inode.flags ^= flags::CASEFOLD;
        inode.changed = self.now;
        self.put_inode(&inode)
    }

    /// Refuses to move a directory into itself.
    fn check_not_within(&self, moved: &Inode, dir: u32) -> Result<()> {
        if !moved.is_directory() {
            return Ok(());
        }
        let mut at = dir;
        for _ in 0..MAX_DEPTH {
            if at == moved.number {
                return Err(invalid("a directory cannot be moved into itself"));
            }
            if at == inode::ROOT_INODE {
                return Ok(());
            }
            let above = self.find_name(&self.directory(at)?, b"..")?;
            let missing = || Error::corrupt(Place::Inode(at.into()), "a directory has no parent entry");
            at = above.ok_or_else(missing)?.inode;
        }
        Err(Error::corrupt(Place::Inode(dir.into()), "the directory's parents never reach the root"))
    }

    fn replace(
        &mut self,
        ((from, from_name), moved): ((u32, &[u8]), Inode),
        ((to, to_name), target): ((u32, &[u8]), Option<Inode>),
    ) -> Result<()> {
        if let Some(target) = &target {
            if target.is_directory() != moved.is_directory() {
                return Err(invalid("one is a directory and the other is not"));
            }
            if target.is_directory() {
                self.check_empty(target)?;
            }
            self.check_droppable(target)?;
        } else if moved.is_directory() && from != to {
            self.check_subdirectory(&self.directory(to)?)?;
        }
        match &target {
            Some(_) => self.set_name(to, to_name, moved.number, moved.file_type)?,
            None => self.add_name(to, to_name, moved.number, moved.file_type)?,
        }
        self.remove_name(from, from_name)?;
        if moved.is_directory() {
            if from != to {
                self.set_parent(moved.number, to)?;
            }
            // One that takes another's place leaves the count as it is.
            match target {
                None if from == to => {}
                None => {
                    self.count_subdirectory(from, false)?;
                    self.count_subdirectory(to, true)?;
                }
                Some(_) => self.count_subdirectory(from, false)?,
            }
        }
        self.stamp(moved.number)?;
        target.map_or(Ok(()), |target| self.drop_link(target))
    }

    fn exchange(
        &mut self,
        ((from, from_name), moved): ((u32, &[u8]), Inode),
        ((to, to_name), target): ((u32, &[u8]), Inode),
    ) -> Result<()> {
        self.check_not_within(&target, from)?;
        match (moved.is_directory(), target.is_directory()) {
            _ if from == to => {}
            (true, false) => self.check_subdirectory(&self.directory(to)?)?,
            (false, true) => self.check_subdirectory(&self.directory(from)?)?,
            _ => {}
        }
        self.set_name(to, to_name, moved.number, moved.file_type)?;
        self.set_name(from, from_name, target.number, target.file_type)?;
        for (inode, old, new) in [(&moved, from, to), (&target, to, from)] {
            if inode.is_directory() && old != new {
                self.set_parent(inode.number, new)?;
                // Where both are directories the counts come out as they were.
                if moved.is_directory() != target.is_directory() {
                    self.count_subdirectory(old, false)?;
                    self.count_subdirectory(new, true)?;
                }
            }
            self.stamp(inode.number)?;
        }
        Ok(())
    }

    /// Records that an inode changed now.
    fn stamp(&mut self, number: u32) -> Result<()> {
        let mut inode = self.inode(number)?;
        inode.changed = self.now;
        self.put_inode(&inode)
    }
}
