use vmwright_vfs::{DeviceNumber, Timestamp};

use crate::Result;

/// One thing that a source holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it goes: names joined by `/`, without a first one, `.` or `..`. Empty for the root itself.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Permission, set-id and sticky bits.
    pub mode: u16,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The time of the last change to the content.
    pub modified: Timestamp,
    /// Extended attributes with their full names; ACLs in the form of Linux.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum EntryKind {
    Directory,
    /// A file with this many bytes.
    Regular {
        size: u64,
    },
    /// Another name of an entry that came before, by its path.
    HardLink {
        target: Vec<u8>,
    },
    Symlink {
        target: Vec<u8>,
    },
    CharDevice(DeviceNumber),
    BlockDevice(DeviceNumber),
    Fifo,
    Socket,
}

/// The content of the entry that is being visited.
pub trait Content {
    /// Calls `piece` with the bytes and their offset, in order. What is left out reads as zeros.
    ///
    /// # Errors
    ///
    /// What `piece` answers, or kind `Io` or `Corrupt` where the source cannot be read.
    fn each(&mut self, piece: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<()>;
}

/// Something that a filesystem can be filled from.
pub trait Source {
    /// Calls `visit` with each entry and its content, which may be left alone; a directory comes before what is in it
    /// wherever the source has it at all.
    ///
    /// # Errors
    ///
    /// What `visit` answers, or why the source cannot be read.
    fn each(&mut self, visit: &mut dyn FnMut(Entry, &mut dyn Content) -> Result<()>) -> Result<()>;

    /// Whether [`Source::each`] can be called again and visits the same.
    fn is_repeatable(&self) -> bool;
}

/// The content of what has none.
pub(crate) struct Nothing;

impl Content for Nothing {
    fn each(&mut self, _piece: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        Ok(())
    }
}

/// Cleans a path as archives write it: `./etc//passwd` is `etc/passwd`. `None` where it leads out by `..`.
pub(crate) fn clean(path: &[u8]) -> Option<Vec<u8>> {
    let mut names: Vec<&[u8]> = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => return None,
            name => names.push(name),
        }
    }
    Some(names.join(&b'/'))
}
