/// The result of an operation on a session.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What sort of failure an error is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The peer broke the protocol; the session cannot go on.
    Protocol,
    /// The two ends have no protocol version in common.
    Incompatible,
    /// A message does not fit in a frame.
    TooLarge,
    /// As many streams are open as may be.
    TooManyStreams,
    /// The stream does not exist, or has ended.
    Closed,
}

/// An error of a session between host and agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error(Reason);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Reason {
    #[error("{what}: expected {expected}, found {actual}")]
    Protocol { what: &'static str, expected: u64, actual: u64 },
    #[error("a message on stream {stream} cannot be decoded")]
    Undecodable { stream: u32 },
    #[error("the peer sent {message} on stream {stream}, which is not its to send there")]
    Misplaced { message: &'static str, stream: u32 },
    #[error("the agent speaks versions {theirs_min} to {theirs_max}, this side {ours_min} to {ours_max}")]
    Incompatible { ours_min: u16, ours_max: u16, theirs_min: u16, theirs_max: u16 },
    #[error("a message of {len} bytes does not fit in a frame of {max}")]
    TooLarge { len: usize, max: usize },
    #[error("{max} streams are open already")]
    TooManyStreams { max: usize },
    #[error("stream {stream} is not open")]
    Closed { stream: u32 },
}

impl Error {
    /// What sort of failure this is.
    pub fn kind(&self) -> ErrorKind {
        match self.0 {
            Reason::Protocol { .. } | Reason::Undecodable { .. } | Reason::Misplaced { .. } => {
                ErrorKind::Protocol
            }
            Reason::Incompatible { .. } => ErrorKind::Incompatible,
            Reason::TooLarge { .. } => ErrorKind::TooLarge,
            Reason::TooManyStreams { .. } => ErrorKind::TooManyStreams,
            Reason::Closed { .. } => ErrorKind::Closed,
        }
    }
}

impl From<Reason> for Error {
    fn from(reason: Reason) -> Self {
        Self(reason)
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Error {}
