//! What an inode's owner has said may not be changed, the flags that say so, and projects.

use vmwright_vfs::InodeNumber;

use crate::error::{Error, ErrorKind, Place, Result};
use crate::features::ro_compat;
use crate::inode::{Inode, flags};
use crate::volume::Ext4;

/// The flags that `chattr` sets and that change nothing else of an inode: `suSiadAtDTjP`.
const SETTABLE: u32 = 0x1
    | 0x2
    | 0x8
    | flags::IMMUTABLE
    | flags::APPEND
    | 0x40
    | 0x80
    | 0x4000
    | 0x8000
    | 0x1_0000
    | 0x2_0000
    | flags::PROJECT_INHERIT;

/// Where a record ends that has the field of the project.
const PROJECT_END: u16 = 32;

fn refused(problem: &'static str) -> Error {
    Error::plain(ErrorKind::ReadOnly, problem)
}

/// Refuses to change an inode that is immutable.
pub(crate) fn check_mutable(inode: &Inode) -> Result<()> {
    match inode.has_flag(flags::IMMUTABLE) {
        true => Err(refused("the inode is immutable (`chattr -i` makes it changeable)")),
        false => Ok(()),
    }
}

/// Refuses to change, other than by adding to it, an inode that is immutable or only grows.
pub(crate) fn check_free(inode: &Inode) -> Result<()> {
    check_mutable(inode)?;
    match inode.has_flag(flags::APPEND) {
        true => Err(refused("the inode may only be appended to (`chattr -a` makes it changeable)")),
        false => Ok(()),
    }
}

/// Refuses to name in a directory whose entries take over its project what belongs to another one.
pub(crate) fn check_project(dir: &Inode, inode: &Inode) -> Result<()> {
    match dir.has_flag(flags::PROJECT_INHERIT) && dir.project != inode.project {
        true => Err(Error::plain(
            ErrorKind::InvalidInput,
            "the directory is of another project: what belongs there can be copied, not moved",
        )),
        false => Ok(()),
    }
}

impl Ext4 {
    fn by_number(&self, inode: InodeNumber) -> Result<Inode> {
        let missing = || Error::corrupt(Place::Inode(inode.0), "there is no such inode");
        self.inode(u32::try_from(inode.0).map_err(|_| missing())?)
    }

    /// The flags of an inode, bit by bit as `lsattr` and `FS_IOC_GETFLAGS` have them.
    ///
    /// # Errors
    ///
    /// Kind `Corrupt` where there is no such inode.
    pub fn inode_flags(&self, inode: InodeNumber) -> Result<u32> {
        Ok(self.by_number(inode)?.flags)
    }

    /// Sets the flags of an inode, as `chattr` does. Those of content that is mapped, encrypted or hashed in a way of
    /// its own have to stay as they are.
    ///
    /// # Errors
    ///
    /// Kind `InvalidInput` where a flag differs that cannot be chosen.
    pub fn set_inode_flags(&mut self, inode: InodeNumber, flags: u32) -> Result<()> {
        self.check_writable()?;
        let mut inode = self.by_number(inode)?;
        if (inode.flags ^ flags) & !SETTABLE != 0 {
            return Err(Error::plain(ErrorKind::InvalidInput, "one of the flags cannot be chosen"));
        }
        inode.flags = flags;
        inode.changed = self.now;
        self.put_inode(&inode)
    }

    /// The project that an inode belongs to; 0 where the volume has none.
    ///
    /// # Errors
    ///
    /// Kind `Corrupt` where there is no such inode.
    pub fn project(&self, inode: InodeNumber) -> Result<u32> {
        Ok(self.by_number(inode)?.project)
    }

    /// Gives an inode to a project.
    ///
    /// # Errors
    ///
    /// Kind `Unsupported` where the volume lacks the feature `project` or the inode has no room for it.
    pub fn set_project(&mut self, inode: InodeNumber, project: u32) -> Result<()> {
        self.check_writable()?;
        let before = self.by_number(inode)?;
        let feature = self.superblock.features.has_ro_compat(ro_compat::PROJECT);
        if !feature || before.extra_isize < PROJECT_END {
            return Err(Error::unsupported("projects on this volume"));
        }
        check_free(&before)?;
        self.reserve_quota(before.uid, before.gid, project)?;
        let after = Inode { project, changed: self.now, ..before.clone() };
        self.put_inode(&after)?;
        self.move_values(&before, &after)
    }
}
