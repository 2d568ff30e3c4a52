//! Partition tables: each turns a disk into disks.
//!
//! ```text
//!  GPT   | MBR | header | entries |  partition 1  |  partition 2  | entries | header |
//!                  primary copy                                       backup copy
//!  MBR   | MBR |  partition 1  | extended: | link | partition 5 | link | partition 6 |
//! ```
//!
//! ```
//! use std::sync::Arc;
//! use vmwright_disk::{Disk, MemDisk};
//! use vmwright_volume::PartitionTable;
//!
//! let mut bytes = vec![0; 1 << 20];
//! bytes[446 + 4] = 0x83; // Linux
//! bytes[446 + 8..446 + 16].copy_from_slice(&[0, 1, 0, 0, 0, 2, 0, 0]); // 512 sectors from sector 256 on
//! bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
//! let disk: Arc<dyn Disk> = Arc::new(MemDisk::from_bytes(bytes));
//!
//! let table = PartitionTable::read(&disk)?.expect("there is a table");
//! assert_eq!(table.partitions()[0].start, 128 << 10);
//! assert_eq!(table.partition(1)?.len(), 256 << 10);
//! # Ok::<(), vmwright_volume::Error>(())
//! ```
#![forbid(unsafe_code)]

mod create;
mod damage;
mod error;
mod gpt;
mod mbr;
#[cfg(any(test, feature = "test-util"))]
pub mod oracle;
mod table;
#[cfg(test)]
mod tests;

pub use create::{NewPartition, NewTable};
pub use damage::Damage;
pub use error::{Error, ErrorKind, Result};
pub use table::{Partition, PartitionTable, PartitionType, Scheme};
