//! The bytes of data clusters: in the image file or in an external data file.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use vmwright_disk::{Disk, ErrorKind};

use super::Qcow2;
use super::alloc::Clusters;
use super::layout::{AUTOCLEAR_RAW_DATA_FILE, INCOMPATIBLE_DATA_FILE};
use super::state::{State, Writer};
use crate::error::Reason;
use crate::{Error, Result};

/// Where data clusters are.
pub(super) enum DataFile {
    /// In the image file.
    Inside,
    /// In a file of its own, each at its offset on the disk.
    Open(Arc<dyn Disk>),
    NotOpened {
        name: String,
    },
}

impl Qcow2 {
    /// Whether data is in a file of its own.
    pub(super) fn has_data_file(&self) -> bool {
        self.header.has(INCOMPATIBLE_DATA_FILE)
    }

    /// Whether the external data file shows the disk without this file.
    pub(super) fn is_raw_data(&self) -> bool {
        self.has_data_file() && self.header.autoclear & AUTOCLEAR_RAW_DATA_FILE != 0
    }

    /// The file that holds data clusters.
    pub(super) fn data_file(&self) -> Result<&Arc<dyn Disk>> {
        match &self.data {
            DataFile::Inside => Ok(&self.file),
            DataFile::Open(file) => Ok(file),
            DataFile::NotOpened { name } => Err(Reason::PartNotOpened { name: name.clone() }.into()),
        }
    }

    /// Reads data clusters.
    pub(super) fn read_data(&self, buf: &mut [u8], host: u64) -> Result<()> {
        match self.cipher()? {
            None => self.read_plain(buf, host),
            Some(cipher) => self.read_encrypted(cipher, buf, host),
        }
    }

    /// Reads data clusters as they stand in the file. It may lack the end of its last cluster: what is missing is
    /// zeros.
    pub(super) fn read_plain(&self, buf: &mut [u8], host: u64) -> Result<()> {
        let file = self.data_file()?;
        let there = file.len().saturating_sub(host).min(buf.len() as u64) as usize;
        let (present, missing) = buf.split_at_mut(there);
        missing.fill(0);
        if !present.is_empty() {
            file.read_at(present, host)?;
        }
        Ok(())
    }

    /// Writes into data clusters.
    pub(super) fn write_data(&self, data: &[u8], host: u64) -> Result<()> {
        match self.cipher()? {
            None => self.write_plain(data, host),
            Some(cipher) => self.write_encrypted(cipher, data, host),
        }
    }

    /// Writes into data clusters what shall stand in the file.
    pub(super) fn write_plain(&self, data: &[u8], host: u64) -> Result<()> {
        let file = self.data_file_until(host, data.len() as u64)?;
        Ok(file.write_at(data, host)?)
    }

    /// Makes a range of data clusters zeros.
    pub(super) fn zero_data(&self, host: u64, len: u64) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        if let Some(cipher) = self.cipher()? {
            return self.zero_encrypted(cipher, host, len);
        }
        let file = self.data_file_until(host, len)?;
        Ok(file.zero_at(host, len)?)
    }

    /// The file that holds data clusters, if it reaches so far; it is about to be changed.
    fn data_file_until(&self, host: u64, len: u64) -> Result<&Arc<dyn Disk>> {
        let file = self.data_file()?;
        if self.has_data_file() {
            self.data_changed.store(true, Ordering::Release);
            let end = host.saturating_add(len);
            if end > file.len() {
                return Err(Reason::DeviceFull { end }.into());
            }
        }
        Ok(file)
    }

    /// How many bytes of a cluster at `start` of the disk have a place: all but those past the end of a disk whose
    /// data file ends there, too.
    pub(super) fn room(&self, start: u64) -> u64 {
        let cluster_size = self.header.cluster_size();
        match self.has_data_file() {
            true => cluster_size.min(self.size().saturating_sub(start)),
            false => cluster_size,
        }
    }

    /// Makes an external data file reach the end of the disk.
    pub(super) fn extend_data_file(&self, len: u64) -> Result<()> {
        if !self.has_data_file() {
            return Ok(());
        }
        let file = self.data_file()?;
        if file.is_read_only() {
            return Err(Reason::ReadOnly { what: "the external data file" }.into());
        }
        if file.len() >= len {
            return Ok(());
        }
        self.data_changed.store(true, Ordering::Release);
        match file.set_len(len) {
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                Err(Reason::DeviceFull { end: len }.into())
            }
            result => Ok(result?),
        }
    }

    /// Finds places for 1 to `max` clusters of the disk from `start` on.
    pub(super) fn allocate_data(&self, writer: &mut Writer, start: u64, max: u64) -> Result<Clusters> {
        match self.has_data_file() {
            true => Ok(Clusters { host: start, count: max, fresh: false }),
            false => {
                let clusters = self.allocate(writer, max)?;
                // What is zeros in the file is something else when it is decrypted.
                Ok(Clusters { fresh: clusters.fresh && !self.is_encrypted(), ..clusters })
            }
        }
    }

    /// Makes data clusters durable, where they are in a file of their own.
    pub(super) fn flush_data(&self) -> Result<()> {
        if let DataFile::Open(file) = &self.data
            && self.data_changed.swap(false, Ordering::AcqRel)
        {
            file.flush().inspect_err(|_| self.data_changed.store(true, Ordering::Release))?;
        }
        Ok(())
    }

    /// Refuses to write data over tables, as a damaged image might ask for.
    pub(super) fn check_not_metadata(&self, state: &State, host: u64, len: u64) -> Result<()> {
        if self.has_data_file() {
            return Ok(());
        }
        let bits = self.header.cluster_bits;
        let mut clusters = host >> bits..=(host + len - 1) >> bits;
        match clusters.find(|cluster| state.writer.metadata.contains(cluster)) {
            Some(cluster) => {
                let expected = "no data where tables are";
                Err(Error::corrupt("a data cluster", cluster << bits, expected, host))
            }
            None => Ok(()),
        }
    }
}
