//! One interface over virtual machine monitors.
//!
//! A [`Spec`] says what machine is wanted; a [`Backend`] probes what its installed monitor can do
//! and answers with [`Capabilities`]; [`choose`] brings them together once, before anything starts, and refuses
//! by name all that cannot be served; [`Backend::launch`] starts what was [`Admitted`] and answers with an [`Instance`].
//!
//! ```text
//!            validate             choose                launch
//!   Spec ───────────────▶ Spec ───────────▶ Admitted ────────────▶ Instance ──▶ Exit
//!                                 ▲                      ▲
//!              Backend::probe ────┘       Spawner, dir ──┘
//! ```
//!
//! Processes are created through a [`Spawner`] that the caller lends, so that the caller decides
//! in what cgroup and with which death signal a monitor runs.
#![forbid(unsafe_code)]

mod admit;
mod backend;
mod cache;
mod capabilities;
#[cfg(feature = "test-util")]
pub mod conformance;
mod console;
mod dir;
mod error;
pub mod fake;
mod identity;
mod process;
pub mod qemu;
mod spawner;
mod spec;
mod tsc;

pub use admit::{Admitted, Refusal, Refusals, admit, choose};
pub use backend::{AGENT_PORT, Backend, BoxFuture, Exit, ExitReason, Instance, Pause, Resources, Start};
pub use capabilities::{Capabilities, Engine, Exclusion, Feature, Limits, Profile};
pub use error::{Error, ErrorKind, Result};
pub use identity::{ProcessIdentity, boot_id};
pub use spawner::{PlainSpawner, Program, Spawner};
pub use spec::{
    Accelerator, Backing, Boot, BootError, CMDLINE_MAX, Disk, DiskError, DiskFormat, MEMORY_UNIT, Machine,
    MachineError, Name, NameError, Requirement, SERIAL_MAX, Spec, SpecError,
};
