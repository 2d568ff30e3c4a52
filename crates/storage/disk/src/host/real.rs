use std::fs::{File, OpenOptions};
use std::io::{self, Seek};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{Access, FallocateFlags, OFlags, SeekFrom};

use super::{Conflict, FileKind, Handle, Host, LockMode, OpenMode, Region, Stat, holder, lock};

/// The host this process runs on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RealHost;

impl Host for RealHost {
    fn canonicalize(&self, path: &Path) -> io::Result<PathBuf> {
        path.canonicalize()
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn Handle>> {
        // Without NONBLOCK, opening a named pipe by mistake would wait for its other end.
        let mut options = OpenOptions::new();
        let create = matches!(mode, OpenMode::Create | OpenMode::CreatePrivate);
        options.read(true).write(mode != OpenMode::Read).create_new(create);
        if mode == OpenMode::CreatePrivate {
            options.mode(0o600);
        }
        options.custom_flags(OFlags::NONBLOCK.bits() as i32);
        Ok(Arc::new(RealHandle { file: options.open(path)? }))
    }

    fn user(&self) -> u32 {
        rustix::process::geteuid().as_raw()
    }

    fn identity(&self, path: &Path) -> io::Result<(u64, u64)> {
        let metadata = std::fs::metadata(path)?;
        Ok((metadata.dev(), metadata.ino()))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn can_create_in(&self, dir: &Path) -> bool {
        rustix::fs::access(dir, Access::WRITE_OK | Access::EXEC_OK).is_ok()
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        std::fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect()
    }

    fn scratch(&self, dir: &Path) -> io::Result<Arc<dyn Handle>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        let unnamed = options.clone().custom_flags(OFlags::TMPFILE.bits() as i32).open(dir);
        let file = match unnamed {
            Ok(file) => file,
            // Not every filesystem has unnamed files: then a name exists for a moment.
            Err(error) if is_unsupported(&error) || error.kind() == io::ErrorKind::IsADirectory => {
                static NEXT: AtomicU64 = AtomicU64::new(0);
                let number = NEXT.fetch_add(1, Ordering::Relaxed);
                let path = dir.join(format!(".vmwright-scratch-{}-{number}", std::process::id()));
                let file = options.create_new(true).open(&path)?;
                std::fs::remove_file(&path)?;
                file
            }
            Err(error) => return Err(error),
        };
        Ok(Arc::new(RealHandle { file }))
    }
}

#[derive(Debug)]
struct RealHandle {
    file: File,
}

impl Drop for RealHandle {
    /// Gives the locks back at once: a child between fork and exec still has the file open, and would keep
    /// them.
    fn drop(&mut self) {
        let _ = lock::release(&self.file);
    }
}

impl RealHandle {
    fn fallocate(&self, mode: FallocateFlags, offset: u64, len: u64) -> io::Result<()> {
        loop {
            match rustix::fs::fallocate(&self.file, mode | FallocateFlags::KEEP_SIZE, offset, len) {
                Err(rustix::io::Errno::INTR) => {}
                result => return Ok(result?),
            }
        }
    }

    fn is_block(&self) -> io::Result<bool> {
        Ok(self.file.metadata()?.file_type().is_block_device())
    }

    fn write_zeros(&self, offset: u64, len: u64) -> io::Result<()> {
        const ZEROS: &[u8] = &[0; 1 << 18];
        let mut done = 0;
        while done < len {
            let step = (len - done).min(ZEROS.len() as u64);
            self.file.write_all_at(&ZEROS[..step as usize], offset + done)?;
            done += step;
        }
        Ok(())
    }
}

/// Whether an error only says that the filesystem or device lacks an operation.
fn is_unsupported(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV | Errno::INVAL))
}

impl Handle for RealHandle {
    fn as_file(&self) -> Option<&File> {
        Some(&self.file)
    }

    fn stat(&self) -> io::Result<Stat> {
        let metadata = self.file.metadata()?;
        let kind = match metadata.file_type() {
            kind if kind.is_file() => FileKind::Regular,
            kind if kind.is_block_device() => FileKind::Block,
            _ => FileKind::Other,
        };
        let len = match kind {
            FileKind::Block => (&self.file).seek(io::SeekFrom::End(0))?,
            _ => metadata.len(),
        };
        let (device, inode) = (metadata.dev(), metadata.ino());
        Ok(Stat { device, inode, len, links: metadata.nlink(), owner: metadata.uid(), kind })
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        // Punching leaves no space allocated; on a device, it may only discard, so zeroing is asked for there.
        let mode = match self.is_block()? {
            true => FallocateFlags::ZERO_RANGE,
            false => FallocateFlags::PUNCH_HOLE,
        };
        match self.fallocate(mode, offset, len) {
            Err(error) if is_unsupported(&error) => self.write_zeros(offset, len),
            result => result,
        }
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        match self.fallocate(FallocateFlags::PUNCH_HOLE, offset, len) {
            Err(error) if is_unsupported(&error) => Ok(()),
            result => result,
        }
    }

    fn reserve(&self, offset: u64, len: u64) -> io::Result<()> {
        self.fallocate(FallocateFlags::empty(), offset, len).map_err(|error| match is_unsupported(&error) {
            true => io::Error::new(io::ErrorKind::Unsupported, error),
            false => error,
        })
    }

    fn free_space(&self) -> io::Result<u64> {
        let stat = rustix::fs::fstatvfs(&self.file)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn copies_on_write(&self) -> bool {
        // From linux/magic.h; these write in place and never share extents.
        const EXT: i64 = 0xef53;
        const TMPFS: i64 = 0x0102_1994;
        const FAT: i64 = 0x4d44;
        !rustix::fs::fstatfs(&self.file).is_ok_and(|stat| [EXT, TMPFS, FAT].contains(&stat.f_type))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync(&self, metadata: bool) -> io::Result<()> {
        if metadata { self.file.sync_all() } else { self.file.sync_data() }
    }

    fn region_at(&self, offset: u64) -> io::Result<Region> {
        match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
            Ok(data) if data > offset => Ok(Region { hole: true, end: data }),
            Ok(_) => match rustix::fs::seek(&self.file, SeekFrom::Hole(offset)) {
                Ok(hole) if hole > offset => Ok(Region { hole: false, end: hole }),
                // Somebody punched it in between; calling it data is always right.
                Ok(_) | Err(rustix::io::Errno::INVAL) => Ok(Region { hole: false, end: offset + 1 }),
                Err(error) => Err(error.into()),
            },
            Err(rustix::io::Errno::NXIO) => Ok(Region { hole: true, end: u64::MAX }),
            Err(rustix::io::Errno::INVAL) => Ok(Region { hole: false, end: u64::MAX }),
            Err(error) => Err(error.into()),
        }
    }

    fn lock(&self, mode: LockMode) -> io::Result<Result<(), Conflict>> {
        if lock::take(&self.file, mode)? {
            return Ok(Ok(()));
        }
        Ok(Err(Conflict { holder: self.stat().ok().and_then(|stat| holder::find(&stat)) }))
    }
}
