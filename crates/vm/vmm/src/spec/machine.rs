use serde::{Deserialize, Serialize};

/// Memory is a multiple of this many bytes.
pub const MEMORY_UNIT: u64 = 1 << 20;

/// Processors, memory and how they are executed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Machine {
    /// Who executes the guest's instructions.
    pub accelerator: Accelerator,
    /// The number of virtual processors.
    pub cpus: u32,
    /// The guest's memory in bytes, a multiple of [`MEMORY_UNIT`].
    pub memory: u64,
}

impl Default for Machine {
    fn default() -> Self {
        Self { accelerator: Accelerator::Auto, cpus: 1, memory: 256 << 20 }
    }
}

/// Who is to execute the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accelerator {
    /// The fastest that was measured to work.
    #[default]
    Auto,
    /// The processor, through the kernel.
    Kvm,
    /// A translator in the monitor.
    Tcg,
}

impl std::fmt::Display for Accelerator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

/// Why processors or memory make no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MachineError {
    /// A machine without a processor.
    #[error("a machine needs at least one processor")]
    NoCpu,
    /// Memory is not a positive multiple of the unit.
    #[error("memory is a positive multiple of {MEMORY_UNIT} bytes, not {memory}")]
    Memory {
        /// The bytes asked for.
        memory: u64,
    },
}

impl Machine {
    /// Checks what no monitor could serve.
    pub fn validate(&self) -> Result<(), MachineError> {
        if self.cpus == 0 {
            return Err(MachineError::NoCpu);
        }
        if self.memory == 0 || !self.memory.is_multiple_of(MEMORY_UNIT) {
            return Err(MachineError::Memory { memory: self.memory });
        }
        Ok(())
    }
}
