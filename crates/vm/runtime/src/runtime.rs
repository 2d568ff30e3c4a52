use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use vmwright_vmm::qemu::Qemu;
use vmwright_vmm::{Backend, Capabilities, ProcessIdentity};

use crate::client::Connection;
use crate::config::VmConfig;
use crate::layout::{Home, VmDir};
use crate::machine::{self, Request, State};
use crate::protocol::{self, FileInfo};
use crate::shim::state::{self, ExitRecord};
use crate::store::{SqliteStore, Store, VmRow};
use crate::sys::BoundSpawner;
use crate::{Error, ErrorKind, ExecRequest, PutRequest, Result, Session, VmName, process};

/// What a [`Runtime`] is opened with.
#[derive(Debug, Clone)]
pub struct Options {
    /// The directory that holds all state.
    pub home: PathBuf,
    /// The program that is started as a shim; where absent, `VMWRIGHT_BIN`, then `vmwright` on `PATH`.
    pub binary: Option<PathBuf>,
}

impl Options {
    /// The defaults on a home directory.
    pub fn new(home: impl Into<PathBuf>) -> Self {
        Self { home: home.into(), binary: None }
    }
}

/// A VM as it is now.
#[derive(Debug, Clone)]
pub struct VmInfo {
    /// Its name.
    pub name: VmName,
    /// Its state.
    pub state: State,
    /// Its configuration.
    pub config: VmConfig,
    /// The process of its monitor.
    pub pid: Option<u32>,
    /// How its last run ended, where it has.
    pub exit: Option<ExitRecord>,
    /// Whether it goes when whoever runs it does.
    pub ephemeral: bool,
    /// Its directory.
    pub dir: VmDir,
    /// When it was made, in ISO 8601.
    pub created_at: String,
    /// When its state last changed, in ISO 8601.
    pub updated_at: String,
}

/// All VMs of one home directory.
pub struct Runtime {
    pub(crate) home: Home,
    pub(crate) binary: Option<PathBuf>,
    store: OnceLock<Box<dyn Store>>,
}

impl Runtime {
    /// Takes a home directory. Nothing is opened or made before it is needed.
    pub fn open(options: Options) -> Result<Self> {
        Ok(Self { home: Home::at(&options.home)?, binary: options.binary, store: OnceLock::new() })
    }

    /// Where everything lies.
    pub fn home(&self) -> &Home {
        &self.home
    }

    /// What is remembered; opened, and where needed made, at the first call.
    pub fn store(&self) -> Result<&dyn Store> {
        if let Some(store) = self.store.get() {
            return Ok(&**store);
        }
        self.home.prepare()?;
        let store: Box<dyn Store> = Box::new(SqliteStore::open(&self.home.database())?);
        Ok(&**self.store.get_or_init(|| store))
    }

    /// Whether there is anything to remember: asking costs no more than a look at the home directory.
    pub fn is_empty_home(&self) -> bool {
        !self.home.database().exists()
    }

    /// What the installed monitors can do, each monitor's preferred profile first.
    pub fn backends(&self) -> Vec<(&'static str, Result<Vec<Capabilities>>)> {
        let qemu = self.qemu();
        vec![(qemu.name(), self.probe(&qemu))]
    }

    pub(crate) fn qemu(&self) -> Qemu {
        Qemu::find(self.vmm_cache())
    }

    pub(crate) fn vmm_cache(&self) -> PathBuf {
        self.home.root().join("cache/vmm")
    }

    pub(crate) fn probe(&self, backend: &dyn Backend) -> Result<Vec<Capabilities>> {
        self.home.prepare()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Error::system("look at the monitors", error))?;
        // A probe that outlived a killed command would be nobody's.
        runtime.block_on(backend.probe(&BoundSpawner)).map_err(Error::vmm)
    }

    /// Every VM by name, as it is now.
    pub fn list(&self) -> Result<Vec<VmInfo>> {
        if self.is_empty_home() {
            return Ok(Vec::new());
        }
        self.settle_dead(None)?;
        let rows = self.store()?.vms()?;
        let rows = rows.into_iter().map(|row| self.observe(row)).collect::<Result<Vec<_>>>()?;
        rows.into_iter().flatten().map(|row| self.info(row)).collect()
    }

    /// One VM as it is now.
    pub fn inspect(&self, name: &VmName) -> Result<VmInfo> {
        self.info(self.row(name)?)
    }

    /// What of a row is known to be so now.
    pub(crate) fn row(&self, name: &VmName) -> Result<VmRow> {
        let missing = || Error::no_such_vm(name);
        if self.is_empty_home() {
            return Err(missing());
        }
        self.settle_dead(Some(name))?;
        let row = self.store()?.vm(name)?.ok_or_else(missing)?;
        self.observe(row)?.ok_or_else(missing)
    }

    pub(crate) fn info(&self, row: VmRow) -> Result<VmInfo> {
        let config = parse_config(&row)?;
        let exit = row.detail.as_deref().and_then(|detail| serde_json::from_str(detail).ok());
        let dir = self.home.vm(&row.name);
        // A shim that has started its monitor again says so in its own record.
        let recorded = if row.state.has_vmm() { state::read_state(&dir).ok().flatten() } else { None };
        let pid = recorded.and_then(|state| state.vmm).map_or(row.pid, |vmm| Some(vmm.pid));
        Ok(VmInfo {
            name: row.name,
            state: row.state,
            config,
            pid,
            exit,
            ephemeral: row.ephemeral,
            dir,
            created_at: row.created_at,
            updated_at: row.updated_at,
        })
    }

    /// The VMs that depend on an image: writing to it changes what they see.
    pub fn image_users(&self, image: &Path) -> Result<Vec<VmName>> {
        if self.is_empty_home() {
            return Ok(Vec::new());
        }
        let path = image.canonicalize().map_err(|source| Error::host("find", image, source))?;
        let identity = crate::FileIdentity::of(&path)?;
        let mut users = Vec::new();
        for name in self.store()?.image_users(&path, identity.device, identity.inode)? {
            // One that is gone with whoever ran it depends on nothing any more.
            match self.row(&name) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                row => {
                    row?;
                    users.push(name);
                }
            }
        }
        Ok(users)
    }

    /// Runs a program in a guest. The store is not opened for this.
    pub fn exec(&self, name: &VmName, request: &ExecRequest) -> Result<Session> {
        self.connect(name)?.exec(request)
    }

    /// Writes a file in a guest; answers its length in bytes.
    pub fn put(&self, name: &VmName, request: &PutRequest, from: &mut dyn Read) -> Result<u64> {
        self.connect(name)?.put(request, from)
    }

    /// Reads a file of a guest.
    pub fn get(&self, name: &VmName, path: &[u8], to: &mut dyn Write) -> Result<FileInfo> {
        self.connect(name)?.get(path, to)
    }

    /// Whether the agent in the guest answers its shim now.
    pub fn agent_answers(&self, name: &VmName) -> Result<bool> {
        let status: protocol::Status = self.connect(name)?.ask(&protocol::Request::Status)?;
        Ok(status.agent)
    }

    /// Connects to a VM's shim; where there is none, says in what state the VM is.
    pub(crate) fn connect(&self, name: &VmName) -> Result<Connection> {
        if let Some(connection) = Connection::open(name, &self.home.vm(name))? {
            return Ok(connection);
        }
        let row = self.row(name)?;
        match machine::request(row.state, Request::Use) {
            Err(refusal) => Err(Error::refused(name, Request::Use, refusal)),
            Ok(_) => Err(Error::shim(name, ErrorKind::Io, "does not listen; `vm reconcile` clears up")),
        }
    }

    /// Waits until a VM has ended, at most so long; answers how, or nothing where it still runs.
    ///
    /// A VM that does not run is not waited for.
    pub fn wait(&self, name: &VmName, timeout: Option<Duration>) -> Result<Option<VmInfo>> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            let row = self.row(name)?;
            if !row.state.has_vmm() {
                return self.info(row).map(Some);
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Ok(None);
            }
            if let Some(connection) = Connection::open(name, &self.home.vm(name))? {
                connection.wait_end(left)?;
            }
            // The shim answers a moment before it lets go of the VM.
            self.wait_unlocked(name, left.unwrap_or(Duration::from_secs(5)).min(Duration::from_secs(5)))?;
        }
    }

    pub(crate) fn owner(&self) -> Result<ProcessIdentity> {
        process::own()
    }
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runtime")
            .field("home", &self.home)
            .field("binary", &self.binary)
            .finish_non_exhaustive()
    }
}

pub(crate) fn parse_config(row: &VmRow) -> Result<VmConfig> {
    serde_json::from_str(&row.config)
        .map_err(|error| Error::row(row.name.as_str(), "configuration", &error.to_string()))
}
