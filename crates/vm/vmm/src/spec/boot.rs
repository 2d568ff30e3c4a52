use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The longest kernel command line in bytes, the closing zero not counted; see the x86 boot protocol.
pub const CMDLINE_MAX: usize = 2047;

/// A kernel that the monitor loads by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Boot {
    /// The kernel, an ELF `vmlinux` or a bzImage, on the host.
    pub kernel: PathBuf,
    /// The initramfs on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initramfs: Option<PathBuf>,
    /// The kernel's parameters; a backend adds what its machine needs and these do not settle.
    #[serde(default)]
    pub cmdline: String,
}

/// Why a boot request makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BootError {
    /// A path that says nothing.
    #[error("the {what} has an empty path")]
    EmptyPath {
        /// Which of the files.
        what: &'static str,
    },
    /// The parameters are longer than a kernel reads.
    #[error("the kernel's command line has {len} bytes, at most {CMDLINE_MAX} are read")]
    CmdlineLength {
        /// How many bytes there are.
        len: usize,
    },
    /// The parameters have a byte that ends or breaks them.
    #[error("the kernel's command line has a control character at byte {position}")]
    CmdlineControl {
        /// Where, in bytes from 0.
        position: usize,
    },
}

impl Boot {
    /// Boots a kernel without initramfs and parameters.
    pub fn direct(kernel: impl Into<PathBuf>) -> Self {
        Self { kernel: kernel.into(), initramfs: None, cmdline: String::new() }
    }

    /// Checks what no monitor could serve.
    pub fn validate(&self) -> Result<(), BootError> {
        if self.kernel.as_os_str().is_empty() {
            return Err(BootError::EmptyPath { what: "kernel" });
        }
        if self.initramfs.as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
            return Err(BootError::EmptyPath { what: "initramfs" });
        }
        if self.cmdline.len() > CMDLINE_MAX {
            return Err(BootError::CmdlineLength { len: self.cmdline.len() });
        }
        match self.cmdline.bytes().position(|byte| byte.is_ascii_control()) {
            Some(position) => Err(BootError::CmdlineControl { position }),
            None => Ok(()),
        }
    }
}
