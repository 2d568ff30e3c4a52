//! Partition tables: each turns a disk into disks.
#![forbid(unsafe_code)]
