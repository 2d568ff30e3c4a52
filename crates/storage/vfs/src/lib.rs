//! The contract of a filesystem, and path resolution over mounted ones.
//!
//! ```text
//!  path, as bytes ─► Root ── resolves names, links, `..` and mounts inside the guest
//!                     ├── "/"      ─► FileSystem (ext4, …) ─► Disk
//!                     └── "/boot"  ─► FileSystem           ─► Disk
//!  FileDisk ─► one file of a Root, as a Disk again
//! ```
//!
//! ```
//! use vmwright_vfs::{FileSystem, Root};
//!
//! /// The name that the guest knows itself by.
//! fn hostname(filesystem: Box<dyn FileSystem>) -> vmwright_vfs::Result<String> {
//!     let root = Root::new(filesystem);
//!     let name = root.read_file("/etc/hostname", 4096)?;
//!     Ok(String::from_utf8_lossy(&name).trim_end().to_owned())
//! }
//! # #[cfg(feature = "test-util")] {
//! # let mut root = Root::new(Box::new(vmwright_vfs::MemoryFs::default()));
//! # assert!(hostname(Box::new(vmwright_vfs::MemoryFs::default())).is_err());
//! # }
//! ```
#![forbid(unsafe_code)]

mod ancestry;
#[cfg(any(test, feature = "test-util"))]
pub mod conformance;
mod error;
mod file_disk;
mod filesystem;
#[cfg(any(test, feature = "test-util"))]
mod memory;
mod metadata;
mod root;

pub use ancestry::paths_of;
pub use error::{Error, ErrorKind, Result};
pub use file_disk::FileDisk;
pub use filesystem::{FileSystem, NewNode, NodeKind, RenameMode, XattrMode};
#[cfg(any(test, feature = "test-util"))]
pub use memory::MemoryFs;
pub use metadata::{
    DeviceNumber, DirEntry, FileType, Identity, InodeNumber, Metadata, SetAttributes, StatFs, Timestamp,
};
pub use root::{LINKS_MAX, Location, MountId, Resolved, Root, WalkEntry};
