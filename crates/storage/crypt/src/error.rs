use vmwright_disk::ErrorKind;

/// The result of an operation on an encrypted disk.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error from an encrypted disk or its header.
#[derive(Debug)]
pub struct Error(Box<Reason>);

#[derive(Debug, thiserror::Error)]
pub(crate) enum Reason {
    #[error("{0}")]
    Disk(vmwright_disk::Error),
    #[error("{what} at offset {at:#x} is damaged: expected {expected}, found {actual:#x}")]
    Corrupt { what: &'static str, at: u64, expected: &'static str, actual: u64 },
    #[error("the LUKS2 metadata at offset {at:#x} is damaged: {place}: {why}")]
    Metadata { at: u64, place: String, why: &'static str },
    #[error("the LUKS2 metadata at offset {at:#x} is not valid JSON")]
    Json { at: u64, source: serde_json::Error },
    #[error("the copy of the LUKS2 header at offset {at:#x} is damaged: {why}")]
    Copy { at: u64, why: String },
    #[error("{feature} is not supported")]
    Unsupported { feature: &'static str },
    #[error("the {what} {name:?} is not supported")]
    Unknown { what: &'static str, name: String },
    #[error("{what} costs {cost}, and no more than {limit} is allowed")]
    TooExpensive { what: &'static str, cost: u64, limit: u64 },
    #[error("{bytes} bytes of memory, which opening the key slot needs, cannot be had")]
    NoMemory { bytes: u64 },
    #[error("the passphrase does not open any key slot")]
    WrongPassphrase,
    #[error("no key slot is free")]
    NoFreeSlot,
    #[error("key slot {slot} is the last one: without it the content is lost")]
    LastSlot { slot: u32 },
    #[error("key slot {slot} is not in use")]
    NoSuchSlot { slot: u32 },
    #[error("the system gives no random numbers: {0}")]
    NoRandomness(getrandom::Error),
    #[error("{what}: {why}")]
    Invalid { what: &'static str, why: &'static str },
}

impl Error {
    pub(crate) fn corrupt(what: &'static str, at: u64, expected: &'static str, actual: u64) -> Self {
        Reason::Corrupt { what, at, expected, actual }.into()
    }

    pub(crate) fn unsupported(feature: &'static str) -> Self {
        Reason::Unsupported { feature }.into()
    }

    pub(crate) fn unknown(what: &'static str, name: &str) -> Self {
        Reason::Unknown { what, name: name.to_owned() }.into()
    }

    pub(crate) fn invalid(what: &'static str, why: &'static str) -> Self {
        Reason::Invalid { what, why }.into()
    }

    /// What sort of failure this is.
    pub fn kind(&self) -> ErrorKind {
        match &*self.0 {
            Reason::Disk(error) => error.kind(),
            Reason::Corrupt { .. } | Reason::Metadata { .. } | Reason::Json { .. } | Reason::Copy { .. } => {
                ErrorKind::Corrupt
            }
            Reason::Unsupported { .. } | Reason::Unknown { .. } | Reason::TooExpensive { .. } => {
                ErrorKind::Unsupported
            }
            Reason::NoMemory { .. } | Reason::NoFreeSlot => ErrorKind::NoSpace,
            Reason::NoSuchSlot { .. } => ErrorKind::NotFound,
            Reason::NoRandomness(_) => ErrorKind::Io,
            Reason::WrongPassphrase | Reason::LastSlot { .. } | Reason::Invalid { .. } => {
                ErrorKind::InvalidInput
            }
        }
    }

    pub(crate) fn is_too_expensive(&self) -> bool {
        matches!(*self.0, Reason::TooExpensive { .. })
    }

    /// Whether the passphrase opens no key slot.
    pub fn is_wrong_passphrase(&self) -> bool {
        matches!(*self.0, Reason::WrongPassphrase)
    }
}

impl From<Reason> for Error {
    fn from(reason: Reason) -> Self {
        Self(Box::new(reason))
    }
}

impl From<vmwright_disk::Error> for Error {
    fn from(error: vmwright_disk::Error) -> Self {
        Reason::Disk(error).into()
    }
}

impl From<Error> for vmwright_disk::Error {
    fn from(error: Error) -> Self {
        match *error.0 {
            Reason::Disk(inner) => inner,
            reason => {
                let error = Error::from(reason);
                Self::layer(error.kind(), error)
            }
        }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &*self.0 {
            // The wrapped error speaks for this one, so what is beneath it comes next.
            Reason::Disk(inner) => inner.source(),
            reason => reason.source(),
        }
    }
}
