//! ext2, ext3 and ext4, read and written in place.
#![forbid(unsafe_code)]

mod alloc;
mod attributes;
mod bitmap;
mod block_cache;
mod checksum;
mod dir_block;
mod directory;
mod error;
mod extent_edit;
mod extents;
mod features;
mod file_read;
mod file_write;
mod filesystem;
mod group;
mod hash;
mod htree;
mod indirect;
mod indirect_edit;
mod inline;
mod inode;
mod journal;
mod layout;
mod mapping;
mod names;
mod namespace;
mod node_write;
mod orphans;
mod probe;
mod recovery;
mod superblock;
mod sync;
mod volume;
mod xattr;

pub use error::{Error, ErrorKind, Result};
pub use probe::is_ext;
pub use volume::{Ext4, Options};
