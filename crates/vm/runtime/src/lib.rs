//! The life of a virtual machine: state, shim, agent sessions, recovery.
//!
//! A [`Runtime`] stands over one home directory. Its calls block, and may be made from any number of threads
//! and processes at once; nothing runs in between but one shim per running VM.
//!
//! ```text
//! Runtime ── store (SQLite): what is, who is busy with it
//!    │
//!    ├─ create   overlay on a disk image
//!    ├─ start ──▶ shim ──▶ monitor ──▶ guest ──▶ agent
//!    ├─ exec, put, get ──▶ shim.sock ──────────────┘
//!    ├─ stop, delete, prune
//!    └─ reconcile: after any crash, as if it had not begun
//! ```
//!
//! Programs that use this library must also be able to be a shim: where the first argument is
//! [`shim::ARGUMENT`], `main` hands the rest to [`shim::main`] before it does anything else.
//!
//! ```no_run
//! use vmwright_runtime::{CreateRequest, ExecRequest, Options, Runtime, SessionEvent, StartOptions, StopOptions};
//!
//! let runtime = Runtime::open(Options::new("/var/lib/vmwright"))?;
//! let vm = runtime.create(&CreateRequest::new("debian.qcow2"))?;
//! runtime.start(&vm.name, &StartOptions::default())?;
//! let argv = vec![b"uname".to_vec(), b"-a".to_vec()];
//! let mut session = runtime.exec(&vm.name, &ExecRequest { argv, ..ExecRequest::default() })?;
//! while let Some(event) = session.output.next_event()? {
//!     match event {
//!         SessionEvent::Stdout(bytes) => print!("{}", String::from_utf8_lossy(&bytes)),
//!         SessionEvent::Stderr(_) => {}
//!         SessionEvent::Exit(status) => println!("{status:?}"),
//!     }
//! }
//! runtime.stop(&vm.name, &StopOptions::default())?;
//! runtime.delete(&vm.name, false)?;
//! # Ok::<(), vmwright_runtime::Error>(())
//! ```

#![deny(unsafe_code)]

mod base;
mod boot_files;
mod client;
mod config;
mod create;
mod disks;
mod ephemeral;
mod error;
pub mod fault;
mod layout;
mod lock;
mod logs;
pub mod machine;
mod name;
mod operations;
mod process;
mod protocol;
mod record;
mod runtime;
pub mod shim;
mod start;
mod stop;
pub mod store;
// The one place for calls that the safe libraries do not offer; each block says why it is sound.
#[allow(unsafe_code)]
mod sys;

pub use base::{BackingImage, BaseImage, FileIdentity};
pub use client::{ExecRequest, ExitStatus, PutRequest, Session, SessionEvent, SessionInput, SessionOutput};
pub use config::{AgentMode, BackendChoice, CreateRequest, DiskMode, Restart, VmConfig};
pub use ephemeral::{Ephemeral, RunRequest};
pub use error::{Error, ErrorKind, GuestSilence, Result};
pub use layout::{Home, VmDir};
pub use machine::State;
pub use name::VmName;
pub use operations::Reconciled;
pub use protocol::{FileInfo, PROTOCOL};
pub use runtime::{Options, Runtime, VmInfo};
pub use shim::state::{ExitCause, ExitRecord};
pub use start::{StartOptions, Started};
pub use stop::StopOptions;
