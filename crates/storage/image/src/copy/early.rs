use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use vmwright_disk::{Disk, Extent, Result};

/// The host is asked to write once so much has been written.
const STEP: u64 = 64 << 20;

/// How often it is looked whether that is so.
const NAP: Duration = Duration::from_millis(5);

/// A new file that has no name yet: durable all at once when it gets its name, so that a flush in between has
/// nothing to achieve.
pub(crate) struct Unnamed {
    file: Arc<dyn Disk>,
    written: AtomicU64,
}

impl Unnamed {
    pub(crate) fn new(file: Arc<dyn Disk>) -> Self {
        Self { file, written: AtomicU64::new(0) }
    }
}

/// Does `work`, while the host writes what it wrote to these files: the medium is not idle until the end then.
pub(crate) fn written_early<T, E: From<crate::Error>>(
    files: &[Arc<Unnamed>],
    work: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| write_early(files, &done));
        let guard = OnDrop(&done);
        let result = work();
        drop(guard);
        writing.thread().unpark();
        // The host tells of a failure only once, so that the sync at the end would know nothing of this one.
        let written = writing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let result = result?;
        written.map_err(crate::Error::from)?;
        Ok(result)
    })
}

fn write_early(files: &[Arc<Unnamed>], done: &AtomicBool) -> Result<()> {
    let written = || files.iter().map(|file| file.written.load(Ordering::Relaxed)).sum::<u64>();
    let mut next = STEP;
    while !done.load(Ordering::Relaxed) {
        if written() < next {
            std::thread::park_timeout(NAP);
            continue;
        }
        next = written() + STEP;
        files.iter().try_for_each(|file| file.file.flush())?;
    }
    Ok(())
}

/// Ends the other thread also where this one panics.
struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Disk for Unnamed {
    fn len(&self) -> u64 {
        self.file.len()
    }

    fn is_read_only(&self) -> bool {
        self.file.is_read_only()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.file.read_at(buf, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        self.written.fetch_add(data.len() as u64, Ordering::Relaxed);
        self.file.write_at(data, offset)
    }

    fn zero_at(&self, offset: u64, len: u64) -> Result<()> {
        self.file.zero_at(offset, len)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.file.discard(offset, len)
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.file.set_len(len)
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        self.file.extent_at(offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmwright_disk::MemDisk;

    /// Cannot be made durable.
    struct Broken(MemDisk);

    impl Disk for Broken {
        fn len(&self) -> u64 {
            self.0.len()
        }

        fn is_read_only(&self) -> bool {
            false
        }

        fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
            self.0.read_at(buf, offset)
        }

        fn write_at(&self, _data: &[u8], _offset: u64) -> Result<()> {
            Ok(())
        }

        fn zero_at(&self, offset: u64, len: u64) -> Result<()> {
            self.0.zero_at(offset, len)
        }

        fn discard(&self, offset: u64, len: u64) -> Result<()> {
            self.0.discard(offset, len)
        }

        fn set_len(&self, len: u64) -> Result<()> {
            self.0.set_len(len)
        }

        fn flush(&self) -> Result<()> {
            Err(vmwright_disk::Error::host("sync", "disk".as_ref(), std::io::ErrorKind::BrokenPipe.into()))
        }

        fn extent_at(&self, offset: u64) -> Result<Extent> {
            self.0.extent_at(offset)
        }
    }

    #[test]
    fn a_failure_of_early_writing_fails_the_work() {
        let files = [Arc::new(Unnamed::new(Arc::new(Broken(MemDisk::new(4096)))))];
        // Too little to be written early.
        written_early::<(), crate::Error>(&files, || Ok(files[0].write_at(&[1; 4096], 0)?)).unwrap();
        let error = written_early::<(), crate::Error>(&files, || {
            let data = vec![1; STEP as usize];
            files[0].write_at(&data, 0)?;
            std::thread::sleep(NAP * 20);
            Ok(())
        });
        assert_eq!(error.unwrap_err().kind(), vmwright_disk::ErrorKind::Io);
    }
}
