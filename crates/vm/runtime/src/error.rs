use std::io;
use std::path::{Path, PathBuf};

pub use vmwright_disk::ErrorKind;

use crate::VmName;
use crate::machine::{Refusal, Request};

/// The result of an operation on virtual machines.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error from the life of a virtual machine.
#[derive(Debug)]
pub struct Error(Box<Reason>);

/// What kept a guest from being used after its VMM started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestSilence {
    /// What happened, as in "no answer from its agent within 60 s".
    pub what: String,
    /// The last lines of its console.
    pub console: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
enum Reason {
    #[error("cannot {action} {}", path.display())]
    Host { action: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot {action}")]
    System { action: &'static str, source: io::Error },
    #[error("cannot {action} the store")]
    Store { action: &'static str, source: rusqlite::Error },
    #[error("the store {} has version {found}; this program knows up to {known}: use a newer vmwright", path.display())]
    StoreVersion { path: PathBuf, found: i64, known: i64 },
    #[error("{} lies on {filesystem}, a network filesystem, where the store's locks do not hold: choose another VMWRIGHT_HOME", path.display())]
    NetworkFilesystem { path: PathBuf, filesystem: String },
    #[error("{} is not a directory of this user", path.display())]
    NotPrivate { path: PathBuf },
    #[error("{} is not a record of this program", path.display())]
    Record { path: PathBuf, source: serde_json::Error },
    #[error("{} has version {found}; this program knows {known}", path.display())]
    RecordVersion { path: PathBuf, found: u32, known: u32 },
    #[error("{name:?} is no name for a VM: {why}")]
    BadName { name: String, why: &'static str },
    #[error("there is no VM {name}")]
    NoSuchVm { name: VmName },
    #[error("there is a VM {name} already")]
    VmExists { name: VmName },
    #[error("cannot {} {name}: {refusal}", request.verb())]
    Refused { name: VmName, request: Request, refusal: Refusal },
    #[error("cannot {action} {name}: process {pid} is busy with it ({operation})")]
    Busy { name: VmName, action: &'static str, operation: String, pid: u32 },
    #[error("no {what} is left between {first} and {last}")]
    Exhausted { what: &'static str, first: String, last: String },
    #[error("{what} of VM {name}: {state}")]
    Row { name: String, what: &'static str, state: String },
    #[error("the base image {} has changed: its {what} was {expected} when {name} was made and is {actual} now; what {name} wrote on top no longer fits", path.display())]
    BaseChanged { name: VmName, path: PathBuf, what: &'static str, expected: String, actual: String },
    #[error("{}", say_silence(.name, .silence))]
    Silence { name: VmName, silence: GuestSilence },
    #[error("cannot start {name}: {detail}")]
    Start { name: VmName, detail: String },
    #[error("the shim of {name} {what}")]
    Shim { name: VmName, kind: ErrorKind, what: String },
    #[error("{name}: {what}")]
    Says { name: VmName, kind: ErrorKind, what: String },
    #[error("no program for the shim: set VMWRIGHT_BIN, or put vmwright on PATH")]
    NoBinary,
    #[error("{what}")]
    Invalid { what: String },
    #[error("{what}")]
    Unsupported { what: String },
    #[error("{inner}")]
    Layer { kind: ErrorKind, inner: Box<dyn std::error::Error + Send + Sync> },
}

fn say_silence(name: &VmName, silence: &GuestSilence) -> String {
    let mut text = format!("{name}: {}", silence.what);
    match silence.console.as_slice() {
        [] => text.push_str("; its console stayed empty"),
        lines => {
            text.push_str("; the last lines of its console:");
            lines.iter().for_each(|line| text.push_str(&format!("\n  | {line}")));
        }
    }
    text
}

impl Error {
    fn new(reason: Reason) -> Self {
        Self(Box::new(reason))
    }

    pub(crate) fn host(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::new(Reason::Host { action, path: path.to_owned(), source })
    }

    pub(crate) fn system(action: &'static str, source: impl Into<io::Error>) -> Self {
        Self::new(Reason::System { action, source: source.into() })
    }

    pub(crate) fn store(action: &'static str) -> impl FnOnce(rusqlite::Error) -> Self {
        move |source| Self::new(Reason::Store { action, source })
    }

    pub(crate) fn store_version(path: &Path, found: i64, known: i64) -> Self {
        Self::new(Reason::StoreVersion { path: path.to_owned(), found, known })
    }

    pub(crate) fn network_filesystem(path: &Path, filesystem: &str) -> Self {
        Self::new(Reason::NetworkFilesystem { path: path.to_owned(), filesystem: filesystem.to_owned() })
    }

    pub(crate) fn not_private(path: &Path) -> Self {
        Self::new(Reason::NotPrivate { path: path.to_owned() })
    }

    pub(crate) fn record(path: &Path, source: serde_json::Error) -> Self {
        Self::new(Reason::Record { path: path.to_owned(), source })
    }

    pub(crate) fn record_version(path: &Path, found: u32, known: u32) -> Self {
        Self::new(Reason::RecordVersion { path: path.to_owned(), found, known })
    }

    pub(crate) fn bad_name(name: &str, why: &'static str) -> Self {
        Self::new(Reason::BadName { name: name.to_owned(), why })
    }

    pub(crate) fn no_such_vm(name: &VmName) -> Self {
        Self::new(Reason::NoSuchVm { name: name.clone() })
    }

    pub(crate) fn vm_exists(name: &VmName) -> Self {
        Self::new(Reason::VmExists { name: name.clone() })
    }

    pub(crate) fn refused(name: &VmName, request: Request, refusal: Refusal) -> Self {
        Self::new(Reason::Refused { name: name.clone(), request, refusal })
    }

    pub(crate) fn busy(name: &VmName, action: &'static str, operation: &str, pid: u32) -> Self {
        Self::new(Reason::Busy { name: name.clone(), action, operation: operation.to_owned(), pid })
    }

    pub(crate) fn exhausted(what: &'static str, first: String, last: String) -> Self {
        Self::new(Reason::Exhausted { what, first, last })
    }

    pub(crate) fn row(name: &str, what: &'static str, state: &str) -> Self {
        Self::new(Reason::Row { name: name.to_owned(), what, state: state.to_owned() })
    }

    pub(crate) fn base_changed(
        name: &VmName,
        path: &Path,
        what: &'static str,
        expected: String,
        actual: String,
    ) -> Self {
        Self::new(Reason::BaseChanged { name: name.clone(), path: path.to_owned(), what, expected, actual })
    }

    pub(crate) fn silence(name: &VmName, silence: GuestSilence) -> Self {
        Self::new(Reason::Silence { name: name.clone(), silence })
    }

    pub(crate) fn start(name: &VmName, detail: impl Into<String>) -> Self {
        Self::new(Reason::Start { name: name.clone(), detail: detail.into() })
    }

    pub(crate) fn shim(name: &VmName, kind: ErrorKind, what: impl Into<String>) -> Self {
        Self::new(Reason::Shim { name: name.clone(), kind, what: what.into() })
    }

    /// What the shim, or the guest through it, answered instead of doing what was asked.
    pub(crate) fn shim_says(name: &VmName, kind: ErrorKind, what: impl Into<String>) -> Self {
        Self::new(Reason::Says { name: name.clone(), kind, what: what.into() })
    }

    pub(crate) fn no_binary() -> Self {
        Self::new(Reason::NoBinary)
    }

    pub(crate) fn invalid(what: impl Into<String>) -> Self {
        Self::new(Reason::Invalid { what: what.into() })
    }

    pub(crate) fn unsupported(what: impl Into<String>) -> Self {
        Self::new(Reason::Unsupported { what: what.into() })
    }

    /// Wraps the error of a crate beneath, which speaks for itself.
    pub(crate) fn layer(kind: ErrorKind, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::new(Reason::Layer { kind, inner: Box::new(source) })
    }

    /// Wraps an error of the layer that runs monitors.
    pub(crate) fn vmm(source: vmwright_vmm::Error) -> Self {
        use vmwright_vmm::ErrorKind as Vmm;
        let kind = match source.kind() {
            Vmm::Missing => ErrorKind::NotFound,
            Vmm::InvalidInput => ErrorKind::InvalidInput,
            Vmm::InUse => ErrorKind::InUse,
            Vmm::Unsupported => ErrorKind::Unsupported,
            _ => ErrorKind::Io,
        };
        Self::layer(kind, source)
    }

    /// What the guest's console said last, where the guest did not answer.
    pub fn guest_silence(&self) -> Option<&GuestSilence> {
        match &*self.0 {
            Reason::Silence { silence, .. } => Some(silence),
            _ => None,
        }
    }

    /// What sort of failure this is.
    pub fn kind(&self) -> ErrorKind {
        match &*self.0 {
            Reason::Host { source, .. } | Reason::System { source, .. } => io_kind(source),
            Reason::Store { source, .. } => store_kind(source),
            Reason::StoreVersion { .. }
            | Reason::RecordVersion { .. }
            | Reason::NetworkFilesystem { .. }
            | Reason::Unsupported { .. } => ErrorKind::Unsupported,
            Reason::Record { .. } | Reason::Row { .. } => ErrorKind::Corrupt,
            Reason::NoSuchVm { .. } | Reason::NoBinary => ErrorKind::NotFound,
            Reason::VmExists { .. } => ErrorKind::Exists,
            Reason::Refused { .. } | Reason::Busy { .. } | Reason::BaseChanged { .. } => ErrorKind::InUse,
            Reason::Exhausted { .. } => ErrorKind::NoSpace,
            Reason::BadName { .. } | Reason::NotPrivate { .. } | Reason::Invalid { .. } => {
                ErrorKind::InvalidInput
            }
            Reason::Silence { .. } | Reason::Start { .. } => ErrorKind::Io,
            Reason::Shim { kind, .. } | Reason::Says { kind, .. } | Reason::Layer { kind, .. } => *kind,
        }
    }
}

fn io_kind(error: &io::Error) -> ErrorKind {
    match error.kind() {
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        io::ErrorKind::AlreadyExists => ErrorKind::Exists,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
        io::ErrorKind::ReadOnlyFilesystem => ErrorKind::ReadOnly,
        _ => ErrorKind::Io,
    }
}

fn store_kind(error: &rusqlite::Error) -> ErrorKind {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DiskFull) => ErrorKind::NoSpace,
        Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => ErrorKind::InUse,
        Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase) => ErrorKind::Corrupt,
        Some(rusqlite::ErrorCode::ReadOnly) => ErrorKind::ReadOnly,
        _ => ErrorKind::Io,
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &*self.0 {
            // The wrapped error speaks for this one, so what is beneath it comes next.
            Reason::Layer { inner, .. } => inner.source(),
            reason => reason.source(),
        }
    }
}
