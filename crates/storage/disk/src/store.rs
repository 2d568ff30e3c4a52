use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::host::{Handle, Host, RealHost};

/// How much changed data is kept in memory before the rest goes to a file.
const MEMORY: u64 = 8 << 20;

/// Bytes that an overlay holds, at positions handed out in rising order.
///
/// The first 8 MiB are in memory, what follows is in a file without a name:
///
/// ```text
/// position  0 ………… 8 MiB ………………… end
///           [memory][scratch file    ]
/// ```
#[derive(Debug)]
pub(crate) struct Store {
    memory: Vec<u8>,
    memory_limit: u64,
    end: u64,
    file: Option<Arc<dyn Handle>>,
    scratch: Scratch,
}

/// Where a store makes its file, once it needs one.
#[derive(Debug, Clone)]
pub(crate) struct Scratch {
    pub(crate) host: Arc<dyn Host>,
    pub(crate) dirs: Vec<PathBuf>,
}

impl Scratch {
    /// Beside an image where that is possible, else where the host keeps large temporary files.
    pub(crate) fn beside(host: Arc<dyn Host>, dir: Option<&Path>) -> Self {
        let system = [PathBuf::from("/var/tmp"), std::env::temp_dir()];
        Self { host, dirs: dir.map(Path::to_owned).into_iter().chain(system).collect() }
    }

    fn create(&self) -> io::Result<Arc<dyn Handle>> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for dir in &self.dirs {
            match self.host.scratch(dir) {
                Ok(file) => return Ok(file),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::beside(Arc::new(RealHost), None)
    }
}

impl Store {
    pub(crate) fn new(scratch: Scratch) -> Self {
        Self { memory: Vec::new(), memory_limit: MEMORY, end: 0, file: None, scratch }
    }

    /// A store whose positions are the offsets in a file that exists already; it is only read.
    pub(crate) fn of_file(file: Arc<dyn Handle>) -> Self {
        Self { memory: Vec::new(), memory_limit: 0, end: 0, file: Some(file), scratch: Scratch::default() }
    }

    /// Hands out the next `len` bytes, which hold nothing in particular until written.
    pub(crate) fn allocate(&mut self, len: u64) -> io::Result<u64> {
        let position = self.end;
        let end = position.checked_add(len).ok_or(io::ErrorKind::StorageFull)?;
        if end > self.memory_limit && self.file.is_none() {
            self.file = Some(self.scratch.create()?);
        }
        self.memory.resize(end.min(self.memory_limit) as usize, 0);
        self.end = end;
        Ok(position)
    }

    pub(crate) fn write(&mut self, position: u64, data: &[u8]) -> io::Result<()> {
        let in_memory = self.split(position, data.len());
        if in_memory > 0 {
            let at = position as usize;
            self.memory[at..at + in_memory].copy_from_slice(&data[..in_memory]);
        }
        match &self.file {
            Some(file) if in_memory < data.len() => {
                file.write_at(&data[in_memory..], self.file_offset(position, in_memory))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn read(&self, position: u64, buf: &mut [u8]) -> io::Result<()> {
        let in_memory = self.split(position, buf.len());
        if in_memory > 0 {
            let at = position as usize;
            buf[..in_memory].copy_from_slice(&self.memory[at..at + in_memory]);
        }
        match &self.file {
            Some(file) if in_memory < buf.len() => {
                file.read_at(&mut buf[in_memory..], self.file_offset(position, in_memory))
            }
            _ => Ok(()),
        }
    }

    /// How many of `len` bytes from `position` on are in memory.
    fn split(&self, position: u64, len: usize) -> usize {
        self.memory_limit.saturating_sub(position).min(len as u64) as usize
    }

    fn file_offset(&self, position: u64, in_memory: usize) -> u64 {
        position + in_memory as u64 - self.memory_limit
    }

    #[cfg(test)]
    pub(crate) fn memory_used(&self) -> usize {
        self.memory.capacity()
    }
}
