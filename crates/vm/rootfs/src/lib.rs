//! Fills a filesystem from a directory, an archive or layers of them, without root.
//!
//! ```text
//!  HostDirectory ┐             entries, in order
//!  TarArchive    ┼─ Source ──────────────────────► populate ──► any FileSystem
//!  layers of them┘             content in pieces
//! ```
//!
//! Owners, modes, times, hard links, holes, devices, extended attributes, ACLs and capabilities are preserved. Paths stay within the
//! filesystem: `..` is refused, and symbolic links lead nowhere outside of it.
//!
//! ```
//! use vmwright_rootfs::{PopulateOptions, TarArchive, populate};
//! use vmwright_vfs::FileSystem;
//!
//! /// Puts what is in an archive into a filesystem.
//! fn fill(fs: &mut dyn FileSystem, archive: &std::path::Path) -> vmwright_rootfs::Result<u64> {
//!     let mut source = TarArchive::open(archive)?;
//!     Ok(populate(fs, &mut source, &PopulateOptions::default())?.files)
//! }
//! # let mut fs = vmwright_vfs::MemoryFs::default();
//! # assert!(fill(&mut fs, "no such archive".as_ref()).is_err());
//! ```
#![forbid(unsafe_code)]

mod archive;
mod directory;
mod disk;
mod entry;
mod error;
mod populate;
mod size;
mod tree;

pub use archive::TarArchive;
pub use directory::HostDirectory;
pub use disk::{Built, DiskOptions, build};
pub use entry::{Content, Entry, EntryKind, Source};
pub use error::{Error, ErrorKind, Result};
pub use populate::{PopulateOptions, Populated, fill, populate, populate_layers};
pub use size::fitted;
