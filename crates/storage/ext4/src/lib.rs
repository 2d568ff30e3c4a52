//! ext2, ext3 and ext4, read and written in place.
//!
//! [`Ext4`] is a [`FileSystem`](vmwright_vfs::FileSystem) over any [`Disk`](vmwright_disk::Disk). It reads
//! what mke2fs makes and kernels leave behind, a journal with pending changes included, and changes volumes
//! so that e2fsck finds nothing to say and kernels go on with them.
//!
//! ```text
//!  FileSystem        lookup · read_at · create · rename · set_xattr · sync …
//!      │
//!  names, inodes     directory · htree · dir_block · inline │ attributes · xattr │ inode
//!      │
//!  maps of blocks    mapping: extents · extent_edit │ indirect · indirect_edit
//!      │
//!  allocation        alloc: block and inode bitmaps │ group: descriptors │ superblock
//!      │
//!  block_cache       8 MiB of metadata, changed blocks until the sync  ◀── journal, recovery: block → newer
//!      │                                                                    content, for reading in memory
//!    Disk            file content goes here directly
//! ```
//!
//! Nothing is written before the first change, and nothing at all to a volume opened for reading. What
//! cannot be handled is refused by name: `open` says which features stand in the way.
//!
//! ```
//! use std::sync::Arc;
//! use vmwright_disk::{Disk, MemDisk};
//! use vmwright_ext4::{ErrorKind, Ext4, Options, is_ext};
//! use vmwright_vfs::FileSystem;
//!
//! fn hostname(disk: Arc<dyn Disk>) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
//!     let volume = Ext4::open(disk, Options::default())?;
//!     let etc = volume.lookup(volume.root(), b"etc")?;
//!     let file = volume.lookup(etc, b"hostname")?;
//!     let mut name = vec![0; 64];
//!     let len = volume.read_at(file, &mut name, 0)?;
//!     name.truncate(len);
//!     Ok(name)
//! }
//!
//! let empty = Arc::new(MemDisk::new(1 << 20));
//! assert!(!is_ext(&*empty));
//! assert!(hostname(empty.clone()).is_err());
//! assert_eq!(Ext4::open(empty, Options::default()).unwrap_err().kind(), ErrorKind::Corrupt);
//! ```
#![forbid(unsafe_code)]

mod acl;
mod alloc;
mod allocate;
mod attributes;
mod bitmap;
mod block_cache;
mod check;
mod checksum;
mod copies;
mod deleted;
mod describe;
mod dir_block;
mod directory;
mod error;
mod extent_edit;
mod extents;
mod fast_replay;
mod features;
mod file_map;
mod file_read;
mod file_write;
mod filesystem;
mod fold;
mod fragmentation;
mod free;
mod group;
mod group_bitmaps;
mod group_index;
mod hash;
mod htree;
mod identity;
mod indirect;
mod indirect_edit;
mod inline;
mod inode;
mod inode_alloc;
mod journal;
mod journal_device;
mod layout;
pub mod make;
mod mapping;
mod maps;
mod mmp;
mod names;
mod namespace;
mod node_write;
mod orphans;
mod probe;
mod protect;
mod quota;
mod recovery;
mod reseal;
pub mod resize;
mod superblock;
mod sync;
pub mod tune;
mod value_inode;
mod volume;
mod windows;
mod write_behind;
mod xattr;

pub use check::{CheckOptions, Finding, Place, Problem, Report, Stats, check};
pub use deleted::Deleted;
pub use describe::{
    Defaults, Description, Geometry, History, Incident, Internals, Journal, State, Usage, describe,
};
pub use error::{Error, ErrorKind, Result};
pub use fragmentation::{Pieces, score};
pub use journal_device::{OtherJournal, journal_held, journal_wanted};
pub use probe::is_ext;
pub use volume::{Ext4, Options};

/// Journals made out of arbitrary bytes, and what following them must show.
#[cfg(any(test, feature = "test-util"))]
pub mod journal_model {
    pub use crate::journal::model::check;
}
