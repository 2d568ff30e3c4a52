//! Volumes made by mke2fs and filled by the kernel, held against the kernel and e2fsck.
#![allow(clippy::unwrap_used, clippy::panic)]

mod images;
mod journals;
mod populate;
mod random;
mod reading;
mod tree;
mod writing;
