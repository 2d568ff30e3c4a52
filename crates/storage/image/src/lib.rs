//! Virtual-machine image formats, each a disk over a disk.
#![forbid(unsafe_code)]
