//! The contract of a filesystem, and path resolution over mounted ones.
#![forbid(unsafe_code)]

mod error;
mod filesystem;
mod metadata;

pub use error::{Error, ErrorKind, Result};
pub use filesystem::{FileSystem, NewNode, NodeKind, RenameMode, XattrMode};
pub use metadata::{
    DeviceNumber, DirEntry, FileType, Identity, InodeNumber, Metadata, SetAttributes, StatFs, Timestamp,
};
