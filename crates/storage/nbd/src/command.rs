use crate::layout::{
    CMD_BLOCK_STATUS, CMD_CACHE, CMD_FLAG_DF, CMD_FLAG_FAST_ZERO, CMD_FLAG_FUA, CMD_FLAG_NO_HOLE,
    CMD_FLAG_REQ_ONE, CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE, CMD_WRITE_ZEROES, RequestHeader,
};
use crate::{Export, MAX_PAYLOAD};

/// What a client asks to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(missing_docs, reason = "each is the command of this name in the protocol")]
pub enum Command {
    Read,
    Write,
    Flush,
    Trim,
    Cache,
    WriteZeroes,
    BlockStatus,
}

impl Command {
    /// The name in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Trim => "trim",
            Self::Cache => "cache",
            Self::WriteZeroes => "write zeroes",
            Self::BlockStatus => "block status",
        }
    }

    fn parse(kind: u16) -> Option<Self> {
        Some(match kind {
            CMD_READ => Self::Read,
            CMD_WRITE => Self::Write,
            CMD_FLUSH => Self::Flush,
            CMD_TRIM => Self::Trim,
            CMD_CACHE => Self::Cache,
            CMD_WRITE_ZEROES => Self::WriteZeroes,
            CMD_BLOCK_STATUS => Self::BlockStatus,
            _ => return None,
        })
    }

    fn changes(self) -> bool {
        matches!(self, Self::Write | Self::Trim | Self::WriteZeroes)
    }

    fn allowed_flags(self, structured: bool) -> u16 {
        // Clients are known to set FUA on everything, so the protocol has servers accept it everywhere.
        CMD_FLAG_FUA
            | match self {
                Self::Read if structured => CMD_FLAG_DF,
                Self::WriteZeroes => CMD_FLAG_NO_HOLE | CMD_FLAG_FAST_ZERO,
                Self::BlockStatus => CMD_FLAG_REQ_ONE,
                _ => 0,
            }
    }
}

/// The errors that the protocol has ("Error values").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Errno {
    Perm = 1,
    Io = 5,
    Inval = 22,
    NoSpc = 28,
    Overflow = 75,
    NotSup = 95,
}

/// Why a request is not carried out, or failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) errno: Errno,
    /// For the client's user. Names no host file: the client may be a stranger.
    pub(crate) why: &'static str,
}

impl Refusal {
    pub(crate) const fn new(errno: Errno, why: &'static str) -> Self {
        Self { errno, why }
    }
}

/// A request that can be carried out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request {
    pub(crate) command: Command,
    pub(crate) flags: u16,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) len: u32,
}

/// What was agreed on that requests depend on.
pub(crate) struct Terms<'a> {
    pub(crate) export: &'a Export,
    /// The length that the client was told.
    pub(crate) size: u64,
    pub(crate) structured: bool,
    pub(crate) has_contexts: bool,
}

impl Request {
    /// Checks all that can be known from the header.
    pub(crate) fn check(header: &RequestHeader, terms: &Terms<'_>) -> Result<Self, Refusal> {
        let invalid = |why| Err(Refusal::new(Errno::Inval, why));
        let Some(command) = Command::parse(header.kind.get()) else {
            return invalid("this server does not know that command");
        };
        let (flags, offset, len) = (header.flags.get(), header.offset.get(), header.length.get());
        let request = Self { command, flags, cookie: header.cookie.get(), offset, len };
        if flags & !command.allowed_flags(terms.structured) != 0 {
            return invalid("the command has no such flag");
        }
        if command.changes() && terms.export.is_read_only() {
            return Err(Refusal::new(Errno::Perm, "the export is read-only"));
        }
        if command == Command::Flush {
            return match (offset, len) {
                (0, 0) => Ok(request),
                _ => invalid("a flush has neither an offset nor a length"),
            };
        }
        if offset.checked_add(u64::from(len)).is_none_or(|end| end > terms.size) {
            let grows = matches!(command, Command::Write | Command::WriteZeroes);
            let errno = if grows { Errno::NoSpc } else { Errno::Inval };
            return Err(Refusal::new(errno, "the range does not lie within the export"));
        }
        let too_long = Refusal::new(
            if terms.structured { Errno::Overflow } else { Errno::Inval },
            "more than 32 MiB cannot be read at once",
        );
        match command {
            Command::Read if len > MAX_PAYLOAD => Err(too_long),
            Command::BlockStatus if !terms.has_contexts => invalid("no metadata context was selected"),
            Command::BlockStatus if len == 0 => invalid("an empty range has no status"),
            _ => Ok(request),
        }
    }

    pub(crate) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}
