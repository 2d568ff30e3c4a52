use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, RenameFlags, XattrFlags};

use crate::host::{OpenMode, RealHost};
use crate::recover::recover_file;
use crate::redo::Places;
use crate::{Disk, Error, ErrorKind, HostFile, Recovery, Result, Sharing};

/// The extended attribute that holds an access list.
const ACCESS_LIST: &str = "system.posix_acl_access";

/// What the unfinished file of a name is called.
const PART: &str = ".vmwright-part";

/// What is noted beside it.
const NOTE: &str = ".vmwright-progress";

/// A note that is being written.
const NEW_NOTE: &str = ".vmwright-progress-new";

/// No note is longer.
const MAX_NOTE: u64 = 64 << 10;

/// A host file that appears under its name only when it is complete and durable.
///
/// ```text
/// DST.vmwright-part ─ written ─ synced ─ renamed to DST ─ folder synced
/// ```
///
/// Until [`FreshFile::commit`] the name stands for what it stood for before; dropping a `FreshFile` that was
/// not committed removes the unfinished file. After a crash an unfinished file stays, and the next attempt
/// replaces it.
///
/// ```
/// use vmwright_disk::{Disk, FreshFile};
///
/// let dir = tempfile::tempdir()?;
/// let path = dir.path().join("disk.img");
/// let fresh = FreshFile::create(&path, false)?;
/// fresh.disk().set_len(4096)?;
/// assert!(!path.exists());
/// fresh.commit()?;
/// assert!(path.exists());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct FreshFile {
    disk: Arc<HostFile>,
    part: PathBuf,
    target: PathBuf,
    /// The file to be replaced, locked meanwhile.
    replaced: Option<Arc<HostFile>>,
    committed: bool,
    /// Whether the unfinished file stays when it is dropped.
    kept: AtomicBool,
}

impl FreshFile {
    /// Begins a file of zero bytes that is to be known as `path`.
    ///
    /// Where `path` exists, it is replaced if `force` says so: through symbolic links, under its lock, and
    /// keeping its owner, mode, access lists and extended attributes. Without `force` that is an error of kind
    /// [`ErrorKind::Exists`].
    pub fn create(path: &Path, force: bool) -> Result<Self> {
        let (target, replaced) = resolve(path, force)?;
        Self::begin(target, replaced)
    }

    /// Begins a file that is to take the place of one that is locked already.
    pub(crate) fn replacing(old: Arc<HostFile>) -> Result<Self> {
        let path = old.path();
        let target = path.canonicalize().map_err(|source| Error::host("resolve", path, source))?;
        if old.is_block_device() {
            return Err(Error::not_a_disk(path));
        }
        Self::begin(target, Some(old))
    }

    fn begin(target: PathBuf, replaced: Option<Arc<HostFile>>) -> Result<Self> {
        let part = beside(&target, PART);
        remove_leftover(&part)?;
        remove_leftover(&beside(&target, NOTE))?;
        // What replaces a file gets its mode at the end: until then nobody else may read it.
        let mode = if replaced.is_some() { OpenMode::CreatePrivate } else { OpenMode::Create };
        let disk = Arc::new(HostFile::open_on(&RealHost, &part, mode, Sharing::Locked)?);
        Ok(Self { disk, part, target, replaced, committed: false, kept: AtomicBool::new(false) })
    }

    /// Takes up the unfinished file that an earlier attempt at `path` [kept](FreshFile::keep) or a crash left, if
    /// there is one. It stays, unless it is committed or [`FreshFile::keep`] says otherwise.
    pub fn take_up(path: &Path, force: bool) -> Result<Option<Self>> {
        let (target, replaced) = resolve(path, force)?;
        let part = beside(&target, PART);
        match fs::symlink_metadata(&part) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::host("stat", &part, source)),
            // Whoever made a link or left nothing but a name chose neither content nor place for this file.
            Ok(metadata) if !metadata.is_file() => return Err(Error::not_a_disk(&part)),
            Ok(_) => {}
        }
        let disk = Arc::new(HostFile::open(&part, false)?);
        Ok(Some(Self { disk, part, target, replaced, committed: false, kept: AtomicBool::new(true) }))
    }

    /// Whether the unfinished file and its note stay when this is dropped without being committed, for
    /// [`FreshFile::take_up`].
    pub fn keep(&self, keep: bool) {
        self.kept.store(keep, Ordering::Relaxed);
    }

    /// The provisional name.
    pub fn unfinished(&self) -> &Path {
        &self.part
    }

    /// What [`FreshFile::save_note`] saved last, here or in an earlier attempt.
    pub fn note(&self) -> Result<Option<Vec<u8>>> {
        let path = beside(&self.target, NOTE);
        let file = match HostFile::open(&path, true) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        if file.len() > MAX_NOTE {
            return Err(Error::misuse(&path, "too long for what it should be"));
        }
        let mut note = vec![0; file.len() as usize];
        file.read_at(&mut note, 0)?;
        Ok(Some(note))
    }

    /// Notes something beside the unfinished file, durably and instead of what was noted before; it goes with that
    /// file. Up to 64 KiB.
    pub fn save_note(&self, note: &[u8]) -> Result<()> {
        let path = beside(&self.target, NOTE);
        let new = beside(&self.target, NEW_NOTE);
        remove_leftover(&new)?;
        let file = HostFile::open_on(&RealHost, &new, OpenMode::CreatePrivate, Sharing::Locked)?;
        file.set_len(note.len() as u64)?;
        file.write_at(note, 0)?;
        file.sync_all()?;
        fs::rename(&new, &path).map_err(|source| Error::host("replace", &path, source))?;
        self.sync_folder()
    }

    /// The file, to be sized and written.
    pub fn disk(&self) -> Arc<HostFile> {
        self.disk.clone()
    }

    /// Makes the file durable and gives it its name.
    pub fn commit(mut self) -> Result<()> {
        let fail = |action| {
            let target = &self.target;
            move |source| Error::host(action, target, source)
        };
        if self.replaced.is_some() {
            self.keep_metadata().map_err(fail("keep the owner and attributes of"))?;
        }
        self.disk.sync_all()?;
        self.rename().map_err(fail("create"))?;
        self.sync_folder()?;
        self.committed = true;
        // Without its file, a note means nothing.
        let _ = fs::remove_file(beside(&self.target, NOTE));
        Ok(())
    }

    fn sync_folder(&self) -> Result<()> {
        let dir = match self.target.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        let synced = fs::File::open(dir).and_then(|dir| dir.sync_all());
        synced.map_err(|source| Error::host("sync", dir, source))
    }

    fn rename(&self) -> io::Result<()> {
        if self.replaced.is_some() {
            return fs::rename(&self.part, &self.target);
        }
        // Somebody may have made the file meanwhile.
        let flags = RenameFlags::NOREPLACE;
        match rustix::fs::renameat_with(CWD, &self.part, CWD, &self.target, flags) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                // The filesystem lacks this kind of renaming.
                match fs::symlink_metadata(&self.target) {
                    Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
                    Err(_) => fs::rename(&self.part, &self.target),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    fn keep_metadata(&self) -> io::Result<()> {
        let old: Metadata = fs::metadata(&self.target)?;
        let new = fs::metadata(&self.part)?;
        if (old.uid(), old.gid()) != (new.uid(), new.gid()) {
            chown(&self.part, Some(old.uid()), Some(old.gid()))?;
        }
        // The mode comes last: what it allows must not reach those on a list that is not kept.
        self.keep_xattrs()?;
        fs::set_permissions(&self.part, fs::Permissions::from_mode(old.mode() & 0o7777))
    }

    /// Copies extended attributes, of which access lists are some.
    fn keep_xattrs(&self) -> io::Result<()> {
        let mut names = vec![0u8; 65536];
        let len = match rustix::fs::listxattr(&self.target, &mut names[..]) {
            Ok(len) => len,
            Err(rustix::io::Errno::OPNOTSUPP) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        if !names[..len].split(|byte| *byte == 0).any(|name| name == ACCESS_LIST.as_bytes()) {
            // A new file gets the default list of its folder.
            match rustix::fs::removexattr(&self.part, ACCESS_LIST) {
                Ok(()) | Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let mut value = vec![0u8; 65536];
        for name in names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let len = rustix::fs::getxattr(&self.target, name, &mut value[..])?;
            rustix::fs::setxattr(&self.part, name, &value[..len], XattrFlags::empty())?;
        }
        Ok(())
    }
}

impl Drop for FreshFile {
    fn drop(&mut self) {
        if !self.committed && !self.kept.load(Ordering::Relaxed) {
            let _ = fs::remove_file(beside(&self.target, NOTE));
            // Nothing more can be done about a file that cannot be removed; the next attempt tries again.
            let _ = fs::remove_file(&self.part);
        }
    }
}

/// What a new file is to be known as, links resolved, and the file that has the name now.
fn resolve(path: &Path, force: bool) -> Result<(PathBuf, Option<Arc<HostFile>>)> {
    match fs::symlink_metadata(path) {
        Ok(_) if !force => Err(Error::host("create", path, io::ErrorKind::AlreadyExists.into())),
        Ok(_) => {
            let target = path.canonicalize().map_err(|source| Error::host("resolve", path, source))?;
            let replaced = Arc::new(HostFile::open(&target, false)?);
            if replaced.is_block_device() {
                return Err(Error::not_a_disk(path));
            }
            // A redo of the old file must not be left to the new one.
            recover_file(&Places { host: &RealHost, redo_dir: None }, &replaced, Recovery::Auto)?;
            Ok((target, Some(replaced)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((path.to_owned(), None)),
        Err(source) => Err(Error::host("stat", path, source)),
    }
}

/// The name of a file with something appended.
fn beside(target: &Path, suffix: &str) -> PathBuf {
    let mut name = target.to_owned().into_os_string();
    name.push(suffix);
    name.into()
}

/// Removes what a crash left of an earlier attempt, unless somebody is at work on it.
fn remove_leftover(part: &Path) -> Result<()> {
    match fs::symlink_metadata(part) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(Error::host("stat", part, source)),
        Ok(metadata) if metadata.file_type().is_symlink() => {}
        Ok(_) => {
            // The lock is held until the name is gone, so that nobody takes the file up again.
            let _leftover = HostFile::open(part, false)?;
            return fs::remove_file(part).map_err(|source| Error::host("remove", part, source));
        }
    }
    fs::remove_file(part).map_err(|source| Error::host("remove", part, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_existing_file_is_replaced_only_by_force_and_keeps_its_mode_and_link() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        fs::write(&real, b"old").unwrap();
        fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("real", &link).unwrap();
        assert_eq!(FreshFile::create(&link, false).unwrap_err().kind(), ErrorKind::Exists);

        let fresh = FreshFile::create(&link, true).unwrap();
        fresh.disk().set_len(3).unwrap();
        fresh.disk().write_at(b"new", 0).unwrap();
        assert_eq!(fs::read(&link).unwrap(), b"old");
        fresh.commit().unwrap();
        assert_eq!(fs::read(&real).unwrap(), b"new");
        assert_eq!(fs::metadata(&real).unwrap().mode() & 0o7777, 0o640);
        assert!(fs::symlink_metadata(&link).unwrap().file_type().is_symlink());
    }

    #[test]
    fn what_is_not_committed_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let fresh = FreshFile::create(&path, false).unwrap();
        assert_eq!(FreshFile::create(&path, false).unwrap_err().kind(), ErrorKind::InUse);
        drop(fresh);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_leftover_of_a_crash_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        fs::write(dir.path().join("disk.vmwright-part"), b"half").unwrap();
        let fresh = FreshFile::create(&path, false).unwrap();
        assert_eq!(fresh.disk().len(), 0);
        fresh.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
    }

    #[test]
    fn a_file_made_meanwhile_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let fresh = FreshFile::create(&path, false).unwrap();
        fs::write(&path, b"theirs").unwrap();
        assert_eq!(fresh.commit().unwrap_err().kind(), ErrorKind::Exists);
        assert_eq!(fs::read(&path).unwrap(), b"theirs");
    }

    #[test]
    fn a_file_in_use_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let _user = HostFile::create(&path, 512).unwrap();
        assert_eq!(FreshFile::create(&path, true).unwrap_err().kind(), ErrorKind::InUse);
    }

    #[test]
    fn what_is_kept_is_taken_up_with_its_note_and_goes_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let names = || fs::read_dir(dir.path()).unwrap().count();
        assert!(FreshFile::take_up(&path, false).unwrap().is_none());
        let fresh = FreshFile::create(&path, false).unwrap();
        fresh.disk().set_len(3).unwrap();
        fresh.disk().write_at(b"abc", 0).unwrap();
        fresh.save_note(b"first").unwrap();
        fresh.save_note(b"second").unwrap();
        fresh.keep(true);
        drop(fresh);
        assert_eq!(names(), 2);

        let again = FreshFile::take_up(&path, false).unwrap().unwrap();
        assert_eq!(again.note().unwrap().unwrap(), b"second");
        assert_eq!(again.disk().len(), 3);
        again.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"abc");
        assert_eq!(names(), 1);

        // Without being kept, both go; and whoever begins anew does not find the note of another file.
        let fresh = FreshFile::create(&path, true).unwrap();
        fresh.save_note(b"third").unwrap();
        drop(fresh);
        assert_eq!(names(), 1);
        fs::write(dir.path().join("other.vmwright-progress"), b"stale").unwrap();
        let fresh = FreshFile::create(&dir.path().join("other"), false).unwrap();
        assert_eq!(fresh.note().unwrap(), None);
    }

    #[test]
    fn a_link_is_not_taken_up() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("precious"), b"data").unwrap();
        std::os::unix::fs::symlink("precious", dir.path().join("disk.vmwright-part")).unwrap();
        let error = FreshFile::take_up(&dir.path().join("disk"), false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn what_replaces_a_private_file_is_private_from_the_beginning() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        fs::write(&path, b"old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let fresh = FreshFile::create(&path, true).unwrap();
        assert_eq!(fs::metadata(&fresh.part).unwrap().mode() & 0o077, 0);
    }

    #[test]
    fn what_replaces_a_file_has_no_access_list_of_its_folder_unless_the_file_had_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        fs::write(&path, b"old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o660)).unwrap();
        // Version 2; then owner, user 1, group, mask and others, each as tag, permissions and id.
        let mut list = 2u32.to_le_bytes().to_vec();
        for (tag, permissions, id) in
            [(1u16, 7u16, u32::MAX), (2, 6, 1), (4, 5, u32::MAX), (16, 7, u32::MAX), (32, 5, u32::MAX)]
        {
            list.extend([tag.to_le_bytes(), permissions.to_le_bytes()].concat());
            list.extend(id.to_le_bytes());
        }
        let default = "system.posix_acl_default";
        match rustix::fs::setxattr(dir.path(), default, &list, XattrFlags::empty()) {
            Err(rustix::io::Errno::OPNOTSUPP) => return,
            set => set.unwrap(),
        }
        FreshFile::create(&path, true).unwrap().commit().unwrap();
        let found = rustix::fs::getxattr(&path, ACCESS_LIST, &mut [0u8; 256][..]);
        assert_eq!(found, Err(rustix::io::Errno::NODATA));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o660);
    }
}
