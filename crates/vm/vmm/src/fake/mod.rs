//! A backend for tests: a real process on the host stands for the machine.
//!
//! It runs a program, usually the agent itself, with `--listen-unix DIR/a`. Since it is a
//! process like any monitor, killing it, or whoever owns it, means what it means elsewhere.

mod instance;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::admit::Admitted;
use crate::backend::{Backend, BoxFuture, Instance, Resources, Start};
use crate::capabilities::{Capabilities, Engine, Limits, Profile};
use crate::error::Result;
use crate::spawner::Spawner;
use crate::spec::{CMDLINE_MAX, DiskFormat, MEMORY_UNIT, Requirement};

/// The argument before the path on which the program listens.
pub const LISTEN_ARGUMENT: &str = "--listen-unix";

/// The backend for tests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fake {
    /// The program that stands for the machine; it listens where [`LISTEN_ARGUMENT`] says.
    pub program: PathBuf,
    /// What goes wrong.
    #[serde(default)]
    pub fault: Fault,
}

/// What goes wrong with a fake machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Fault {
    /// Nothing.
    #[default]
    None,
    /// The start fails after the process exists.
    StartFails,
    /// The process is killed, by nobody who asked, once it has run for these milliseconds.
    DiesAfter(u64),
    /// Connections to the agent are accepted and never answered.
    AgentSilent,
    /// The start takes these milliseconds more.
    Slow(u64),
}

impl Fake {
    /// A machine without faults.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), fault: Fault::None }
    }

    /// The same with a fault.
    pub fn with_fault(self, fault: Fault) -> Self {
        Self { fault, ..self }
    }

    /// What a fake machine can do.
    pub fn capabilities() -> Capabilities {
        let none = "there is no guest, only a process on the host";
        Capabilities {
            profile: Profile::Fake,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            engines: vec![Engine::Host],
            engines_missing: [Engine::Kvm, Engine::Tcg].map(|engine| (engine, none.to_owned())).into(),
            limits: Limits {
                cpus: 1024,
                memory_min: MEMORY_UNIT,
                memory_max: 1 << 46,
                disks: 1024,
                cmdline: CMDLINE_MAX,
            },
            disk_formats: [DiskFormat::Raw, DiskFormat::Qcow2].into(),
            agent: true,
            console: true,
            offers: [].into(),
            lacks: [Requirement::Pause, Requirement::Sandbox].map(|lack| (lack, none.to_owned())).into(),
            exclusions: Vec::new(),
        }
    }
}

impl Fault {
    fn delay(self) -> Duration {
        match self {
            Self::Slow(millis) => Duration::from_millis(millis),
            _ => Duration::ZERO,
        }
    }
}

impl Backend for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn probe<'a>(&'a self, _: &'a dyn Spawner) -> BoxFuture<'a, Result<Vec<Capabilities>>> {
        Box::pin(async { Ok(vec![Self::capabilities()]) })
    }

    fn launch<'a>(
        &'a self,
        spec: &'a Admitted,
        dir: &'a Path,
        start: Start,
        resources: Resources<'a>,
    ) -> BoxFuture<'a, Result<Box<dyn Instance>>> {
        Box::pin(async move {
            let Start::Boot = start;
            let instance = instance::launch(self, spec, dir, resources.spawner).await?;
            Ok(Box::new(instance) as Box<dyn Instance>)
        })
    }
}
