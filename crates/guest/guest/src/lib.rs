//! Opens the operating system on a disk, inspects it and edits it.
//!
//! ```text
//! image file(s) ─► Transaction ─► Image (raw, qcow2) ─► PartitionTable ─► Volume
//!                                                                          │
//!            Root ◄─ mounts of /etc/fstab ◄─ operating system ◄─ FileSystem ◄┘
//!              │
//!              ├─► Guest::inspect     what it is
//!              └─► ops                reading and changing its files;  Guest::commit makes that durable
//! ```
//!
//! On an image file it begins and ends like this:
//!
//! ```no_run
//! use vmwright_guest::{Guest, OpenOptions, ops};
//!
//! let mut guest = Guest::open(&["disk.qcow2"], &OpenOptions::edit())?;
//! assert_eq!(guest.inspect().os.id, "debian");
//! ops::write(guest.root_mut(), b"/etc/hostname", &mut &b"web-1\n"[..])?;
//! guest.commit()?;
//! # Ok::<(), vmwright_guest::Error>(())
//! ```
//!
//! Operations work on any tree of files:
//!
//! ```
//! use vmwright_guest::ops;
//! use vmwright_vfs::{MemoryFs, Root};
//!
//! let mut root = Root::new(Box::new(MemoryFs::default()));
//! ops::mkdir(&mut root, b"/etc/ssh", 0o755, true)?;
//! ops::write(&mut root, b"/etc/ssh/sshd_config", &mut &b"#Port 22\nUsePAM yes\n"[..])?;
//!
//! let port = ops::Substitution::parse("s/^#?Port .*/Port 2222/")?;
//! assert!(ops::substitute(&mut root, b"/etc/ssh/sshd_config", &[port])?);
//! assert_eq!(root.read_file("/etc/ssh/sshd_config", 1024)?, b"Port 2222\nUsePAM yes\n");
//! # Ok::<(), vmwright_guest::Error>(())
//! ```
//!
//! A guest's bytes are never trusted: paths resolve inside it, sizes and counts are bounded, and what is
//! copied out cannot land outside of the folder named for it.
#![forbid(unsafe_code)]

mod detect;
mod error;
mod free;
pub mod fs;
mod fstab;
mod guest;
mod inspect;
mod journals;
pub mod ops;
mod roots;
mod session;
mod volume;

pub use detect::{Content, detect};
pub use error::{Error, ErrorKind, Result};
pub use free::{FreeSpace, Unknown};
pub use fstab::FstabEntry;
pub use guest::{Guest, JournalDisk, Mode, OpenOptions};
pub use inspect::{
    Boot, BootEntry, BootLoader, CloudInit, DiskSummary, Group, Inspection, Interface, Kernel, MountPoint,
    NetworkFile, OsRelease, Package, Packages, Password, User,
};
pub use vmwright_disk::{FilePlan, Plan, WriteMode};
pub use volume::Volume;
