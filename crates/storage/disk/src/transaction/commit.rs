use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::changes::Changes;
use super::plan::FilePlan;
use super::{Member, Plan, TransactionOptions, WriteMode};
use crate::host::{Handle, Host, OpenMode};
use crate::recover::{retire, unlink_all};
use crate::redo::{Entry, Parsed, Place, Places, Pointer, Redo, RedoWriter, apply, part_name, write_pointer};
use crate::{Disk, Error, HostFile, Overlay, Result};

/// A file that may have changed.
struct Edited<'a> {
    file: &'a HostFile,
    overlay: &'a Overlay,
}

pub(super) fn commit(options: &TransactionOptions, members: &[Member]) -> Result<Plan> {
    if options.mode == WriteMode::Ordered {
        members.iter().try_for_each(|member| member.file.flush())?;
        return Ok(Plan::default());
    }
    let mut edited = Vec::new();
    for member in members {
        if let Some(overlay) = &member.overlay {
            overlay.seal();
            if overlay.next_change(0).is_some() || overlay.len() != member.file.len() {
                edited.push(Edited { file: &member.file, overlay });
            }
        }
    }
    edited.sort_by(|a, b| a.file.path().cmp(b.file.path()));
    if edited.is_empty() {
        return Ok(Plan::default());
    }
    let host = options.host();
    let places = Places { host: &*host, redo_dir: options.redo_dir.as_deref() };
    let files: Vec<_> = edited.iter().map(|edited| edited.file).collect();
    let commit = Commit { host: &*host, place: places.place(&files)?, edited, files };
    commit.run()
}

struct Commit<'a> {
    host: &'a dyn Host,
    place: Place,
    edited: Vec<Edited<'a>>,
    files: Vec<&'a HostFile>,
}

impl Commit<'_> {
    fn run(&self) -> Result<Plan> {
        let prepared = self.reserve().and_then(|()| self.prepare());
        let (redo, plan) = match prepared {
            Ok(Some(prepared)) => prepared,
            // Everything written was there already.
            Ok(None) => {
                self.clean_up();
                return Ok(Plan::default());
            }
            Err(error) => {
                self.clean_up();
                return Err(error);
            }
        };
        self.check_names().inspect_err(|_| self.clean_up())?;
        self.publish(&redo)?;
        apply(&redo, &self.files)?;
        retire(self.host, &redo, &self.place.pointers)?;
        Ok(plan)
    }

    /// Allocates the space that applying will need, which changes neither a byte nor a length.
    fn reserve(&self) -> Result<()> {
        for Edited { file, overlay } in &self.edited {
            if file.is_block_device() {
                continue;
            }
            let (mut holes, mut reserved) = (0, true);
            Changes::new(file, overlay).unallocated(&mut |start, end| {
                holes += end - start;
                reserved = reserved && file.reserve(start, end - start)?;
                Ok(())
            })?;
            let mut needed = if reserved { 0 } else { holes };
            if file.copies_on_write() {
                // What is overwritten needs space anew.
                needed += written(overlay).saturating_sub(holes);
            }
            if needed > 0 {
                let free = file.free_space()?;
                if needed > free {
                    return Err(Error::no_room(file.path(), needed, free));
                }
            }
        }
        Ok(())
    }

    /// Writes the redo and the pointers to it durably, the redo under a temporary name.
    fn prepare(&self) -> Result<Option<(Redo, Plan)>> {
        let part = part_name(&self.place.redo);
        let fail = |action| {
            let part = &part;
            move |source| Error::host(action, part, source)
        };
        let handle = create_anew(self.host, &part).map_err(fail("create"))?;
        let (body_hash, plan) = self.write_redo(&handle, &part)?;
        if plan.files.is_empty() {
            return Ok(None);
        }
        handle.sync(false).map_err(fail("sync"))?;
        self.write_pointers(body_hash)?;
        match Redo::parse(handle, &self.place.redo)? {
            Parsed::Redo(redo) => Ok(Some((redo, plan))),
            _ => Err(Error::damaged(&part, 0, "not what was written")),
        }
    }

    fn write_redo(&self, handle: &Arc<dyn Handle>, part: &Path) -> Result<([u8; 32], Plan)> {
        let mut entries = Vec::new();
        let mut plan = Plan::default();
        for Edited { file, overlay } in &self.edited {
            let (id, old_len, new_len) = (file.id(), file.len(), overlay.len());
            entries.push(Entry {
                path: file.path().to_owned(),
                device: id.device,
                inode: id.inode,
                old_len,
                new_len,
                block_device: file.is_block_device(),
            });
            plan.files.push(FilePlan::new(file.path().to_owned(), old_len, new_len));
        }
        let dir = parent(&self.place.redo);
        let mut writer = RedoWriter::new(handle.clone(), &entries, dir);
        for (index, Edited { file, overlay }) in self.edited.iter().enumerate() {
            Changes::new(file, overlay).walk(&mut |piece| {
                plan.files[index].add(&piece.record);
                let pushed = writer.push(index, &piece.record, piece.digests, piece.data);
                pushed.map_err(|source| Error::host("write", part, source))
            })?;
        }
        let body_hash = writer.finish().map_err(|source| Error::host("write", part, source))?;
        plan.files.retain(FilePlan::changes_something);
        Ok((body_hash, plan))
    }

    /// Writes a pointer beside every other file. They are durable before the redo has its name.
    fn write_pointers(&self, body_hash: [u8; 32]) -> Result<()> {
        let pointer = Pointer { redo: self.place.redo.clone(), body_hash };
        let mut dirs = BTreeSet::new();
        for name in &self.place.pointers {
            let part = part_name(name);
            let write = || -> io::Result<()> {
                let handle = create_anew(self.host, &part)?;
                write_pointer(&*handle, &pointer, parent(name))?;
                handle.sync(false)?;
                self.host.rename(&part, name)
            };
            write().map_err(|source| Error::host("write", name, source))?;
            dirs.insert(parent(name));
        }
        dirs.into_iter()
            .try_for_each(|dir| self.host.sync_dir(dir).map_err(|source| Error::host("sync", dir, source)))
    }

    /// Refuses a file that has lost its name since it was opened: its change would be lost without a word.
    fn check_names(&self) -> Result<()> {
        for file in &self.files {
            match self.host.identity(file.path()) {
                Ok(identity) if identity == (file.id().device, file.id().inode) => {}
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::host("stat", file.path(), source));
                }
                _ => return Err(Error::replaced(file.path())),
            }
        }
        Ok(())
    }

    /// Gives the redo its name, durably: from here on the change is made.
    fn publish(&self, redo: &Redo) -> Result<()> {
        let (name, dir) = (&self.place.redo, parent(&self.place.redo));
        if let Err(source) = self.host.rename(&part_name(name), name) {
            self.clean_up();
            return Err(Error::host("name", name, source));
        }
        let Err(source) = self.host.sync_dir(dir) else { return Ok(()) };
        // The name may or may not last, so the content has to go first.
        if Redo::void(&*redo.handle()).is_err() {
            return Err(Error::undecided(self.files[0].path(), name, source));
        }
        unlink_all(self.host, [name]);
        self.clean_up();
        Err(Error::host("sync", dir, source))
    }

    /// Removes what an attempt that failed early has left: nothing of it means anything.
    fn clean_up(&self) {
        let names = self.place.pointers.iter().chain([&self.place.redo]);
        let parts: Vec<PathBuf> = names.map(|name| part_name(name)).collect();
        unlink_all(self.host, parts.iter().chain(&self.place.pointers));
        for Edited { file, overlay } in &self.edited {
            // Space that cannot be given back is only space.
            let _ = give_back(file, overlay);
        }
    }
}

/// Frees what was reserved: holes are still holes to whoever asks for data.
fn give_back(file: &HostFile, overlay: &Overlay) -> Result<()> {
    if file.is_block_device() {
        return Ok(());
    }
    let (len, mut past_end) = (file.len(), false);
    Changes::new(file, overlay).unallocated(&mut |start, end| {
        past_end |= end > len;
        if start < len { file.discard(start, end.min(len) - start) } else { Ok(()) }
    })?;
    // Setting even the same length is a change that others see by its time.
    if past_end { file.trim_reserved() } else { Ok(()) }
}

/// How many bytes an overlay holds.
fn written(overlay: &Overlay) -> u64 {
    let (mut at, mut sum) = (0, 0);
    while let Some(change) = overlay.next_change(at) {
        sum += if change.zero { 0 } else { change.end - change.start };
        at = change.end;
    }
    sum
}

/// Creates a file in place of one that an interrupted attempt left.
fn create_anew(host: &dyn Host, path: &Path) -> io::Result<Arc<dyn Handle>> {
    match host.open(path, OpenMode::CreatePrivate) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            host.unlink(path)?;
            host.open(path, OpenMode::CreatePrivate)
        }
        result => result,
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}
