//! ext2, ext3 and ext4, read and written in place.
#![forbid(unsafe_code)]
