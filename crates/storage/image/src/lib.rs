//! Virtual-machine image formats, each a disk over a disk.
//!
//! An [`Image`] is the disk that a guest sees; the file that holds it is any other disk: a host file, or an
//! overlay that collects the changes of a transaction.
//!
//! ```text
//! host file ← [overlay] ← Image (raw, qcow2) ← partition ← filesystem
//!                            │
//!                            └ backing file ← Image …   opened only through a Gate (chain)
//! ```
//!
//! ```
//! use std::sync::Arc;
//! use vmwright_disk::{Disk, MemDisk};
//! use vmwright_image::{CreateOptions, Format, FormatChoice, Image, OpenOptions, create_on};
//!
//! let file: Arc<dyn Disk> = Arc::new(MemDisk::new(0));
//! create_on(&file, &CreateOptions::new(Format::Qcow2, 1 << 30))?;
//!
//! let image = Image::open(file.clone(), FormatChoice::Exact(Format::Qcow2), OpenOptions::default())?;
//! assert_eq!(image.len(), 1 << 30);
//! assert!(file.len() < 1 << 20);
//! assert_eq!(image.info()?.cluster_size, Some(65536));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod blocks;
mod cache;
pub mod chain;
pub mod copy;
#[cfg(test)]
mod crash;
mod create;
mod driver;
mod error;
mod format;
mod image;
mod info;
mod luks;
pub mod matrix;
mod qcow2;
mod raw;
mod vdi;
mod vhd;
mod vhdx;
mod vmdk;
mod wipe;

pub use create::{CreateOptions, Layout, ParentId, PartMaker, create, create_filled, create_on};
pub use error::{Error, Result};
pub use format::{Format, FormatChoice, probe};
pub use image::{BackingFile, Image, OpenOptions, check, describe, key_area};
pub use info::{
    BitmapInfo, CheckReport, EncryptInfo, FormatInfo, ImageInfo, Luks2Info, LuksInfo, LuksSlotInfo,
    Qcow2Info, Repair, SnapshotInfo, VdiInfo, VhdInfo, VmdkExtentInfo, VmdkInfo,
};
pub use luks::{Chaining, IvGenerator, LuksKdf, LuksOptions};
pub use qcow2::bitmaps::{Bitmaps, DirtyRun};
pub use qcow2::layout::Compression;
pub use qcow2::options::{Compat, Preallocation, Qcow2Options};
pub use qcow2::snapshots::Snapshots;
pub use raw::RawOptions;
pub use vdi::VdiOptions;
pub use vhd::{VhdOptions, VhdSubformat};
pub use vhdx::{VhdxOptions, VhdxSubformat};
pub use vmdk::{AdapterType, Subformat, VmdkOptions};
pub use wipe::{WipeOptions, WipePattern, Wiped, wipe};

pub(crate) use image::allocated;
