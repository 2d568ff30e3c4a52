//! What the host remembers of its virtual machines.
//!
//! A store is asked and told by commands only; shims never open it. No call leaves a transaction open, so
//! none is ever held across a side effect: what a crash in between would lose is written down before, as an
//! open [`Operation`].

mod filesystem;
mod migrations;
mod sqlite;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use sqlite::SqliteStore;

use crate::machine::State;
use crate::{Result, VmName};
use vmwright_vmm::ProcessIdentity;

/// A VM as the store has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmRow {
    /// Its name.
    pub name: VmName,
    /// What it was when somebody last looked.
    pub state: State,
    /// Its configuration, as JSON.
    pub config: String,
    /// Its network configuration, as JSON.
    pub network: Option<String>,
    /// The process of its VMM.
    pub pid: Option<u32>,
    /// Where its shim listens.
    pub socket_path: Option<PathBuf>,
    /// Which of its runs the state is of.
    pub run: Option<String>,
    /// How its last run ended, where it has.
    pub detail: Option<String>,
    /// Whether it goes when whoever runs it does.
    pub ephemeral: bool,
    /// When it was made, in ISO 8601.
    pub created_at: String,
    /// When this row was last changed, in ISO 8601.
    pub updated_at: String,
}

/// What a new VM starts out with.
#[derive(Debug, Clone)]
pub struct NewVm<'a> {
    /// Its name.
    pub name: &'a VmName,
    /// Its configuration, as JSON.
    pub config: &'a str,
    /// The images it reads and does not own.
    pub images: &'a [ImageUse],
    /// Whether it goes when whoever runs it does.
    pub ephemeral: bool,
}

/// What changes in a VM's row when its state does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmChange {
    /// The new state.
    pub state: State,
    /// The process of its VMM.
    pub pid: Option<u32>,
    /// Where its shim listens.
    pub socket_path: Option<PathBuf>,
    /// Which run this is of.
    pub run: Option<String>,
    /// How that run ended, where it has.
    pub detail: Option<String>,
}

/// An image that a VM depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageUse {
    /// Its canonical path.
    pub path: PathBuf,
    /// The device it lies on.
    pub device: u64,
    /// Its inode there.
    pub inode: u64,
    /// Whether the VM writes into it; otherwise it is the base of a disk of the VM's own.
    pub writes: bool,
}

/// What somebody set out to do with a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum OperationKind {
    Create,
    Start,
    Stop,
    Delete,
    Reconcile,
}

impl OperationKind {
    const ALL: [Self; 5] = [Self::Create, Self::Start, Self::Stop, Self::Delete, Self::Reconcile];

    /// The verb.
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Delete => "delete",
            Self::Reconcile => "reconcile",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// The number of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OperationId(pub(crate) i64);

/// An intent, written down before the first side effect and closed after the last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// Its number.
    pub id: OperationId,
    /// The VM it is about.
    pub vm: VmName,
    /// What it is.
    pub kind: OperationKind,
    /// Who carries it out; where that process is dead, whoever meets the operation settles it.
    pub owner: ProcessIdentity,
}

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// As intended.
    Done,
    /// With an error; what it had begun is undone.
    Failed,
    /// Its owner died; somebody else undid it.
    Undone,
}

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Undone => "undone",
        }
    }
}

/// The answer to an attempt at opening an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begun {
    /// It is open, and the caller's.
    Opened(OperationId),
    /// The VM has another one open.
    Taken(Operation),
}

/// Something that happened to a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EventRow {
    /// Its number: later ones have greater numbers.
    pub id: i64,
    /// The VM.
    pub vm: String,
    /// What happened, in a word.
    pub kind: String,
    /// More about it.
    pub detail: String,
    /// When, in ISO 8601.
    pub created_at: String,
}

/// An address on loan to a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IpLease {
    /// The guest's address.
    pub ip: std::net::Ipv4Addr,
    /// The name of its TAP device, derived from the address.
    pub tap_device: String,
}

/// The addresses that leases come out of, first and last included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpPool {
    /// The first address.
    pub first: std::net::Ipv4Addr,
    /// The last address.
    pub last: std::net::Ipv4Addr,
}

impl Default for IpPool {
    fn default() -> Self {
        Self { first: [172, 16, 0, 2].into(), last: [172, 16, 0, 254].into() }
    }
}

/// The host ports that forwards come out of, first and last included.
pub const SSH_PORTS: std::ops::RangeInclusive<u16> = 2200..=2999;

/// What remembers VMs, leases, images, operations and events.
pub trait Store: Send + Sync {
    /// Adds a VM in state CREATED together with its open operation `create`, and the images it uses.
    fn create_vm(&self, vm: &NewVm<'_>, owner: &ProcessIdentity) -> Result<OperationId>;

    /// One VM.
    fn vm(&self, name: &VmName) -> Result<Option<VmRow>>;

    /// All VMs by name.
    fn vms(&self) -> Result<Vec<VmRow>>;

    /// Changes a VM's row if it still is of `state` and `run`; answers whether it was.
    fn change_vm(&self, name: &VmName, state: State, run: Option<&str>, change: &VmChange) -> Result<bool>;

    /// Removes a VM with its leases, images and operations; answers whether it was there.
    fn delete_vm(&self, name: &VmName) -> Result<bool>;

    /// Opens an operation unless the VM has one open.
    fn begin(&self, name: &VmName, kind: OperationKind, owner: &ProcessIdentity) -> Result<Begun>;

    /// Gives an open operation of a dead owner to another; answers whether nobody else was faster.
    fn take_over(&self, operation: &Operation, owner: &ProcessIdentity) -> Result<bool>;

    /// Replaces a VM's configuration.
    fn configure_vm(&self, name: &VmName, config: &str) -> Result<()>;

    /// Closes an operation, and changes its VM's row in the same step.
    fn finish(&self, id: OperationId, outcome: Outcome, change: Option<&VmChange>) -> Result<()>;

    /// Every operation that is open.
    fn open_operations(&self) -> Result<Vec<Operation>>;

    /// The VMs that use the image of that device and inode, or of that path.
    fn image_users(&self, path: &Path, device: u64, inode: u64) -> Result<Vec<VmName>>;

    /// Lends a VM an address out of the pool; the same one again if it has one.
    fn lease_ip(&self, name: &VmName, pool: IpPool) -> Result<IpLease>;

    /// Takes a VM's address back.
    fn release_ip(&self, name: &VmName) -> Result<()>;

    /// Reserves a host port of [`SSH_PORTS`] for a VM; the same one again if it has one.
    fn reserve_ssh_port(&self, name: &VmName, guest_port: u16) -> Result<u16>;

    /// Gives a VM's host port back.
    fn release_ssh_port(&self, name: &VmName) -> Result<()>;

    /// Writes down what happened. The newest 10,000 are kept.
    fn record_event(&self, name: &VmName, kind: &str, detail: &str) -> Result<()>;

    /// What happened after the event of number `after`, oldest first.
    fn events(&self, after: i64) -> Result<Vec<EventRow>>;
}
