//! Filesystems as wholes: one volume of an image, and what is done with the filesystem on it.
//!
//! ```text
//!  image ─▶ transaction ─▶ partitions ─▶ Target ── filesystem(): its files
//!                                          │  └─── info · check · resize · tune · …: itself
//!                                          └─ commit: all changes reach the image together
//! ```

mod deleted;
mod info;
mod pieces;
mod target;
mod work;

pub use deleted::Removed;
pub use info::Info;
pub use pieces::{FilePieces, Fragmentation};
pub use target::{Format, Purpose, Target};
pub use work::{Checked, Found, NewSize, Resized};
