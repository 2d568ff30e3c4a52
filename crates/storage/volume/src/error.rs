pub use vmwright_disk::ErrorKind;

/// The result of an operation on a partition table.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error from a partition table.
#[derive(Debug)]
pub struct Error(Box<Reason>);

#[derive(Debug, thiserror::Error)]
enum Reason {
    #[error("cannot {action} the partition table")]
    Disk { action: &'static str, source: vmwright_disk::Error },
    #[error("partition table at byte {at}: {what}: expected {expected}, found {actual}")]
    Field { at: u64, what: &'static str, expected: String, actual: String },
    #[error("partition table at byte {at}: {what}")]
    Structure { at: u64, what: &'static str },
    #[error("both partition tables are damaged; the primary says: {primary}; the backup says: {backup}")]
    Both { primary: Box<Error>, backup: Box<Error> },
    #[error("partition {number}: {what}")]
    Partition { number: u32, what: &'static str },
    #[error("partitions {first} and {second} overlap")]
    Overlap { first: u32, second: u32 },
    #[error("partition table at byte {at}: {count} entries of {size} bytes are more than is handled")]
    TooLarge { at: u64, count: u32, size: u32 },
    #[error("there is no partition {number}")]
    NoPartition { number: u32 },
    #[error("partition {number} lies where the backup table must go")]
    NoRoom { number: u32 },
    #[error("{what}")]
    Invalid { what: &'static str },
}

impl Error {
    pub(crate) fn disk(action: &'static str) -> impl FnOnce(vmwright_disk::Error) -> Self {
        move |source| Self(Box::new(Reason::Disk { action, source }))
    }

    pub(crate) fn field(
        at: u64,
        what: &'static str,
        expected: impl std::fmt::Display,
        actual: impl std::fmt::Display,
    ) -> Self {
        let (expected, actual) = (expected.to_string(), actual.to_string());
        Self(Box::new(Reason::Field { at, what, expected, actual }))
    }

    pub(crate) fn structure(at: u64, what: &'static str) -> Self {
        Self(Box::new(Reason::Structure { at, what }))
    }

    pub(crate) fn both(primary: Error, backup: Error) -> Self {
        Self(Box::new(Reason::Both { primary: Box::new(primary), backup: Box::new(backup) }))
    }

    pub(crate) fn partition(number: u32, what: &'static str) -> Self {
        Self(Box::new(Reason::Partition { number, what }))
    }

    pub(crate) fn overlap(first: u32, second: u32) -> Self {
        Self(Box::new(Reason::Overlap { first, second }))
    }

    pub(crate) fn too_large(at: u64, count: u32, size: u32) -> Self {
        Self(Box::new(Reason::TooLarge { at, count, size }))
    }

    pub(crate) fn no_partition(number: u32) -> Self {
        Self(Box::new(Reason::NoPartition { number }))
    }

    pub(crate) fn no_room(number: u32) -> Self {
        Self(Box::new(Reason::NoRoom { number }))
    }

    pub(crate) fn invalid(what: &'static str) -> Self {
        Self(Box::new(Reason::Invalid { what }))
    }

    /// What sort of failure this is.
    pub fn kind(&self) -> ErrorKind {
        match &*self.0 {
            Reason::Disk { source, .. } => source.kind(),
            Reason::Field { .. }
            | Reason::Structure { .. }
            | Reason::Partition { .. }
            | Reason::Overlap { .. } => ErrorKind::Corrupt,
            Reason::Both { primary, .. } => primary.kind(),
            Reason::TooLarge { .. } => ErrorKind::Unsupported,
            Reason::NoPartition { .. } => ErrorKind::NotFound,
            Reason::NoRoom { .. } => ErrorKind::NoSpace,
            Reason::Invalid { .. } => ErrorKind::InvalidInput,
        }
    }

    /// Whether another copy of the table may do where this one does not.
    pub(crate) fn is_about_the_bytes(&self) -> bool {
        matches!(self.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported)
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}
