//! Files that the host writes and reads.

use std::ffi::{CString, OsStr};
use std::fs::{File, FileTimes, Metadata, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use vmwright_agent_proto::{FileInfo, MAX_DATA, Message, Put, Session, StreamId};

use crate::sys;
use crate::task::{Failed, failed};

/// Permission, set-id and sticky bits.
const MODE_BITS: u32 = 0o7777;
const DEFAULT_MODE: u32 = 0o644;

/// A file on its way in, under a temporary name until it is complete.
pub(crate) struct Writing {
    id: StreamId,
    file: File,
    temporary: Option<PathBuf>,
    path: PathBuf,
    replaced: Option<Metadata>,
    put: Put,
}

impl Writing {
    pub(crate) fn start(id: StreamId, put: Put) -> Result<Self, Failed> {
        let error = |error| failed(format!("cannot write {}", put.path.escape_ascii()), &error);
        let path = target(Path::new(OsStr::from_bytes(&put.path))).map_err(error)?;
        let replaced = match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => {
                return Err(error(io::Error::from_raw_os_error(sys::EISDIR)));
            }
            Ok(metadata) if !metadata.is_file() => {
                return Err(error(io::Error::from_raw_os_error(sys::EINVAL)));
            }
            Ok(metadata) => Some(metadata),
            Err(found) if found.kind() == io::ErrorKind::NotFound => None,
            Err(found) => return Err(error(found)),
        };
        let (file, temporary) = create_beside(&path, id).map_err(error)?;
        Ok(Self { id, file, temporary: Some(temporary), path, replaced, put })
    }

    /// Writes a piece of the content.
    pub(crate) fn data(&mut self, bytes: &[u8], session: &mut Session) -> Result<(), Failed> {
        session.consumed(self.id, bytes.len());
        self.file.write_all(bytes).map_err(|error| self.error(&error))
    }

    /// Gives the complete file its attributes and its name.
    pub(crate) fn finish(mut self) -> Result<(), Failed> {
        self.publish().map_err(|error| self.error(&error))
    }

    fn publish(&mut self) -> io::Result<()> {
        let old = self.replaced.as_ref();
        if old.is_some() {
            let path = CString::new(self.path.as_os_str().as_bytes())?;
            sys::copy_xattrs(&path, &self.file)?;
        }
        let owner = self.put.owner.or(old.map(|old| (old.uid(), old.gid())));
        if let Some((uid, gid)) = owner {
            fchown(&self.file, Some(uid), Some(gid))?;
        }
        // After the owner, whose change clears the set-id bits.
        let mode = self.put.mode.map(u32::from).or(old.map(Metadata::mode)).unwrap_or(DEFAULT_MODE);
        self.file.set_permissions(Permissions::from_mode(mode & MODE_BITS))?;
        if let Some(modified) = self.put.modified {
            self.file.set_times(FileTimes::new().set_modified(system_time(modified)?))?;
        }
        if let Some(temporary) = &self.temporary {
            std::fs::rename(temporary, &self.path)?;
        }
        self.temporary = None;
        Ok(())
    }

    fn error(&self, error: &io::Error) -> Failed {
        failed(format!("cannot write {}", self.put.path.escape_ascii()), error)
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = std::fs::remove_file(temporary);
        }
    }
}

/// Where the content goes: through symbolic links, to a name that may not exist yet.
fn target(path: &Path) -> io::Result<PathBuf> {
    if !path.is_absolute() {
        return Err(io::Error::from_raw_os_error(sys::EINVAL));
    }
    match std::fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(path.to_owned()),
        other => other,
    }
}

fn create_beside(path: &Path, id: StreamId) -> io::Result<(File, PathBuf)> {
    let directory = path.parent().ok_or_else(|| io::Error::from_raw_os_error(sys::EISDIR))?;
    let mut attempt = 0u32;
    loop {
        let name = format!(".vmwright-put-{}-{id}-{attempt}", std::process::id());
        let temporary = directory.join(name);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary);
        match file {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && attempt < 100 => attempt += 1,
            other => return Ok((other?, temporary)),
        }
    }
}

fn system_time((seconds, nanoseconds): (i64, u32)) -> io::Result<SystemTime> {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let epoch = SystemTime::UNIX_EPOCH;
    let time = if seconds < 0 { epoch.checked_sub(whole) } else { epoch.checked_add(whole) };
    time.and_then(|time| time.checked_add(Duration::from_nanos(nanoseconds.into())))
        .ok_or_else(|| io::Error::from_raw_os_error(sys::EINVAL))
}

/// A file on its way out.
pub(crate) struct Reading {
    id: StreamId,
    file: File,
    path: Vec<u8>,
}

impl Reading {
    pub(crate) fn start(id: StreamId, path: &[u8], session: &mut Session) -> Result<Self, Failed> {
        let error = |error| failed(format!("cannot read {}", path.escape_ascii()), &error);
        // A FIFO or a device must not hold the agent up.
        let flags = sys::O_NONBLOCK | sys::O_NOCTTY;
        let name = Path::new(OsStr::from_bytes(path));
        let file = OpenOptions::new().read(true).custom_flags(flags).open(name).map_err(error)?;
        let metadata = file.metadata().map_err(error)?;
        if metadata.is_dir() {
            return Err(error(io::Error::from_raw_os_error(sys::EISDIR)));
        }
        if !metadata.is_file() {
            return Err(error(io::Error::from_raw_os_error(sys::EINVAL)));
        }
        let info = FileInfo {
            size: metadata.size(),
            mode: (metadata.mode() & MODE_BITS) as u16,
            uid: metadata.uid(),
            gid: metadata.gid(),
            modified: (metadata.mtime(), metadata.mtime_nsec() as u32),
        };
        // The stream is open, as the host has just opened it.
        let _ = session.send(id, Message::File(info));
        Ok(Self { id, file, path: path.to_vec() })
    }

    /// Sends what the host takes; true at the end of the file.
    pub(crate) fn pump(&mut self, session: &mut Session) -> Result<bool, Failed> {
        let mut buf = [0; MAX_DATA];
        loop {
            let room = session.sendable(self.id).min(buf.len());
            if room == 0 {
                return Ok(false);
            }
            match self.file.read(&mut buf[..room]) {
                Ok(0) => return Ok(true),
                Ok(len) => {
                    session.send_data(self.id, &buf[..len]);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    return Err(failed(format!("cannot read {}", self.path.escape_ascii()), &error));
                }
            }
        }
    }
}
