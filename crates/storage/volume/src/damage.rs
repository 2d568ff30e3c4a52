/// What is wrong with a copy of a GPT whose content is known all the same.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Damage {
    /// The primary table cannot be read; the backup was used.
    Primary {
        /// What is wrong with it.
        reason: String,
    },
    /// The backup table cannot be read.
    Backup {
        /// What is wrong with it.
        reason: String,
    },
    /// The backup table is whole, but says something else than the primary.
    StaleBackup,
    /// The backup table is not at the end of the disk, which has been resized.
    MisplacedBackup {
        /// Where it is said to be, in bytes.
        at: u64,
        /// Where it belongs, in bytes.
        expected: u64,
    },
    /// The first sector does not mark the disk as one with a GPT, or does so for another length.
    ProtectiveMbr,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Primary { reason } => write!(f, "the primary table is damaged ({reason})"),
            Self::Backup { reason } => write!(f, "the backup table is damaged ({reason})"),
            Self::StaleBackup => write!(f, "the backup table differs from the primary"),
            Self::MisplacedBackup { at, expected } => {
                write!(f, "the backup table is at byte {at}, but the disk ends with byte {expected}")
            }
            Self::ProtectiveMbr => write!(f, "the protective MBR does not cover the disk"),
        }
    }
}
