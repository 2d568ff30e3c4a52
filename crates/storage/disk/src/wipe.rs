use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::host::{Host, OpenMode, RealHost};
use crate::redo::Places;
use crate::{Disk, Error, HostFile, Result, Sharing};

/// Destroys the content of a host file, then the file.
///
/// ```text
/// locked ─ overwritten ─ synced ─ cut to nothing ─ synced ─ unlinked ─ folder synced
/// ```
///
/// What is overwritten are the blocks that the file has now. On a filesystem or a device that writes to new places
/// (btrfs, XFS with reflinks, ZFS, snapshots of any kind, SSDs) the old blocks may live on out of reach, and nobody who
/// only has the file can do anything about that: see [`Wipe::may_leave_copies`]. Where that matters, the content should
/// have been encrypted from the beginning, so that destroying the keys is enough.
#[derive(Debug)]
pub struct Wipe {
    file: Arc<HostFile>,
    path: PathBuf,
}

/// How many bytes are overwritten at a time.
const STEP: u64 = 1 << 20;

impl Wipe {
    /// Opens and locks a file that is to be destroyed, and changes nothing.
    ///
    /// A file in use is refused, and so are a file that has further names unless `even_linked` says so, a device, and a
    /// file of which an interrupted change is kept in a redo file.
    pub fn begin(path: &Path, even_linked: bool) -> Result<Self> {
        let resolved = path.canonicalize().map_err(|source| Error::host("resolve", path, source))?;
        let file = Arc::new(HostFile::open_on(&RealHost, &resolved, OpenMode::Write, Sharing::Locked)?);
        let stat = file.stat()?;
        if file.is_block_device() {
            return Err(Error::misuse(path, "a device and no file that could be removed"));
        }
        if stat.links > 1 && !even_linked {
            return Err(Error::misuse(path, "known by further names, which would lose their content too"));
        }
        let places = Places { host: &RealHost, redo_dir: None };
        if !matches!(places.find(&resolved, &stat)?, crate::redo::Found::Nothing) {
            let what =
                "subject to an interrupted change, whose redo file holds content too: recover it first";
            return Err(Error::misuse(path, what));
        }
        Ok(Self { file, path: resolved })
    }

    /// The file, to destroy in advance what matters most.
    pub fn file(&self) -> Arc<HostFile> {
        self.file.clone()
    }

    /// Where the file is, symbolic links resolved.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the filesystem may write to new places, so that overwriting leaves the old ones as they are.
    ///
    /// False says nothing about the device beneath.
    pub fn may_leave_copies(&self) -> bool {
        self.file.copies_on_write()
    }

    /// How many bytes [`Wipe::overwrite`] will overwrite.
    pub fn bytes(&self) -> Result<u64> {
        let mut sum = 0;
        self.each_extent(&mut |_, len| {
            sum += len;
            Ok(())
        })?;
        Ok(sum)
    }

    /// Overwrites all that is not a hole by what `fill` puts into a buffer for an offset, and makes that durable;
    /// `done` is told of the bytes of each step.
    pub fn overwrite(&self, fill: &dyn Fn(&mut [u8], u64), done: &dyn Fn(u64)) -> Result<()> {
        let mut buffer = vec![0; STEP as usize];
        self.each_extent(&mut |start, len| {
            let mut at = start;
            while at < start + len {
                let part = &mut buffer[..(start + len - at).min(STEP) as usize];
                fill(part, at);
                self.file.write_at(part, at)?;
                at += part.len() as u64;
                done(part.len() as u64);
            }
            Ok(())
        })?;
        self.file.flush()
    }

    fn each_extent(&self, visit: &mut dyn FnMut(u64, u64) -> Result<()>) -> Result<()> {
        let mut at = 0;
        while at < self.file.len() {
            let extent = self.file.extent_at(at)?;
            if !extent.is_zero() {
                visit(extent.start, extent.len)?;
            }
            at = extent.end();
        }
        Ok(())
    }

    /// Cuts the file to nothing and removes it, each durably. A name that stands for another file by now stays.
    pub fn remove(self) -> Result<()> {
        self.file.set_len(0)?;
        self.file.flush()?;
        let fail = |action| {
            let path = &self.path;
            move |source| Error::host(action, path, source)
        };
        let id = self.file.id();
        if RealHost.identity(&self.path).map_err(fail("stat"))? != (id.device, id.inode) {
            return Err(Error::replaced(&self.path));
        }
        RealHost.unlink(&self.path).map_err(fail("remove"))?;
        let dir = self.path.parent().unwrap_or(Path::new("/"));
        RealHost.sync_dir(dir).map_err(|source| Error::host("sync", dir, source))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Mutex;

    use super::*;
    use crate::ErrorKind;

    fn sample() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let file = HostFile::create(&path, 4 << 20).unwrap();
        file.write_at(&vec![7; 1_100_000], 1 << 20).unwrap();
        (dir, path)
    }

    #[test]
    fn data_is_overwritten_holes_are_not_and_the_file_is_gone() {
        let (dir, path) = sample();
        // A second name shows what becomes of the content.
        let witness = dir.path().join("witness");
        fs::hard_link(&path, &witness).unwrap();
        assert_eq!(Wipe::begin(&path, false).unwrap_err().kind(), ErrorKind::InvalidInput);
        let wipe = Wipe::begin(&path, true).unwrap();
        let (expected, done) = (wipe.bytes().unwrap(), Mutex::new(0));
        wipe.overwrite(&|part, _| part.fill(9), &|bytes| *done.lock().unwrap() += bytes).unwrap();
        assert_eq!(*done.lock().unwrap(), expected);
        assert!((1_100_000..1_200_000).contains(&expected));
        let bytes = fs::read(&witness).unwrap();
        assert!(!bytes.contains(&7) && bytes.iter().filter(|byte| **byte == 9).count() as u64 == expected);
        wipe.remove().unwrap();
        assert!(!path.exists());
        assert_eq!(fs::metadata(&witness).unwrap().len(), 0);
    }

    #[test]
    fn a_file_in_use_is_refused_and_stays() {
        let (_dir, path) = sample();
        let user = HostFile::open(&path, true).unwrap();
        assert_eq!(Wipe::begin(&path, true).unwrap_err().kind(), ErrorKind::InUse);
        drop(user);
        Wipe::begin(&path, false).unwrap();
        assert_eq!(fs::read(&path).unwrap()[1 << 20], 7);
    }

    #[test]
    fn a_name_that_stands_for_another_file_by_now_stays() {
        let (dir, path) = sample();
        let wipe = Wipe::begin(&path, false).unwrap();
        fs::rename(&path, dir.path().join("moved")).unwrap();
        fs::write(&path, b"theirs").unwrap();
        assert_eq!(wipe.remove().unwrap_err().kind(), ErrorKind::InUse);
        assert_eq!(fs::read(&path).unwrap(), b"theirs");
    }

    #[test]
    fn a_file_with_an_interrupted_change_is_refused() {
        let (dir, path) = sample();
        fs::write(dir.path().join("disk.vmwright-redo"), b"not even a redo").unwrap();
        assert!(Wipe::begin(&path, false).is_err());
        assert_eq!(fs::read(&path).unwrap()[1 << 20], 7);
    }
}
