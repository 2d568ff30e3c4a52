//! What is done about a redo file that an interrupted change has left.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::host::{Handle, Host, OpenMode};
use crate::redo::{Found, Mismatch, Parsed, Places, Redo, apply, beside, check, part_name, view};
use crate::{Error, ErrorKind, HostFile, Overlay, Result, Sharing, TransactionOptions};

/// What to do about an interrupted change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    /// Complete it if nothing else has changed its files since, otherwise refuse.
    Auto,
    /// Complete it in any case; whatever else has changed what it touches is overwritten.
    Apply,
    /// Give it up; where it was partly applied, the files stay as torn as they are.
    Discard,
}

/// What [`recover`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovered {
    /// There was no interrupted change.
    Nothing,
    /// It was completed.
    Applied,
    /// It was given up.
    Discarded,
}

/// An interrupted change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// The redo file.
    pub redo: PathBuf,
    /// The files it changes.
    pub files: Vec<PathBuf>,
}

/// Finds an interrupted change of the image at `path`, without locking or changing anything.
pub fn pending(path: &Path, options: &TransactionOptions) -> Result<Option<Pending>> {
    let host = options.host();
    let path = &host.canonicalize(path).map_err(|source| Error::host("open", path, source))?;
    let file = HostFile::open_on(&*host, path, OpenMode::Read, Sharing::Forced)?;
    let places = Places { host: &*host, redo_dir: options.redo_dir.as_deref() };
    match places.find(path, &file.stat()?)? {
        Found::Pending { redo, .. } => {
            let files = redo.entries.iter().map(|entry| entry.path.clone()).collect();
            Ok(Some(Pending { redo: redo.path().to_owned(), files }))
        }
        Found::Nothing | Found::Leftover(_) => Ok(None),
    }
}

/// Deals with an interrupted change of the image at `path`, and removes whatever else commits have left there.
pub fn recover(path: &Path, recovery: Recovery, options: &TransactionOptions) -> Result<Recovered> {
    let host = options.host();
    let path = &host.canonicalize(path).map_err(|source| Error::host("open", path, source))?;
    let file = Arc::new(HostFile::open_on(&*host, path, OpenMode::Write, Sharing::Locked)?);
    let places = Places { host: &*host, redo_dir: options.redo_dir.as_deref() };
    recover_file(&places, &file, recovery)
}

/// Deals with an interrupted change of a file that is open for writing, and locked.
pub(crate) fn recover_file(
    places: &Places<'_>,
    file: &Arc<HostFile>,
    recovery: Recovery,
) -> Result<Recovered> {
    let name = beside(file.path());
    let found = match (places.find(file.path(), &file.stat()?), &name) {
        // What cannot be read can still be given up.
        (Err(error), Some(name)) if recovery == Recovery::Discard && error.kind() == ErrorKind::Corrupt => {
            places.host.unlink(name).map_err(|source| Error::host("remove", name, source))?;
            return Ok(Recovered::Discarded);
        }
        (found, _) => found?,
    };
    if let Some(name) = &name {
        unlink_all(places.host, [&part_name(name)]);
    }
    match found {
        Found::Nothing => Ok(Recovered::Nothing),
        Found::Leftover(name) => {
            unlink_all(places.host, [&name]);
            Ok(Recovered::Nothing)
        }
        Found::Pending { redo, index } => settle(places.host, &redo, index, file, recovery),
    }
}

fn settle(
    host: &dyn Host,
    redo: &Redo,
    index: usize,
    file: &Arc<HostFile>,
    recovery: Recovery,
) -> Result<Recovered> {
    if recovery != Recovery::Discard {
        redo.check_body()?;
    }
    let mut files = Vec::new();
    for (other, entry) in redo.entries.iter().enumerate() {
        if other == index {
            files.push(file.clone());
            continue;
        }
        match HostFile::open_on(host, &entry.path, OpenMode::Write, Sharing::Locked) {
            // A file that is gone does not keep the others from giving the change up.
            Err(error) if recovery == Recovery::Discard && error.kind() == ErrorKind::NotFound => {}
            opened => files.push(Arc::new(opened?)),
        }
    }
    let files: Vec<&HostFile> = files.iter().map(|file| &**file).collect();
    let pointers: Vec<_> = redo
        .entries
        .iter()
        .filter_map(|entry| beside(&entry.path))
        .filter(|name| name != redo.path())
        .collect();
    if recovery == Recovery::Discard {
        retire(host, redo, &pointers)?;
        return Ok(Recovered::Discarded);
    }
    files.iter().try_for_each(|file| check_owner(host, redo, file))?;
    if recovery == Recovery::Auto {
        for (index, file) in files.iter().enumerate() {
            check_file(redo, index, file)?;
        }
    }
    apply(redo, &files)?;
    retire(host, redo, &pointers)?;
    Ok(Recovered::Applied)
}

/// Refuses a file that something else has changed since the redo was written.
fn check_file(redo: &Redo, index: usize, file: &HostFile) -> Result<()> {
    let (path, redo_path) = (file.path(), redo.path());
    match check(redo, index, file)? {
        None => Ok(()),
        Some(Mismatch::Identity) => {
            Err(Error::conflict(path, redo_path, "is about another file of this name"))
        }
        Some(Mismatch::Length) => {
            Err(Error::conflict(path, redo_path, "knows neither its length nor its end"))
        }
        Some(Mismatch::Sector(offset)) => Err(Error::conflict_at(path, redo_path, offset)),
    }
}

/// What a reader sees of a file with an interrupted change, if there is one.
pub(crate) fn view_pending(places: &Places<'_>, file: &Arc<HostFile>) -> Result<Option<Overlay>> {
    match places.find(file.path(), &file.stat()?)? {
        Found::Nothing | Found::Leftover(_) => Ok(None),
        Found::Pending { redo, index } => {
            check_owner(places.host, &redo, file)?;
            redo.check_body()?;
            check_file(&redo, index, file)?;
            view(&redo, index, file.clone()).map(Some)
        }
    }
}

/// Makes a redo whose files are durable mean nothing any more, and removes it and its pointers.
///
/// Once the header is durably void, losing the removal to a power failure does no harm, so the folder is not
/// synced. Where the header cannot be overwritten, a durable removal serves as well.
pub(crate) fn retire(host: &dyn Host, redo: &Redo, pointers: &[PathBuf]) -> Result<()> {
    let name = redo.path().to_owned();
    let voided = open_same(host, redo).and_then(|handle| Redo::void(&*handle));
    let retired = match voided {
        Ok(()) => {
            unlink_all(host, [&name]);
            Ok(())
        }
        Err(_) => host.unlink(&name).and_then(|()| host.sync_dir(name.parent().unwrap_or(Path::new("/")))),
    };
    let path = redo.entries.first().map_or(&name, |entry| &entry.path);
    retired.map_err(|source| Error::not_retired(path, &name, source))?;
    unlink_all(host, pointers.iter().filter(|pointer| points_to(host, pointer, redo)));
    Ok(())
}

/// Opens a redo for writing, if its name still stands for the file that was read.
fn open_same(host: &dyn Host, redo: &Redo) -> io::Result<Arc<dyn Handle>> {
    let handle = host.open(redo.path(), OpenMode::Write)?;
    let (now, then) = (handle.stat()?, redo.handle().stat()?);
    match (now.device, now.inode) == (then.device, then.inode) {
        true => Ok(handle),
        false => Err(io::Error::other("something else has its name now")),
    }
}

/// Refuses a redo by which another user would write to a file with the rights of this process.
fn check_owner(host: &dyn Host, redo: &Redo, file: &HostFile) -> Result<()> {
    const ROOT: u32 = 0;
    let trusted = [ROOT, host.user(), file.stat()?.owner];
    match trusted.contains(&redo.owner) {
        true => Ok(()),
        false => Err(Error::foreign_redo(file.path(), redo.path(), redo.owner)),
    }
}

/// Whether a file is a pointer to this very redo.
fn points_to(host: &dyn Host, pointer: &Path, redo: &Redo) -> bool {
    let Ok(handle) = host.open(pointer, OpenMode::Read) else { return false };
    matches!(Redo::parse(handle, pointer), Ok(Parsed::Pointer(found)) if found.body_hash == redo.body_hash)
}

/// Removes files that mean nothing; one that stays is found to mean nothing again.
pub(crate) fn unlink_all<'a>(host: &dyn Host, names: impl IntoIterator<Item = &'a PathBuf>) {
    for name in names {
        let _: io::Result<()> = host.unlink(name);
    }
}
