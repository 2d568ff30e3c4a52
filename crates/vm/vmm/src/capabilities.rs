use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::spec::{DiskFormat, Requirement};

/// A kind of machine that one backend offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Profile {
    /// QEMU's machine without PCI and firmware, for direct kernel boots.
    #[serde(rename = "qemu/microvm")]
    QemuMicrovm,
    /// QEMU's PC with PCI Express.
    #[serde(rename = "qemu/q35")]
    QemuQ35,
    /// A process on the host that stands for a machine in tests.
    #[serde(rename = "fake")]
    Fake,
}

impl Profile {
    /// Every profile there is.
    pub const ALL: [Self; 3] = [Self::QemuMicrovm, Self::QemuQ35, Self::Fake];

    /// The name by which a specification asks for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::QemuMicrovm => "qemu/microvm",
            Self::QemuQ35 => "qemu/q35",
            Self::Fake => "fake",
        }
    }

    /// The backend that offers it: the part before the slash.
    pub fn backend(self) -> &'static str {
        self.as_str().split('/').next().unwrap_or_default()
    }
}

impl std::fmt::Display for Profile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Who executes a guest's instructions, once that has been decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    /// The processor, through the kernel.
    Kvm,
    /// A translator in the monitor.
    Tcg,
    /// The host itself, as an ordinary process: there is no guest.
    Host,
}

impl std::fmt::Display for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
            Self::Host => "host",
        })
    }
}

/// What one profile of one installed monitor can do, as data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// The kind of machine.
    pub profile: Profile,
    /// The monitor's version as it states it.
    pub version: String,
    /// Who can execute the guest, the fastest first.
    pub engines: Vec<Engine>,
    /// Why an engine is absent from `engines`.
    pub engines_missing: BTreeMap<Engine, String>,
    /// What sizes and counts it can serve.
    pub limits: Limits,
    /// The disk formats it reads.
    pub disk_formats: BTreeSet<DiskFormat>,
    /// Whether a guest can have a channel for the agent.
    pub agent: bool,
    /// Whether a guest can have a serial console.
    pub console: bool,
    /// The abilities it has.
    pub offers: BTreeSet<Requirement>,
    /// Why it lacks the other abilities.
    pub lacks: BTreeMap<Requirement, String>,
    /// Requests that it cannot serve together.
    pub exclusions: Vec<Exclusion>,
}

/// The sizes and counts that a profile can serve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// The most processors.
    pub cpus: u32,
    /// The least memory in bytes.
    pub memory_min: u64,
    /// The most memory in bytes.
    pub memory_max: u64,
    /// The most disks.
    pub disks: usize,
    /// The longest kernel command line in bytes that a caller can give.
    pub cmdline: usize,
}

/// Two things that one machine cannot have together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exclusion {
    /// The one.
    pub one: Feature,
    /// The other.
    pub other: Feature,
    /// Why.
    pub reason: String,
}

/// Something that a specification can ask for and that may exclude something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Feature {
    /// A required ability.
    Ability(Requirement),
    /// An engine.
    Engine(Engine),
    /// At least one disk.
    Disks,
    /// The agent's channel.
    Agent,
    /// The serial console.
    Console,
}

impl std::fmt::Display for Feature {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ability(requirement) => requirement.fmt(f),
            Self::Engine(engine) => engine.fmt(f),
            Self::Disks => f.write_str("disks"),
            Self::Agent => f.write_str("agent"),
            Self::Console => f.write_str("console"),
        }
    }
}
