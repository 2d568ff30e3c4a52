//! What a command and a shim say to each other, over the shim's socket.
//!
//! ```text
//! frame    kind u8 · length u32, little-endian · payload of at most 64 KiB
//!
//! shim    → HELLO (JSON)
//! command → REQUEST (JSON)              one per connection
//! shim    → ANSWER | ERROR (JSON)       or, for exec, output and then EXIT
//! ```
//!
//! The protocol is the shim's own, not the agent's: a shim speaks to the agent it was built with, and a
//! command to every shim there ever was. So fields are only ever added, unknown fields and unknown kinds are
//! passed over, and [`PROTOCOL`] grows where a command must know what a shim can do.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};
use vmwright_vmm::ProcessIdentity;

use crate::{ErrorKind, VmName};

/// The version of the protocol that this program's shims speak.
pub const PROTOCOL: u32 = 1;

/// The most bytes in a frame's payload.
pub(crate) const MAX_PAYLOAD: usize = 64 * 1024;
/// The most bytes of one piece of data: what a pipe holds, at the size that costs little memory.
pub(crate) const MAX_PIECE: usize = 32 * 1024;
/// How many bytes of data a command may send before the shim grants more.
pub(crate) const WINDOW: usize = 64 * 1024;
/// The bytes before the payload.
pub(crate) const HEADER: usize = 5;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// From the command: what it wants, as JSON.
    Request = 1,
    /// From the command: bytes for standard input or for a file.
    Input = 2,
    /// From the command: no more input follows.
    InputEnd = 3,
    /// From the command: a signal for the program, as i32.
    Signal = 4,
    /// From the command: the terminal's new size, rows and columns as u16 each.
    Resize = 5,
    /// From the shim: who it is, as JSON.
    Hello = 64,
    /// From the shim: the request is carried out; the result as JSON.
    Answer = 65,
    /// From the shim: the request failed, as JSON.
    Error = 66,
    /// From the shim: standard output, or a file's content.
    Output = 67,
    /// From the shim: standard error.
    ErrorOutput = 68,
    /// From the shim: so many bytes more may be sent, as u32.
    Credit = 69,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        const ALL: [Kind; 11] = [
            Kind::Request,
            Kind::Input,
            Kind::InputEnd,
            Kind::Signal,
            Kind::Resize,
            Kind::Hello,
            Kind::Answer,
            Kind::Error,
            Kind::Output,
            Kind::ErrorOutput,
            Kind::Credit,
        ];
        ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// A frame's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    /// What it is; nothing where this version does not know the kind.
    pub(crate) kind: Option<Kind>,
    /// The payload's length.
    pub(crate) len: usize,
}

impl Header {
    /// Reads a header; refused where the payload would be longer than any may be.
    pub(crate) fn parse(bytes: [u8; HEADER]) -> io::Result<Self> {
        let [kind, a, b, c, d] = bytes;
        let len = u32::from_le_bytes([a, b, c, d]) as usize;
        if len > MAX_PAYLOAD {
            let detail = format!("a frame has at most {MAX_PAYLOAD} bytes, found {len}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, detail));
        }
        Ok(Self { kind: Kind::from_byte(kind), len })
    }
}

/// Encodes a frame; the payload must fit.
pub(crate) fn frame(kind: Kind, payload: &[u8]) -> io::Result<Vec<u8>> {
    let Some(len) = u32::try_from(payload.len()).ok().filter(|len| *len as usize <= MAX_PAYLOAD) else {
        let detail = format!("a frame has at most {MAX_PAYLOAD} bytes, not {}", payload.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, detail));
    };
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    bytes.push(kind as u8);
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes.extend_from_slice(payload);
    Ok(bytes)
}

/// Encodes a frame of JSON.
pub(crate) fn json_frame(kind: Kind, value: &impl Serialize) -> io::Result<Vec<u8>> {
    frame(kind, &serde_json::to_vec(value)?)
}

/// Reads the next frame of a known kind; nothing at the end of the stream.
pub(crate) fn read_frame(from: &mut impl Read) -> io::Result<Option<(Kind, Vec<u8>)>> {
    loop {
        let mut header = [0; HEADER];
        match from.read(&mut header[..1])? {
            0 => return Ok(None),
            _ => from.read_exact(&mut header[1..])?,
        }
        let header = Header::parse(header)?;
        let mut payload = vec![0; header.len];
        from.read_exact(&mut payload)?;
        if let Some(kind) = header.kind {
            return Ok(Some((kind, payload)));
        }
    }
}

/// Writes a frame.
pub(crate) fn write_frame(to: &mut impl Write, kind: Kind, payload: &[u8]) -> io::Result<()> {
    to.write_all(&frame(kind, payload)?)
}

/// Bytes in JSON: text where they are, else a list of numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Bytes {
    Text(String),
    Raw(Vec<u8>),
}

impl From<&[u8]> for Bytes {
    fn from(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Text(text.to_owned()),
            Err(_) => Self::Raw(bytes.to_owned()),
        }
    }
}

impl From<Bytes> for Vec<u8> {
    fn from(bytes: Bytes) -> Self {
        match bytes {
            Bytes::Text(text) => text.into_bytes(),
            Bytes::Raw(raw) => raw,
        }
    }
}

/// What a shim says first.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// The version it speaks.
    pub(crate) protocol: u32,
    /// The VM it is responsible for.
    pub(crate) vm: VmName,
    /// Which run of it.
    pub(crate) run: String,
}

/// What a command wants.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "want", rename_all = "kebab-case")]
pub(crate) enum Request {
    /// How things are; answered with a [`Status`].
    Status,
    /// A program run in the guest; answered with output and an [`ExecExit`].
    Exec(Exec),
    /// A file written in the guest from the input that follows; answered with nothing in particular.
    Put(Put),
    /// A file of the guest; answered with a [`FileInfo`], output, and a second answer.
    Get { path: Bytes },
    /// The guest's end; answered with an [`crate::ExitRecord`].
    Stop { grace_ms: u64, force: bool },
    /// The VM's end, whoever brings it about; answered with an [`crate::ExitRecord`].
    Wait,
}

/// A program to run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Exec {
    pub(crate) argv: Vec<Bytes>,
    #[serde(default)]
    pub(crate) env: Vec<(Bytes, Bytes)>,
    #[serde(default)]
    pub(crate) cwd: Option<Bytes>,
    #[serde(default)]
    pub(crate) user: Option<String>,
    /// Rows and columns of a terminal.
    #[serde(default)]
    pub(crate) pty: Option<(u16, u16)>,
    #[serde(default)]
    pub(crate) stdin: bool,
}

/// A file to write.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Put {
    pub(crate) path: Bytes,
    #[serde(default)]
    pub(crate) mode: Option<u16>,
    #[serde(default)]
    pub(crate) owner: Option<(u32, u32)>,
    #[serde(default)]
    pub(crate) modified: Option<(i64, u32)>,
}

/// How things are.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Status {
    /// The monitor's process.
    pub(crate) vmm: Option<ProcessIdentity>,
    /// Whether the agent answers.
    pub(crate) agent: bool,
}

/// How a program ended; exactly one of the two is there.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct ExecExit {
    #[serde(default)]
    pub(crate) code: Option<u8>,
    #[serde(default)]
    pub(crate) signal: Option<i32>,
}

/// What is known of a guest's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileInfo {
    /// Its length in bytes when it was opened.
    pub size: u64,
    /// Permission, set-id and sticky bits.
    pub mode: u16,
    /// The owner's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
    /// When its content last changed: seconds and nanoseconds since 1970.
    pub modified: (i64, u32),
}

/// Why a request failed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// One of [`KINDS`].
    pub(crate) kind: String,
    pub(crate) message: String,
}

/// The kinds of failure by their names on the wire.
const KINDS: [(ErrorKind, &str); 9] = [
    (ErrorKind::Io, "io"),
    (ErrorKind::Corrupt, "corrupt"),
    (ErrorKind::Unsupported, "unsupported"),
    (ErrorKind::NotFound, "not-found"),
    (ErrorKind::Exists, "exists"),
    (ErrorKind::NoSpace, "no-space"),
    (ErrorKind::ReadOnly, "read-only"),
    (ErrorKind::InUse, "in-use"),
    (ErrorKind::InvalidInput, "invalid-input"),
];

impl Failure {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let name = KINDS.iter().find(|(known, _)| *known == kind).map_or("io", |(_, name)| name);
        Self { kind: name.to_owned(), message: message.into() }
    }

    pub(crate) fn kind(&self) -> ErrorKind {
        KINDS.iter().find(|(_, name)| *name == self.kind).map_or(ErrorKind::Io, |(kind, _)| *kind)
    }
}

/// What a shim reports to the command that started it, one line of JSON each.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Report {
    /// The VM runs and its agent answered.
    Ready(Ready),
    /// It does not run, and nothing of it is left.
    Failed(StartFailure),
}

/// A VM that runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Ready {
    pub(crate) shim: ProcessIdentity,
    pub(crate) vmm: ProcessIdentity,
}

/// Why a VM does not run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct StartFailure {
    /// Whether its monitor ran and only the agent stayed silent.
    pub(crate) silent: bool,
    pub(crate) message: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn frames_of_a_kind_not_known_are_passed_over() {
        let mut bytes = vec![200, 3, 0, 0, 0, 1, 2, 3];
        bytes.extend(frame(Kind::InputEnd, b"").unwrap());
        let mut from = bytes.as_slice();
        assert_eq!(read_frame(&mut from).unwrap(), Some((Kind::InputEnd, Vec::new())));
        assert_eq!(read_frame(&mut from).unwrap(), None);
    }

    #[test]
    fn a_length_beyond_the_bound_is_refused_before_anything_is_allocated() {
        let bytes = [2, 0xFF, 0xFF, 0xFF, 0xFF];
        let error = read_frame(&mut bytes.as_slice()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(frame(Kind::Input, &vec![0; MAX_PAYLOAD + 1]).is_err());
    }

    #[test]
    fn a_request_of_version_1_is_understood_with_fields_of_later_versions() {
        let json = r#"{"want":"exec","argv":["ls",[255,47]],"colour":"blue"}"#;
        let Request::Exec(exec) = serde_json::from_str(json).unwrap() else { panic!("not an exec") };
        let argv: Vec<Vec<u8>> = exec.argv.into_iter().map(Vec::from).collect();
        assert_eq!(argv, [b"ls".to_vec(), vec![255, 47]]);
        assert!(!exec.stdin);
        let json = r#"{"want":"stop","grace_ms":1,"force":true}"#;
        assert!(matches!(serde_json::from_str(json).unwrap(), Request::Stop { grace_ms: 1, force: true }));
    }

    #[test]
    fn kinds_of_failure_survive_the_wire() {
        for (kind, _) in KINDS {
            assert_eq!(Failure::new(kind, "x").kind(), kind);
        }
        assert_eq!(
            Failure { kind: "of a later version".into(), message: String::new() }.kind(),
            ErrorKind::Io
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_frames_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut from = bytes.as_slice();
            while let Ok(Some((_, payload))) = read_frame(&mut from) {
                prop_assert!(payload.len() <= bytes.len());
            }
        }
    }
}
