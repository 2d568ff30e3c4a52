//! Kernels, modules and initramfs out of a guest's own disk.
//!
//! ```text
//! vfs::Root, .deb or files ──► kernel ──► ELF, where it has a PVH entry ──┐
//!                         └──► modules.dep … ──► just what is needed ──┐  │
//!                                    the agent, its configuration ──► cpio ──► a monitor
//! ```
//!
//! [`prepare()`] answers bytes, [`prepare_in`] files that are kept for the next time. What happens in the guest
//! then is told in `docs/boot.md`.
//!
//! ```no_run
//! use vmwright_boot::{Bus, Request, RootDevice, Source, Then, prepare};
//!
//! # fn boot(root: &vmwright_vfs::Root) -> vmwright_boot::Result<()> {
//! let request = Request {
//!     bus: Bus::Mmio,
//!     root: RootDevice::Serial { serial: "root".into(), partition: Some(1) },
//!     fs_type: "ext4".into(),
//!     options: String::new(),
//!     read_only: false,
//!     then: Then::Serve,
//!     cmdline: String::new(),
//! };
//! let files = prepare(Source::Guest { root, release: None }, &request)?;
//! assert!(files.initramfs.starts_with(b"070701"));
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod bzimage;
mod cpio;
mod error;
mod folder;
mod initramfs;
mod kernel;
mod modinfo;
mod modules;
mod package;
mod prepare;
mod tar;
mod unpack;

pub use bzimage::{extract_elf, has_pvh_entry, is_bzimage};
pub use error::{Error, Result};
pub use kernel::Kernel;
pub use prepare::{BootFiles, BootPaths, Bus, Image, Request, Source, prepare, prepare_in};
pub use vmwright_agent_proto::{RootDevice, Then};

/// The agent: a static program for x86-64 Linux, which an initramfs carries as `/init`.
pub const AGENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/vmwright-agent"));
