//! Kernels, modules and initramfs out of a guest's own disk.
#![forbid(unsafe_code)]

mod bzimage;
mod cpio;
mod error;
mod kernel;
mod modules;
mod unpack;

pub use bzimage::{extract_elf, is_bzimage};
pub use cpio::Archive;
pub use error::{Error, Result};
pub use kernel::Kernel;
pub use modules::{Module, Modules};

/// The agent: a static program for x86-64 Linux, which an initramfs carries as `/init`.
pub const AGENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/vmwright-agent"));
