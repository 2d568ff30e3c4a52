//! ext2, ext3 and ext4, read and written in place.
#![forbid(unsafe_code)]

mod checksum;
mod dir_block;
mod error;
mod hash;
mod htree;
mod journal;
mod xattr;

pub use error::{Error, ErrorKind, Result};
