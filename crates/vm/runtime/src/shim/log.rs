//! Logs that stay within bounds, whatever a guest prints.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A log and its predecessor are each this long at most.
pub const MAX_LOG: u64 = 16 << 20;

/// A log that is renamed to `NAME.1` when it is full.
#[derive(Debug)]
pub(super) struct RotatingLog {
    path: PathBuf,
    file: File,
    len: u64,
    max: u64,
}

impl RotatingLog {
    pub(super) fn open(path: &Path, max: u64) -> io::Result<Self> {
        let file = append(path)?;
        let len = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, len, max })
    }

    /// Appends bytes, beginning a new file as often as needed.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.len >= self.max {
                self.rotate()?;
            }
            let room = usize::try_from(self.max - self.len).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(bytes.len().min(room));
            self.file.write_all(now)?;
            self.len += now.len() as u64;
            bytes = later;
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        std::fs::rename(&self.path, previous(&self.path))?;
        self.file = append(&self.path)?;
        self.len = 0;
        Ok(())
    }
}

/// Where a log's predecessor is.
pub(crate) fn previous(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// What the shim has to say, with the time in seconds since 1970.
#[derive(Debug)]
pub(super) struct Log(std::cell::RefCell<RotatingLog>);

impl Log {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(std::cell::RefCell::new(RotatingLog::open(path, MAX_LOG)?)))
    }

    /// Writes a line. That a log cannot be written must not end a VM.
    pub(super) fn line(&self, text: &str) {
        let _ = self.0.borrow_mut().write(format!("{} {text}\n", super::state::now()).as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_and_its_predecessor_never_grow_beyond_their_bound() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut log = RotatingLog::open(&path, 100).unwrap();
        for step in 0..1000u32 {
            log.write(format!("line {step}\n").as_bytes()).unwrap();
            assert!(std::fs::metadata(&path).unwrap().len() <= 100);
        }
        log.write(&[b'x'; 1234]).unwrap();
        let mut files: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|f| f.unwrap().path()).collect();
        files.sort();
        assert_eq!(files, [path.clone(), previous(&path)]);
        assert!(files.iter().all(|file| std::fs::metadata(file).unwrap().len() <= 100));
    }

    #[test]
    fn rotation_loses_nothing_of_the_last_two_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut log = RotatingLog::open(&path, 10).unwrap();
        log.write(b"0123456789abcdefghij").unwrap();
        drop(log);
        let mut log = RotatingLog::open(&path, 10).unwrap();
        log.write(b"KLM").unwrap();
        assert_eq!(std::fs::read(previous(&path)).unwrap(), b"abcdefghij");
        assert_eq!(std::fs::read(&path).unwrap(), b"KLM");
    }
}
