use std::time::Duration;

use crate::client::Connection;
use crate::machine::{self, Answer, Request, State};
use crate::protocol;
use crate::runtime::Runtime;
use crate::shim::state::ExitRecord;
use crate::store::{OperationKind, Outcome};
use crate::{Error, ErrorKind, Result, VmInfo, VmName, fault, layout};

/// How long a shim may take, after its VM has ended, to clear up.
const CLEARING: Duration = Duration::from_secs(15);

/// How a VM is stopped.
#[derive(Debug, Clone)]
pub struct StopOptions {
    /// How long the guest may take to power off before it is killed.
    pub grace: Duration,
    /// Whether it is killed at once.
    pub force: bool,
}

impl Default for StopOptions {
    fn default() -> Self {
        Self { grace: Duration::from_secs(30), force: false }
    }
}

impl Runtime {
    /// Ends a VM: the agent is asked, then the power button pressed, then the monitor killed.
    ///
    /// One that does not run is left as it is.
    pub fn stop(&self, name: &VmName, options: &StopOptions) -> Result<VmInfo> {
        let row = self.row(name)?;
        match machine::request(row.state, Request::Stop) {
            Ok(Answer::Already) => return self.info(row),
            Ok(Answer::Proceed) => {}
            Err(refusal) => return Err(Error::refused(name, Request::Stop, refusal)),
        }
        let operation = self.begin(name, OperationKind::Stop)?;
        fault::point("stop.intended");
        let stopped = self.order_stop(name, options);
        fault::point("stop.stopped");
        let outcome = if stopped.is_ok() { Outcome::Done } else { Outcome::Failed };
        self.store()?.finish(operation, outcome, None)?;
        fault::point("stop.done");
        stopped?;
        self.inspect(name)
    }

    fn order_stop(&self, name: &VmName, options: &StopOptions) -> Result<()> {
        // A shim that no longer listens is about to end.
        if let Some(connection) = Connection::open(name, &self.home.vm(name))? {
            let grace_ms = u64::try_from(options.grace.as_millis()).unwrap_or(u64::MAX);
            connection.end(&protocol::Request::Stop { grace_ms, force: options.force }, None)?;
        }
        match self.wait_unlocked(name, CLEARING)? {
            true => Ok(()),
            false => Err(Error::shim(
                name,
                ErrorKind::Io,
                "does not end although its VM has; `vm reconcile` ends it",
            )),
        }
    }

    /// Removes a VM with its own disk. One that runs is killed first with `force`, and refused without.
    pub fn delete(&self, name: &VmName, force: bool) -> Result<()> {
        let mut row = self.row(name)?;
        if row.state.has_vmm() && force {
            self.stop(name, &StopOptions { force: true, ..StopOptions::default() })?;
            row = self.row(name)?;
        }
        if row.state == State::Error {
            self.clear(&row)?;
            row = self.row(name)?;
        }
        if let Err(refusal) = machine::request(row.state, Request::Delete) {
            return Err(Error::refused(name, Request::Delete, refusal));
        }
        self.begin(name, OperationKind::Delete)?;
        fault::point("delete.intended");
        self.clear_run(name)?;
        fault::point("delete.locked");
        layout::remove_dir(self.home.vm(name).path())?;
        fault::point("delete.directory");
        self.store()?.delete_vm(name)?;
        self.store()?.record_event(name, "deleted", "")?;
        fault::point("delete.done");
        Ok(())
    }

    /// Removes every VM that has ended; answers which.
    pub fn prune(&self) -> Result<Vec<VmName>> {
        let mut removed = Vec::new();
        for vm in self.list()? {
            if matches!(vm.state, State::Stopped | State::Error) {
                match self.delete(&vm.name, false) {
                    Ok(()) => removed.push(vm.name),
                    // Somebody else has begun something with it: it is in use after all.
                    Err(error) if matches!(error.kind(), ErrorKind::InUse | ErrorKind::NotFound) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(removed)
    }
}

impl Connection {
    /// Waits for the VM's end as a request that ends with it does; nothing where it takes longer than that,
    /// or where the shim went without a word.
    pub(crate) fn end(
        mut self,
        request: &protocol::Request,
        patience: Option<Duration>,
    ) -> Result<Option<ExitRecord>> {
        self.set_patience(patience)?;
        match self.ask(request) {
            Ok(exit) => Ok(Some(exit)),
            Err(error) if self.is_out_of_patience_or_gone() => {
                drop(error);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Waits for the VM's end, whoever brings it about.
    pub(crate) fn wait_end(self, patience: Option<Duration>) -> Result<Option<ExitRecord>> {
        self.end(&protocol::Request::Wait, patience)
    }
}
