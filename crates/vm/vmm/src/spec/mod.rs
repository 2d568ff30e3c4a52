//! What a caller asks for: one file per resource, each with its limits and its error.

mod boot;
mod disk;
mod machine;
mod name;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

pub use boot::{Boot, BootError, CMDLINE_MAX};
pub use disk::{Backing, Disk, DiskError, DiskFormat, SERIAL_MAX};
pub use machine::{Accelerator, MEMORY_UNIT, Machine, MachineError};
pub use name::{Name, NameError};

use crate::capabilities::Profile;

/// The description of one virtual machine, independent of who will run it.
///
/// ```
/// use vmwright_vmm::{Boot, Spec};
///
/// let spec = Spec::new("web".parse()?, Boot::direct("/boot/vmlinuz"));
/// spec.validate()?;
/// let text = serde_json::to_string(&spec)?;
/// assert_eq!(serde_json::from_str::<Spec>(&text)?, spec);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// What the machine is called.
    pub name: Name,
    /// The kind of machine wanted; where it is absent the first that can serve the rest is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<Profile>,
    /// Processors, memory and how they are executed.
    #[serde(default)]
    pub machine: Machine,
    /// What the machine runs first.
    pub boot: Boot,
    /// The disks, in the order in which the guest finds them.
    #[serde(default)]
    pub disks: Vec<Disk>,
    /// Whether the guest has a channel for the agent.
    #[serde(default = "yes")]
    pub agent: bool,
    /// Whether the guest has a serial console.
    #[serde(default = "yes")]
    pub console: bool,
    /// Abilities without which the machine is of no use to the caller.
    #[serde(default)]
    pub requires: BTreeSet<Requirement>,
}

fn yes() -> bool {
    true
}

/// An ability that a caller can insist on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Requirement {
    /// The machine can be paused and resumed.
    Pause,
    /// The processor itself keeps the guest apart from the host.
    HardwareVirtualization,
    /// The monitor gives up the system calls that it does not need.
    Sandbox,
}

impl std::fmt::Display for Requirement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Pause => "pause",
            Self::HardwareVirtualization => "hardware-virtualization",
            Self::Sandbox => "sandbox",
        })
    }
}

/// Why a specification makes no sense, whoever would run it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// The name is not a name.
    #[error("{0}")]
    Name(#[from] NameError),
    /// Processors or memory.
    #[error("{0}")]
    Machine(#[from] MachineError),
    /// Kernel, initramfs or command line.
    #[error("{0}")]
    Boot(#[from] BootError),
    /// One of the disks.
    #[error("disk {index}: {error}")]
    Disk {
        /// Which of the disks, counted from 0.
        index: usize,
        /// What is wrong with it.
        error: DiskError,
    },
    /// Two disks have one serial number.
    #[error("disks {first} and {second} have the same serial number")]
    SameSerial {
        /// One of them, counted from 0.
        first: usize,
        /// The other.
        second: usize,
    },
}

impl Spec {
    /// Describes a machine with the default processors and memory, an agent, a console and no disk.
    pub fn new(name: Name, boot: Boot) -> Self {
        Self {
            name,
            profile: None,
            machine: Machine::default(),
            boot,
            disks: Vec::new(),
            agent: true,
            console: true,
            requires: BTreeSet::new(),
        }
    }

    /// Checks what is wrong on every monitor: limits of a particular one are `admit`'s business.
    pub fn validate(&self) -> Result<(), SpecError> {
        self.machine.validate()?;
        self.boot.validate()?;
        for (index, disk) in self.disks.iter().enumerate() {
            disk.validate().map_err(|error| SpecError::Disk { index, error })?;
            let same = |other: &Disk| other.serial.is_some() && other.serial == disk.serial;
            if let Some(first) = self.disks[..index].iter().position(same) {
                return Err(SpecError::SameSerial { first, second: index });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
