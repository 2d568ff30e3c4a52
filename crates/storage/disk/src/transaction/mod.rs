mod changes;
mod commit;
#[cfg(test)]
mod laws;
mod options;
mod plan;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::file::Sharing;
use crate::host::{Host, OpenMode};
use crate::recover::{recover_file, view_pending};
use crate::redo::Places;
use crate::store::Scratch;
use crate::{Disk, Error, FreshFile, HostFile, Overlay, Recovery, Result};

pub use options::{TransactionOptions, WriteMode};
pub use plan::{FilePlan, Plan};

/// What a disk of a [`Transaction`] is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading alone.
    Read,
    /// Reading and changing.
    Write,
}

/// A change of one or several host files that happens wholly or not at all, power failures included.
///
/// ```text
/// begin ─ open … read, write ─┬─ commit: redo written, synced and named │ applied, synced │ redo void
///                             └─ drop: nothing was changed
/// ```
///
/// Until [`Transaction::commit`] changes are kept in an [`Overlay`] above each host file and touch none. Each file
/// is locked from being opened here until its disk and the transaction are both dropped. A change that was
/// interrupted earlier is completed by opening the file for writing, and shows through for reading.
pub struct Transaction {
    options: TransactionOptions,
    members: Mutex<Vec<Member>>,
}

/// One host file.
#[derive(Clone)]
struct Member {
    file: Arc<HostFile>,
    disk: Arc<dyn Disk>,
    /// The changes, unless it is read only or written in place.
    overlay: Option<Arc<Overlay>>,
}

impl Transaction {
    /// Begins a transaction that has no files yet.
    pub fn begin(options: TransactionOptions) -> Self {
        Self { options, members: Mutex::default() }
    }

    /// Opens a host file as a disk; the same file opened again is the same disk.
    ///
    /// A file opened for reading cannot be opened for writing afterwards in the same transaction.
    pub fn open(&self, path: &Path, access: Access) -> Result<Arc<dyn Disk>> {
        let host = self.options.host();
        let path = &host.canonicalize(path).map_err(|source| Error::host("open", path, source))?;
        let mut members = self.members();
        let (device, inode) = host.identity(path).map_err(|source| Error::host("stat", path, source))?;
        let same = |member: &&Member| (member.file.id().device, member.file.id().inode) == (device, inode);
        if let Some(member) = members.iter().find(same) {
            return match (access, member.file.is_read_only()) {
                (Access::Write, true) => Err(Error::misuse(path, "open for reading already")),
                _ => Ok(member.disk.clone()),
            };
        }
        let member = match access {
            Access::Read => self.open_to_read(&*host, path)?,
            Access::Write => self.open_to_write(&host, path)?,
        };
        members.push(member.clone());
        Ok(member.disk)
    }

    /// Begins a file that is to take the place of one that is open for writing here, which nobody else can use
    /// meanwhile: made out of it, such as the same disk without its holes.
    pub fn replace(&self, path: &Path) -> Result<FreshFile> {
        let host = self.options.host();
        let path = &host.canonicalize(path).map_err(|source| Error::host("open", path, source))?;
        let (device, inode) = host.identity(path).map_err(|source| Error::host("stat", path, source))?;
        let members = self.members();
        let mut files = members.iter().map(|member| &member.file).filter(|file| !file.is_read_only());
        match files.find(|file| (file.id().device, file.id().inode) == (device, inode)) {
            Some(file) => FreshFile::replacing(file.clone()),
            None => Err(Error::misuse(path, "not open for writing")),
        }
    }

    fn open_to_read(&self, host: &dyn Host, path: &Path) -> Result<Member> {
        let file = Arc::new(HostFile::open_on(host, path, OpenMode::Read, self.options.sharing)?);
        let disk: Arc<dyn Disk> = match view_pending(&self.places(host), &file)? {
            Some(view) => Arc::new(view),
            None => file.clone(),
        };
        Ok(Member { file, disk, overlay: None })
    }

    fn open_to_write(&self, host: &Arc<dyn Host>, path: &Path) -> Result<Member> {
        if self.options.sharing == Sharing::Forced {
            return Err(Error::misuse(path, "opened without locks, which is for reading alone"));
        }
        let file = Arc::new(HostFile::open_on(&**host, path, OpenMode::Write, Sharing::Locked)?);
        let places = self.places(&**host);
        recover_file(&places, &file, Recovery::Auto)?;
        if self.options.mode == WriteMode::Ordered {
            return Ok(Member { disk: file.clone(), file, overlay: None });
        }
        places.name_for(&file)?;
        let scratch = Scratch::beside(host.clone(), path.parent());
        let overlay = Arc::new(Overlay::with(file.clone(), scratch, file.is_block_device()));
        Ok(Member { file, disk: overlay.clone(), overlay: Some(overlay) })
    }

    fn places<'a>(&'a self, host: &'a dyn Host) -> Places<'a> {
        Places { host, redo_dir: self.options.redo_dir.as_deref() }
    }

    fn members(&self) -> MutexGuard<'_, Vec<Member>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what [`Transaction::commit`] would change now. Empty in ordered mode, where changes are made at once.
    pub fn plan(&self) -> Result<Plan> {
        plan::plan(&self.members())
    }

    /// Makes all changes durable, in all files or in none, and answers what they were.
    ///
    /// The disks of the transaction can be read afterwards but not changed. An error whose message does not say
    /// otherwise means that nothing was changed.
    pub fn commit(self) -> Result<Plan> {
        let members = self.members().clone();
        commit::commit(&self.options, &members)
    }
}

impl Drop for Transaction {
    /// Writes nothing: it only makes the disks that outlive the transaction refuse changes that would be lost.
    fn drop(&mut self) {
        for overlay in self.members().iter().filter_map(|member| member.overlay.as_ref()) {
            overlay.seal();
        }
    }
}
