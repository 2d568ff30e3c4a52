use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// What the host asks for when it opens a stream.
///
/// The agent ends each stream with exactly one of [`Message::Exited`], [`Message::Done`] and
/// [`Message::Failed`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Runs a program: [`Message::Started`], output, then [`Message::Exited`].
    Exec(Exec),
    /// Writes a file out of the stream's data, up to [`Message::Eof`].
    Put(Put),
    /// Reads a file: [`Message::File`], then data, then [`Message::Done`].
    Get {
        /// The path, absolute; symbolic links are followed.
        path: ByteBuf,
    },
    /// Sets the guest's clock to a time since 1970-01-01 UTC.
    SetClock {
        /// Whole seconds.
        seconds: i64,
        /// 0 to 999,999,999.
        nanoseconds: u32,
    },
    /// Asks whether the agent is there.
    Ping,
    /// Ends the guest. The agent says [`Message::Goodbye`] on stream 0 before it does.
    Shutdown(Shutdown),
}

/// A program to run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Exec {
    /// The program and its arguments; a program without a slash is looked for on `PATH`.
    pub argv: Vec<ByteBuf>,
    /// Variables set on top of the agent's defaults (`PATH`, `HOME`, `USER`, `LOGNAME`, `SHELL`, `TERM`).
    pub env: Vec<(ByteBuf, ByteBuf)>,
    /// The working directory; the user's home where absent, `/` where that does not exist.
    pub cwd: Option<ByteBuf>,
    /// `name`, `name:group`, `uid` or `uid:gid`; root where absent.
    pub user: Option<String>,
    /// A terminal of this size for all three of stdin, stdout and stderr.
    pub pty: Option<WindowSize>,
    /// Whether stdin is fed by the stream; otherwise it is `/dev/null`.
    pub stdin: bool,
}

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct WindowSize {
    pub rows: u16,
    pub columns: u16,
}

/// A file to write. It replaces an existing one at once and whole, or not at all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Put {
    /// The path, absolute. A symbolic link there is followed.
    pub path: ByteBuf,
    /// Permission bits; where absent, the replaced file's, or 0644.
    pub mode: Option<u16>,
    /// User and group numbers; where absent, the replaced file's, or the agent's.
    pub owner: Option<(u32, u32)>,
    /// Time of last change, in seconds and nanoseconds since 1970-01-01 UTC; now where absent.
    pub modified: Option<(i64, u32)>,
}

/// What is known of a file that is being read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileInfo {
    /// The length in bytes when it was opened; the data may be more or less where it is changing.
    pub size: u64,
    /// Permission, set-id and sticky bits.
    pub mode: u16,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Time of last change, in seconds and nanoseconds since 1970-01-01 UTC.
    pub modified: (i64, u32),
}

/// How a guest is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Shutdown {
    PowerOff,
    Reboot,
}

/// Why an agent leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Goodbye {
    /// The guest powers off.
    PowerOff,
    /// The guest reboots.
    Reboot,
    /// The agent alone ends: it was told to by a signal.
    Exit,
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// It exited with this code.
    Code(u8),
    /// This signal ended it.
    Signal(i32),
}

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The error number of Linux.
    pub errno: i32,
    /// What was attempted, as in "cannot open /etc/fstab".
    pub action: String,
}

/// How the agent runs in its guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// It is process 1.
    Init,
    /// It was started before the guest's own init and stays beside it.
    Companion,
    /// The guest's own init, or a user, started it.
    Service,
}

/// What the agent says of itself, first in every session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The agent's version, such as `0.1.0`.
    pub version: String,
    /// How it runs.
    pub mode: Mode,
    /// The kernel's boot id: changes with each boot, not with a restore.
    pub boot_id: [u8; 16],
}

/// One message, the content of one frame.
///
/// The first group is the host's to send, the second the agent's, the third belongs to both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// Opens the stream.
    Open(Request),
    /// No more data follows on this stream.
    Eof,
    /// Sends a signal to the program's process group.
    Signal(i32),
    /// The terminal has a new size.
    Resize(WindowSize),
    /// Ends the stream at once: a program still running is killed, a half-written file is removed.
    Reset,

    /// First frame of a session, on stream 0.
    Hello(Hello),
    /// Last frame of an agent, on stream 0.
    Goodbye(Goodbye),
    /// The program runs, under this process id.
    Started(u32),
    /// The file to be read is open.
    File(FileInfo),
    /// Bytes of the program's standard error.
    Stderr(ByteBuf),
    /// The program ended, and no more output follows.
    Exited(ExitStatus),
    /// The request was carried out.
    Done,
    /// The request was not carried out.
    Failed(Failure),

    /// Bytes: stdin or file content to the agent, stdout or file content from it.
    Data(ByteBuf),
    /// The sender can take this many bytes of data more.
    Credit(u32),
}

impl Message {
    /// The message's name, for errors and logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Open(_) => "open",
            Self::Eof => "eof",
            Self::Signal(_) => "signal",
            Self::Resize(_) => "resize",
            Self::Reset => "reset",
            Self::Hello(_) => "hello",
            Self::Goodbye(_) => "goodbye",
            Self::Started(_) => "started",
            Self::File(_) => "file",
            Self::Stderr(_) => "stderr",
            Self::Exited(_) => "exited",
            Self::Done => "done",
            Self::Failed(_) => "failed",
            Self::Data(_) => "data",
            Self::Credit(_) => "credit",
        }
    }

    /// Whether this ends its stream.
    pub fn is_last(&self) -> bool {
        matches!(self, Self::Reset | Self::Exited(_) | Self::Done | Self::Failed(_))
    }

    /// Whether the message belongs to the session and not to one stream.
    pub(crate) fn is_session(&self) -> bool {
        matches!(self, Self::Hello(_) | Self::Goodbye(_))
    }

    /// Whether a host may send it.
    pub(crate) fn is_from_host(&self) -> bool {
        matches!(
            self,
            Self::Open(_)
                | Self::Eof
                | Self::Signal(_)
                | Self::Resize(_)
                | Self::Reset
                | Self::Data(_)
                | Self::Credit(_)
        )
    }

    /// Whether an agent may send it.
    pub(crate) fn is_from_agent(&self) -> bool {
        !self.is_from_host() || matches!(self, Self::Data(_) | Self::Credit(_))
    }

    /// How many bytes of credit it takes.
    pub(crate) fn weight(&self) -> usize {
        match self {
            Self::Data(bytes) | Self::Stderr(bytes) => bytes.len(),
            _ => 0,
        }
    }
}
