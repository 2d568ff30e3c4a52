//! What a VM is made of, as its creator asked for it and as the store keeps it.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vmwright_vmm::fake::Fake;
use vmwright_vmm::{Accelerator, DiskFormat, Profile};

use crate::VmName;
use crate::base::{BaseImage, FileIdentity};

/// What a new VM is to be.
#[derive(Debug, Clone)]
pub struct CreateRequest {
    /// Its name; made up where absent.
    pub name: Option<VmName>,
    /// The disk image it starts from.
    pub disk: PathBuf,
    /// Whether it writes into that image or into an overlay of its own.
    pub disk_mode: DiskMode,
    /// What runs it.
    pub backend: BackendChoice,
    /// A kernel file on the host; where absent, the one on the disk.
    pub kernel: Option<PathBuf>,
    /// What to add to the kernel's parameters.
    pub cmdline_append: String,
    /// Who executes it.
    pub accelerator: Accelerator,
    /// Its memory in bytes.
    pub memory: u64,
    /// How many processors it has.
    pub cpus: u32,
    /// How long it may run.
    pub ttl: Option<Duration>,
    /// What its shim does when it ends by itself.
    pub restart: Restart,
}

impl CreateRequest {
    /// A VM with the defaults on the disk image.
    pub fn new(disk: impl Into<PathBuf>) -> Self {
        Self {
            name: None,
            disk: disk.into(),
            disk_mode: DiskMode::Isolated,
            backend: BackendChoice::Auto,
            kernel: None,
            cmdline_append: String::new(),
            accelerator: Accelerator::Auto,
            memory: 256 << 20,
            cpus: 1,
            ttl: None,
            restart: Restart::Never,
        }
    }
}

/// Where a VM's writes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskMode {
    /// Into an overlay of its own; the image stays as it is.
    Isolated,
    /// Into the image itself.
    Shared,
}

/// What runs a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BackendChoice {
    /// The first that can serve what is asked for.
    Auto,
    /// This kind of machine, or none.
    Profile(Profile),
    /// Any kind of machine that this monitor offers, such as `qemu`.
    Monitor(String),
    /// A process on the host that stands for a machine, for tests.
    Fake(Fake),
}

impl std::str::FromStr for BackendChoice {
    type Err = crate::Error;

    /// Reads `auto`, a monitor such as `qemu`, or a profile such as `qemu/microvm`.
    fn from_str(text: &str) -> crate::Result<Self> {
        let offered = || Profile::ALL.into_iter().filter(|profile| *profile != Profile::Fake);
        if text == "auto" {
            return Ok(Self::Auto);
        }
        if let Some(profile) = offered().find(|profile| profile.as_str() == text) {
            return Ok(Self::Profile(profile));
        }
        match offered().any(|profile| profile.backend() == text) {
            true => Ok(Self::Monitor(text.to_owned())),
            false => {
                let known: Vec<_> = offered().map(Profile::as_str).collect();
                Err(crate::Error::unsupported(format!(
                    "there is no backend {text}; there are auto, qemu, {}",
                    known.join(", ")
                )))
            }
        }
    }
}

/// What a shim does when its VM ends without having been stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// Nothing.
    Never,
    /// Starts it again where it died, at most so many times in a run.
    OnFailure(u32),
}

/// How the agent runs in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AgentMode {
    /// It is process 1; the disk's own init does not run.
    Init,
    /// It hands over to the disk's own init and stays beside it.
    Companion,
}

/// A VM's configuration as the store keeps it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VmConfig {
    /// The image it was made from, as it was then.
    pub base: BaseImage,
    /// Where its writes go.
    pub disk_mode: DiskMode,
    /// The disk it runs from: its overlay or the image itself.
    pub disk: PathBuf,
    /// The format of that disk.
    pub disk_format: DiskFormat,
    /// What its overlay was when it was made and empty, where it has one.
    #[serde(default)]
    pub pristine: Option<FileIdentity>,
    /// What runs it.
    pub backend: BackendChoice,
    /// A kernel file on the host; where absent, the one on the disk.
    pub kernel: Option<PathBuf>,
    /// What to add to the kernel's parameters.
    pub cmdline_append: String,
    /// Who executes it.
    pub accelerator: Accelerator,
    /// Its memory in bytes.
    pub memory: u64,
    /// How many processors it has.
    pub cpus: u32,
    /// How long it may run.
    pub ttl: Option<Duration>,
    /// What its shim does when it ends by itself.
    pub restart: Restart,
    /// How the agent runs in it.
    pub agent: AgentMode,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_is_named_by_monitor_or_profile() {
        assert_eq!("auto".parse::<BackendChoice>().unwrap(), BackendChoice::Auto);
        assert_eq!("qemu".parse::<BackendChoice>().unwrap(), BackendChoice::Monitor("qemu".into()));
        assert_eq!("qemu/q35".parse::<BackendChoice>().unwrap(), BackendChoice::Profile(Profile::QemuQ35));
        let error = "xen".parse::<BackendChoice>().unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Unsupported);
        assert!(error.to_string().contains("qemu/microvm"), "{error}");
        assert!("fake".parse::<BackendChoice>().is_err());
    }
}
