//! Intents, and what becomes of those whose owner died.

use std::collections::BTreeSet;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use vmwright_vmm::ProcessIdentity;

use crate::layout::{self, VmDir};
use crate::lock::FileLock;
use crate::machine::{self, Event, State};
use crate::runtime::Runtime;
use crate::shim::cgroup;
use crate::shim::state::{self, ExitCause, ExitRecord, RECORD_VERSION, ShimState};
use crate::store::{Begun, Operation, OperationId, OperationKind, Outcome, VmChange, VmRow};
use crate::{Error, Result, VmName, process};

/// How long a shim whose command died may take to notice.
const SHIM_NOTICES: Duration = Duration::from_secs(10);

/// What [`Runtime::reconcile`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// VMs whose operation had lost its owner, with what that operation was.
    pub operations: Vec<(VmName, OperationKind)>,
    /// VMs whose run had broken off.
    pub died: Vec<VmName>,
    /// VMs whose shim was killed when it had only to clear up.
    pub leftovers: Vec<VmName>,
    /// VMs that are gone because whoever ran them is.
    pub ephemeral: Vec<VmName>,
    /// Directories of VMs that the store does not know.
    pub orphans: Vec<VmName>,
}

impl Reconciled {
    /// Whether there was nothing to do.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Runtime {
    /// Brings store, processes and files into agreement after crashes; what runs as it should is left alone.
    pub fn reconcile(&self) -> Result<Reconciled> {
        let mut done = Reconciled::default();
        if self.is_empty_home() {
            return Ok(done);
        }
        let store = self.store()?;
        done.operations = self.settle_dead(None)?;
        for row in store.vms()? {
            let name = row.name.clone();
            match self.observe(row)? {
                None => done.ephemeral.push(name),
                Some(row) if row.state == State::Error => {
                    self.clear(&row)?;
                    done.died.push(name);
                }
                Some(row) if !row.state.has_vmm() && self.has_leftovers(&name)? => {
                    self.clear(&row)?;
                    done.leftovers.push(name);
                }
                Some(_) => {}
            }
        }
        done.orphans = self.remove_orphans()?;
        Ok(done)
    }

    /// Settles operations whose owner is dead, of all VMs or of one; answers which.
    pub(crate) fn settle_dead(&self, name: Option<&VmName>) -> Result<Vec<(VmName, OperationKind)>> {
        let mut settled = Vec::new();
        for operation in self.store()?.open_operations()? {
            let wanted = name.is_none_or(|name| *name == operation.vm);
            if wanted && !process::is_alive(&operation.owner) && self.settle(&operation)? {
                settled.push((operation.vm, operation.kind));
            }
        }
        Ok(settled)
    }

    /// Clears up after one VM whose run broke off, and makes it STOPPED.
    pub(crate) fn clear(&self, row: &VmRow) -> Result<()> {
        let operation = self.begin(&row.name, OperationKind::Reconcile)?;
        let cleared = self.clear_run(&row.name);
        let state = machine::event(row.state, Event::Reconciled).unwrap_or(row.state);
        let change = VmChange {
            state,
            pid: None,
            socket_path: None,
            run: row.run.clone(),
            detail: row.detail.clone(),
        };
        let outcome = if cleared.is_ok() { Outcome::Done } else { Outcome::Failed };
        self.store()?.finish(operation, outcome, cleared.is_ok().then_some(&change))?;
        cleared
    }

    /// Whether a run that is over has left files, and nobody is about to begin another.
    fn has_leftovers(&self, name: &VmName) -> Result<bool> {
        let dir = self.home.vm(name);
        let busy = self.store()?.open_operations()?.iter().any(|operation| operation.vm == *name);
        if busy || FileLock::is_held(&dir.lock())? {
            return Ok(false);
        }
        Ok([dir.state(), dir.launch(), dir.boot(), dir.sockets().to_owned()].iter().any(|path| path.exists()))
    }

    /// Opens an operation. One whose owner is dead is settled first; one whose owner lives refuses this one.
    pub(crate) fn begin(&self, name: &VmName, kind: OperationKind) -> Result<OperationId> {
        let owner = self.owner()?;
        loop {
            match self.store()?.begin(name, kind, &owner)? {
                Begun::Opened(id) => return Ok(id),
                Begun::Taken(other) if process::is_alive(&other.owner) => {
                    return Err(Error::busy(name, kind.name(), other.kind.name(), other.owner.pid));
                }
                Begun::Taken(other) => {
                    self.settle(&other)?;
                }
            }
        }
    }

    /// Undoes what a dead owner's operation began, or finishes it where there is no way back.
    ///
    /// Answers whether it was this call that did so.
    fn settle(&self, operation: &Operation) -> Result<bool> {
        let store = self.store()?;
        if !store.take_over(operation, &self.owner()?)? {
            return Ok(false);
        }
        let name = &operation.vm;
        let ephemeral = store.vm(name)?.is_some_and(|row| row.ephemeral);
        match operation.kind {
            OperationKind::Create | OperationKind::Delete => self.erase(name)?,
            OperationKind::Start if ephemeral => self.erase(name)?,
            OperationKind::Start | OperationKind::Reconcile => {
                self.clear_run(name)?;
                store.finish(operation.id, Outcome::Undone, None)?;
            }
            // Whether the order reached the shim or not, the next look at the VM tells how far it got.
            OperationKind::Stop => store.finish(operation.id, Outcome::Undone, None)?,
        }
        store.record_event(name, "settled", operation.kind.name())?;
        Ok(true)
    }

    /// Looks at what became of a VM since its row was written; nothing where it is gone with its user.
    pub(crate) fn observe(&self, row: VmRow) -> Result<Option<VmRow>> {
        let dir = self.home.vm(&row.name);
        if FileLock::is_held(&dir.lock())? {
            return Ok(Some(row));
        }
        if row.ephemeral {
            return self.observe_ephemeral(row, &dir);
        }
        if !row.state.has_vmm() {
            return Ok(Some(row));
        }
        let exit = state::read_exit(&dir).ok().flatten().filter(|exit| Some(&exit.run) == row.run.as_ref());
        let exit = exit.unwrap_or_else(|| lost(&row, &dir));
        let event = if exit.is_clean() { Event::Ended } else { Event::Died };
        let change = VmChange {
            state: machine::event(row.state, event).unwrap_or(State::Error),
            pid: None,
            socket_path: None,
            run: row.run.clone(),
            detail: serde_json::to_string(&exit).ok(),
        };
        let store = self.store()?;
        if store.change_vm(&row.name, row.state, row.run.as_deref(), &change)? {
            store.record_event(
                &row.name,
                change.state.name(),
                change.detail.as_deref().unwrap_or_default(),
            )?;
        }
        store.vm(&row.name)
    }

    fn observe_ephemeral(&self, row: VmRow, dir: &VmDir) -> Result<Option<VmRow>> {
        let store = self.store()?;
        let busy = store
            .open_operations()?
            .into_iter()
            .any(|operation| operation.vm == row.name && process::is_alive(&operation.owner));
        if busy {
            return Ok(Some(row));
        }
        // A shim may have taken the lock since: only one that is seen free after the operations is free.
        if FileLock::is_held(&dir.lock())? {
            return Ok(Some(row));
        }
        self.erase(&row.name)?;
        Ok(None)
    }

    /// Removes a VM with everything of it: processes, files, and its row last.
    pub(crate) fn erase(&self, name: &VmName) -> Result<()> {
        self.clear_run(name)?;
        layout::remove_dir(self.home.vm(name).path())?;
        self.store()?.delete_vm(name)?;
        Ok(())
    }

    /// Ends what is left of a run and removes its files. The lock is free afterwards.
    pub(crate) fn clear_run(&self, name: &VmName) -> Result<()> {
        let dir = self.home.vm(name);
        // A record that cannot be read leads nowhere; the lock still tells whether its shim lives.
        let state = state::read_state(&dir).ok().flatten();
        if let Some(state) = &state {
            self.end_processes(state)?;
        }
        self.wait_for_shim(name, &dir, state.as_ref())?;
        // Read again: a shim that had just begun has put itself on record since.
        let state = state::read_state(&dir).ok().flatten().or(state);
        if let Some(group) = state.as_ref().and_then(|state| state.cgroup.as_ref()) {
            let cleared = cgroup::clear(group);
            cleared.map_err(|source| Error::host("remove the control group", group, source))?;
        }
        remove_sockets(dir.sockets())?;
        layout::remove_dir(&dir.boot())?;
        layout::remove_file(&dir.launch())?;
        for record in [dir.state(), dir.exit()] {
            layout::remove_file(&record.with_extension("new"))?;
        }
        layout::remove_file(&dir.launch().with_extension("new"))?;
        layout::remove_file(&dir.state())
    }

    fn end_processes(&self, state: &ShimState) -> Result<()> {
        process::kill(&state.shim)?;
        // It dies with the shim; waiting for it here makes sure that its files are closed.
        match &state.vmm {
            Some(vmm) => process::kill(vmm).map(drop),
            None => Ok(()),
        }
    }

    /// Waits for a shim that has the lock and was not on record when its processes were ended.
    fn wait_for_shim(&self, name: &VmName, dir: &VmDir, killed: Option<&ShimState>) -> Result<()> {
        let deadline = Instant::now() + SHIM_NOTICES;
        while FileLock::is_held(&dir.lock())? {
            // A shim that had just begun may have put itself on record since.
            if let Some(state) = state::read_state(dir).ok().flatten()
                && killed.is_none_or(|killed| killed.shim != state.shim)
            {
                self.end_processes(&state)?;
            }
            if Instant::now() >= deadline {
                return Err(Error::busy(name, "clear up after", "its shim holds on", 0));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    pub(crate) fn wait_unlocked(&self, name: &VmName, patience: Duration) -> Result<bool> {
        let (lock, deadline) = (self.home.vm(name).lock(), Instant::now() + patience);
        while FileLock::is_held(&lock)? {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(true)
    }

    /// Removes directories of VMs that the store does not know: a row is made before its directory, and
    /// goes after it.
    fn remove_orphans(&self) -> Result<Vec<VmName>> {
        let mut removed = Vec::new();
        for name in self.home.names()? {
            let dir = self.home.vm(&name);
            if self.store()?.vm(&name)?.is_none() && !FileLock::is_held(&dir.lock())? {
                self.clear_run(&name)?;
                layout::remove_dir(dir.path())?;
                removed.push(name);
            }
        }
        let run = self.home.run();
        let fail = |source| Error::host("list", &run, source);
        let sockets: Vec<_> = std::fs::read_dir(&run).and_then(Iterator::collect).map_err(fail)?;
        // Asked after the listing: what is listed and of a living VM had its row by then.
        let known: BTreeSet<String> = self.store()?.vms()?.iter().map(|row| row.name.short()).collect();
        for entry in sockets {
            // Sockets of a VM whose shim was killed after its directory had gone.
            if entry.file_name().to_str().is_none_or(|short| !known.contains(short)) {
                remove_sockets(&entry.path())?;
            }
        }
        Ok(removed)
    }

    /// Whether exactly this process is the VM's shim, as its record says.
    pub fn shim(&self, name: &VmName) -> Result<Option<ProcessIdentity>> {
        Ok(state::read_state(&self.home.vm(name))?.map(|state| state.shim))
    }
}

/// Removes a directory of sockets once nobody is found to listen on any of them.
///
/// Whoever had them is dead as far as the records tell; a refused connection proves it.
fn remove_sockets(dir: &Path) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(dir) else { return layout::remove_dir(dir) };
    for entry in entries {
        let entry = entry.map_err(|source| Error::host("list", dir, source))?;
        if entry.file_type().is_ok_and(|kind| kind.is_socket()) && UnixStream::connect(entry.path()).is_ok() {
            let in_use = std::io::Error::from(std::io::ErrorKind::AddrInUse);
            return Err(Error::host("remove", &entry.path(), in_use));
        }
    }
    layout::remove_dir(dir)
}

/// The end of a run whose shim left no record of it.
fn lost(row: &VmRow, dir: &VmDir) -> ExitRecord {
    let before_restart = match (state::read_state(dir), vmwright_vmm::boot_id()) {
        (Ok(Some(state)), Ok(boot_id)) => state.shim.boot_id != boot_id,
        _ => false,
    };
    let detail = if before_restart { "the host restarted" } else { "its shim was killed" };
    ExitRecord {
        version: RECORD_VERSION,
        run: row.run.clone().unwrap_or_default(),
        cause: ExitCause::Lost,
        vmm: None,
        goodbye: false,
        detail: Some(detail.to_owned()),
        at: state::now(),
    }
}
