//! Whole disks: a partition table, a filesystem, and what a source holds.

use std::ops::Range;
use std::sync::Arc;

use uuid::Uuid;
use vmwright_disk::{Disk, Window};
use vmwright_ext4::make::{self, Made, MakeOptions};
use vmwright_ext4::{Ext4, Options};
use vmwright_vfs::FileSystem;
use vmwright_volume::{NewPartition, NewTable, PartitionTable, PartitionType, Scheme};

use crate::entry::Source;
use crate::populate::fill;
use crate::{Error, PopulateOptions, Populated, Result};

/// The type of partitions of Linux in an MBR.
const LINUX_MBR: u8 = 0x83;

/// What disks are multiples of.
const UNIT: u64 = 1 << 20;

/// How a disk is built.
#[derive(Debug, Clone)]
pub struct DiskOptions {
    /// The partition table; without one the filesystem is on the whole disk.
    pub scheme: Option<Scheme>,
    /// What identifies the disk, in a table.
    pub disk_id: Uuid,
    /// What identifies the partition, in a GPT.
    pub partition_id: Uuid,
    /// The filesystem.
    pub filesystem: MakeOptions,
    /// How it is filled.
    pub populate: PopulateOptions,
}

/// A disk that was built.
#[derive(Debug, Clone)]
pub struct Built {
    /// Where the filesystem is, in bytes.
    pub volume: Range<u64>,
    /// How it was laid out.
    pub made: Made,
    /// What was put into it.
    pub populated: Populated,
}

impl DiskOptions {
    /// How long a disk must be for a filesystem of `len` bytes.
    pub fn disk_len(&self, len: u64) -> u64 {
        len.next_multiple_of(UNIT).saturating_add(self.overhead())
    }

    /// How much of a disk the table and its margins take, in bytes.
    fn overhead(&self) -> u64 {
        self.scheme.map(NewTable::margins).map_or(0, |(before, after)| before + after.next_multiple_of(UNIT))
    }

    /// Where the filesystem goes on a disk of `len` bytes.
    fn volume(&self, len: u64) -> Result<Range<u64>> {
        let (before, after) = self.scheme.map(NewTable::margins).unwrap_or((0, 0));
        let end = len.saturating_sub(after) / UNIT * UNIT;
        // A disk without a table is used to the last block.
        let end = if self.scheme.is_some() { end } else { len };
        match end > before {
            true => Ok(before..end),
            false => Err(Error::plain("the disk is too small for a partition")),
        }
    }
}

/// Makes a partition table and a filesystem on a disk and fills it from `sources`, layer over layer. What the disk held is lost; the caller
/// flushes.
///
/// # Errors
///
/// Kind `InvalidInput` for options that cannot be, `NoSpace` where the content does not fit, and those of [`populate()`](crate::populate()).
pub fn build(disk: &Arc<dyn Disk>, sources: &mut [Box<dyn Source>], options: &DiskOptions) -> Result<Built> {
    let volume = options.volume(disk.len())?;
    if let Some(scheme) = options.scheme {
        PartitionTable::create(disk, &table(scheme, &volume, options)).map_err(Error::volume)?;
    }
    let window = Window::new(disk.clone(), volume.start, volume.end - volume.start);
    let window: Arc<dyn Disk> = Arc::new(window.map_err(Error::disk)?);
    let made = make::make(window.clone(), &options.filesystem).map_err(Error::ext4)?;
    let mut filesystem = Ext4::open(window, Options::writable()).map_err(Error::ext4)?;
    let populated = fill(&mut filesystem, sources, &options.populate)?;
    filesystem.sync().map_err(Error::filesystem(b""))?;
    Ok(Built { volume, made, populated })
}

fn table(scheme: Scheme, volume: &Range<u64>, options: &DiskOptions) -> NewTable {
    let partition_type = match scheme {
        Scheme::Gpt => PartitionType::LINUX_ROOT_X86_64,
        Scheme::Mbr => PartitionType::Mbr(LINUX_MBR),
    };
    let partition = NewPartition {
        start: volume.start,
        len: volume.end - volume.start,
        partition_type,
        id: options.partition_id,
        name: "root".to_owned(),
        bootable: scheme == Scheme::Mbr,
    };
    NewTable { scheme, id: options.disk_id, partitions: vec![partition] }
}
