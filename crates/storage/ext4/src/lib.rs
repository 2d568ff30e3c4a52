//! ext2, ext3 and ext4, read and written in place.
#![forbid(unsafe_code)]

mod attributes;
mod block_cache;
mod checksum;
mod dir_block;
mod directory;
mod error;
mod extents;
mod fast_replay;
mod features;
mod file_read;
mod filesystem;
mod group;
mod hash;
mod htree;
mod indirect;
mod inline;
mod inode;
mod journal;
mod layout;
mod mapping;
mod names;
mod probe;
mod recovery;
mod superblock;
mod volume;
mod xattr;

pub use error::{Error, ErrorKind, Result};
pub use probe::is_ext;
pub use volume::{Ext4, Options};
