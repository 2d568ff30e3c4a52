//! Which host files this process has open, so that the host can copy between them itself.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

use rustix::io::Errno;

use crate::host::Handle;
use crate::{Disk, Error, FileId, HostFile, Result};

type Handles = HashMap<FileId, Weak<dyn Handle>>;

static OPENED: LazyLock<Mutex<Handles>> = LazyLock::new(Mutex::default);

/// Notes a file of the real host.
pub(crate) fn note(id: FileId, handle: &Arc<dyn Handle>) {
    if handle.as_file().is_none() {
        return;
    }
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    opened.retain(|_, handle| handle.strong_count() > 0);
    opened.insert(id, Arc::downgrade(handle));
}

fn find(id: FileId) -> Option<Arc<dyn Handle>> {
    OPENED.lock().unwrap_or_else(PoisonError::into_inner).get(&id)?.upgrade()
}

impl HostFile {
    /// Lets this file share all of its content with `source`, a file that this process has open, where the host's
    /// filesystem can do that; answers whether it can. The length becomes that of `source`.
    pub fn share_content(&self, source: FileId) -> Result<bool> {
        self.check_change()?;
        let Some((from, to)) = find(source).zip(self.handle().as_file()) else { return Ok(false) };
        let Some(from) = from.as_file() else { return Ok(false) };
        match rustix::fs::ioctl_ficlone(to, from) {
            Ok(()) => {}
            Err(error) if cannot(error) => return Ok(false),
            Err(error) => return Err(Error::host("share content with", self.path(), error.into())),
        }
        let len = to.metadata().map_err(|source| Error::host("stat", self.path(), source))?.len();
        self.set_len(len)?;
        Ok(true)
    }

    /// Lets the host copy a range of `source`, a file that this process has open, to `offset` of this one; answers how
    /// many bytes it copied from the beginning of the range, none where it cannot.
    pub fn copy_from(&self, offset: u64, source: FileId, source_offset: u64, len: u64) -> Result<u64> {
        self.check_change()?;
        crate::check_range(offset, len, self.len())?;
        let Some((from, to)) = find(source).zip(self.handle().as_file()) else { return Ok(0) };
        let Some(from) = from.as_file() else { return Ok(0) };
        let (mut at, mut target, mut done) = (source_offset, offset, 0);
        while done < len {
            let step = usize::try_from(len - done).unwrap_or(usize::MAX);
            match rustix::fs::copy_file_range(from, Some(&mut at), to, Some(&mut target), step) {
                // The source is shorter than it was.
                Ok(0) => break,
                Ok(count) => done += count as u64,
                Err(Errno::INTR) => {}
                Err(error) if cannot(error) => break,
                Err(error) => return Err(Error::host("copy to", self.path(), error.into())),
            }
        }
        Ok(done)
    }

    fn check_change(&self) -> Result<()> {
        match self.is_read_only() {
            true => Err(Error::read_only("a host file opened for reading")),
            false => Ok(()),
        }
    }
}

/// Whether the host only says that it cannot do this here, or not with these ranges.
fn cannot(error: Errno) -> bool {
    let unsupported = [Errno::OPNOTSUPP, Errno::NOSYS, Errno::XDEV, Errno::INVAL, Errno::NOTTY, Errno::PERM];
    unsupported.contains(&error) || io::Error::from(error).kind() == io::ErrorKind::Unsupported
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_copies_between_files_that_are_open() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let bytes: Vec<u8> = (0..300_000u32).map(|index| (index / 7) as u8).collect();
        std::fs::write(&from, &bytes).unwrap();
        let source = HostFile::open(&from, true).unwrap();
        let target = HostFile::create(&to, 400_000).unwrap();
        let count = target.copy_from(50_000, source.id(), 1000, 200_000).unwrap();
        let mut found = vec![0; count as usize];
        target.read_at(&mut found, 50_000).unwrap();
        assert!(found == bytes[1000..][..count as usize]);
        assert_eq!(target.len(), 400_000);
        // What is not open is not known, and nothing is written past the end.
        let id = source.id();
        assert!(target.copy_from(399_999, id, 0, 2).is_err());
        drop(source);
        assert_eq!(target.copy_from(0, id, 0, 100).unwrap(), 0);
        assert!(!target.share_content(id).unwrap());
    }

    #[test]
    fn content_is_shared_or_nothing_is_changed() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        std::fs::write(&from, [7; 100_000]).unwrap();
        let source = HostFile::open(&from, true).unwrap();
        let target = HostFile::create(&to, 8192).unwrap();
        let shared = target.share_content(source.id()).unwrap();
        assert_eq!(target.len(), if shared { 100_000 } else { 8192 });
        let mut byte = [1];
        target.read_at(&mut byte, 5).unwrap();
        assert_eq!(byte[0], if shared { 7 } else { 0 });
        let read_only = HostFile::open(&from, true).unwrap();
        assert!(read_only.share_content(source.id()).is_err());
    }
}
