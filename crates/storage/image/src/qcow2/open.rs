//! Opening an image.

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, RwLock};

use vmwright_disk::Disk;

use super::compress::Unpacked;
use super::data::DataFile;
use super::layout::{Header, INCOMPATIBLE_CORRUPT, INCOMPATIBLE_DATA_FILE};
use super::state::State;
use super::{Backing, Qcow2, ReadOnly, tables};
use crate::cache::Cache;
use crate::{Error, OpenOptions, Result};

/// The length of the slices in which L2 tables and refcount blocks are read and cached.
const SLICE: u64 = 4096;

/// Reads the header with its extensions.
pub(crate) fn read_header(file: &dyn Disk) -> Result<Header> {
    let mut first = vec![0; file.len().min(512) as usize];
    file.read_at(&mut first, 0)?;
    let cluster_size = Header::peek_cluster_size(&first)?;
    first.resize(file.len().min(cluster_size) as usize, 0);
    file.read_at(&mut first, 0)?;
    Header::parse(&first)
}

/// Makes the header that of the disk as a snapshot keeps it.
fn show_snapshot(file: &dyn Disk, header: &mut Header, id_or_name: &str) -> Result<()> {
    let snapshots = tables::snapshots(file, header)?;
    let snapshot = &snapshots[tables::find_snapshot(&snapshots, id_or_name)?];
    header.size = snapshot.disk_size.unwrap_or(header.size);
    header.l1_offset = snapshot.l1_offset;
    header.l1_len = snapshot.l1_len;
    Ok(())
}

impl Qcow2 {
    /// Opens an image over its file.
    pub(crate) fn open(file: Arc<dyn Disk>, options: OpenOptions) -> Result<Self> {
        let mut header = read_header(&*file)?;
        header.check_readable()?;
        if let Some(id_or_name) = &options.snapshot {
            show_snapshot(&*file, &mut header, id_or_name)?;
        }
        if header.size > i64::MAX as u64 {
            return Err(Error::corrupt("the size of the disk", 24, "at most 2^63 - 1", header.size));
        }
        let state = State::read(&*file, &header)?;
        let backing = match (&header.backing, options.backing) {
            (None, _) => Backing::None,
            (Some(_), Some(disk)) => Backing::Open(disk),
            (Some(backing), None) => Backing::NotOpened { name: backing.name.clone() },
        };
        let crypt = super::crypt::open(&file, &header, options.secret.as_ref())?;
        let data = match (header.has(INCOMPATIBLE_DATA_FILE), options.parts.into_iter().next()) {
            (false, _) => DataFile::Inside,
            (true, Some(disk)) => DataFile::Open(disk),
            (true, None) => DataFile::NotOpened { name: header.data_file.clone().unwrap_or_default() },
        };
        let read_only = if options.read_only || options.snapshot.is_some() || file.is_read_only() {
            Some(ReadOnly::Opened)
        } else if header.has(INCOMPATIBLE_CORRUPT) {
            Some(ReadOnly::Corrupt)
        } else {
            None
        };
        let slice_len = header.cluster_size().min(SLICE) as usize;
        Ok(Self {
            cache: Cache::new(slice_len, options.cache_bytes),
            unpacked: Unpacked::new(header.cluster_size()),
            tracks: AtomicBool::new(false),
            tracking: RwLock::new(()),
            state: RwLock::new(state),
            size: AtomicU64::new(header.size),
            file,
            header,
            backing,
            data,
            crypt,
            data_changed: AtomicBool::new(false),
            resizing: Mutex::default(),
            unlinked: RwLock::default(),
            damaged: AtomicBool::new(false),
            read_only,
        })
    }
}
