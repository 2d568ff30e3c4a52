//! Kernel and initramfs for a VM's next start.

use vmwright_vmm::{Boot, Profile};

use crate::config::{BackendChoice, VmConfig};
use crate::layout::VmDir;
use crate::runtime::Runtime;
use crate::{Error, Result};

/// What a machine boots from.
pub(crate) struct BootFiles;

impl BootFiles {
    pub(crate) fn of(_runtime: &Runtime, config: &VmConfig, profile: Profile) -> Result<Self> {
        match &config.backend {
            BackendChoice::Fake(_) => Ok(Self),
            _ => Err(Error::unsupported(format!("no boot files are made for {profile} yet"))),
        }
    }

    pub(crate) fn place(&self, _dir: &VmDir, _boot: &mut Boot) -> Result<()> {
        Ok(())
    }
}
