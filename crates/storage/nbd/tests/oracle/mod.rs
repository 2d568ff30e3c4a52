//! Whole sessions out of arbitrary bytes, against a model of the disk and of what each request must be answered.
//!
//! A script says what the client does: sound requests, unsound ones, and bytes that are no request. Up to the first of
//! those, every answer must be the one that the model gives; behind it, answers must be well-formed and the disk unharmed.
#![allow(clippy::unwrap_used, clippy::panic, reason = "this is a test, though callers are elsewhere")]

#[path = "../client/mod.rs"]
mod client;

use std::io::{self, Cursor, IoSlice, Read, Write};
use std::sync::{Arc, Mutex};

use client::{Client, Reply, assemble, info_data, meta_data, request};
use vmwright_disk::{Disk, MemDisk};
use vmwright_nbd::{
    Encryption, Export, Exports, Negotiated, Observer, SessionLimits, SessionReport, Transport, negotiate,
};

const SIZE: u64 = 200_000;
const EPERM: u32 = 1;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const ENOTSUP: u32 = 95;

/// What a client sends, all at once, and what comes back.
struct Tape {
    input: Mutex<Cursor<Vec<u8>>>,
    output: Mutex<Vec<u8>>,
    /// How many bytes one call moves at most, so that messages arrive in pieces.
    step: usize,
}

impl Transport for Tape {
    fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        let most = buf.len().min(self.step);
        self.input.lock().unwrap().read(&mut buf[..most])
    }

    fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let first = parts.iter().find(|part| !part.is_empty());
        let bytes = first.map_or(&[][..], |part| &part[..part.len().min(self.step * 7)]);
        self.output.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn hang_up(&self) {}

    fn encryption(&self) -> Encryption {
        Encryption::Off
    }

    fn start_tls(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

struct Nobody;

impl Observer for Nobody {}

/// Plays what the server said to the checking client, which says nothing itself.
struct Replay(Cursor<Vec<u8>>);

impl Read for Replay {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl Write for Replay {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Bytes that decide, and zeros once they are used up.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn number(&mut self, limit: u64) -> u64 {
        (0..3).fold(0, |number, _| number << 8 | u64::from(self.byte())) % limit
    }
}

/// One request and what must come of it.
struct Asked {
    kind: u16,
    flags: u16,
    offset: u64,
    len: u32,
    fill: u8,
}

/// Checks one session; panics where the server does what it must not.
pub(crate) fn check(script: &[u8]) {
    let mut script = Script(script);
    let settings = script.byte();
    let (structured, writable, by_name) = (settings & 1 != 0, settings & 2 != 0, settings & 4 != 0);
    let step = [1, 7, 28, 1000, 1 << 20][usize::from(script.byte()) % 5];
    let content: Vec<u8> = (0..SIZE).map(|at| (at % 249) as u8).collect();
    let disk = Arc::new(MemDisk::from_bytes(content.clone()));

    let mut input = 3_u32.to_be_bytes().to_vec();
    input.extend(options(&mut script, structured, by_name));
    let mut asked = Vec::new();
    let mut sound = true;
    while !script.0.is_empty() && asked.len() < 200 {
        let Some(next) = ask(&mut script) else {
            sound = false;
            input.extend(script.0);
            break;
        };
        let data = if next.kind == 1 { vec![next.fill; next.len as usize] } else { Vec::new() };
        input.extend(request(next.kind, next.flags, asked.len() as u64, next.offset, next.len, &data));
        asked.push(next);
    }
    let (output, report) = run(input, step, &disk, writable);
    let Some(report) = report else { return };
    let mut client = Client::connect(Replay(Cursor::new(output)));
    skip_options(&mut client, by_name);
    let mut model = content;
    for (cookie, asked) in asked.iter().enumerate() {
        answer(&mut client, cookie as u64, asked, &mut model, structured, writable);
    }
    assert!(report.requests >= asked.len() as u64);
    match sound {
        true => {
            assert_eq!(report.requests, asked.len() as u64);
            assert!(client.reply(0).is_err(), "nothing is answered that was not asked");
            assert!(disk.to_bytes() == model);
        }
        false if !writable => assert!(disk.to_bytes() == model, "what is read-only stays as it is"),
        false => {}
    }
    assert_eq!(disk.len(), SIZE);
}

/// The options of a handshake; arbitrary ones first, whose answers do not matter.
fn options(script: &mut Script<'_>, structured: bool, by_name: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut option = |option: u32, data: &[u8]| {
        bytes.extend(client::OPTION_MAGIC.to_be_bytes());
        bytes.extend(option.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
    };
    for _ in 0..script.byte() % 4 {
        // Neither those that end the handshake nor the one that the rest depends on.
        let kind = [3, 4, 5, 6, 9, 10, 77][usize::from(script.byte()) % 7];
        let data: Vec<u8> = (0..script.byte() % 40).map(|_| script.byte()).collect();
        option(kind, &data);
    }
    if structured {
        option(8, &[]);
        option(10, &meta_data("disk", &["base:allocation"]));
    }
    match by_name {
        true => option(1, b"disk"),
        false => option(7, &info_data("disk", &[3])),
    }
    bytes
}

/// The next request; nothing where the client sends what is none.
fn ask(script: &mut Script<'_>) -> Option<Asked> {
    let choice = script.byte();
    if choice == 255 {
        return None;
    }
    let kind = [0, 1, 3, 4, 5, 6, 7, 9][usize::from(choice) % 8];
    let flags = match script.byte() {
        flags @ 0..32 => u16::from(flags),
        32..40 => 1 << 9,
        _ => 0,
    };
    let (offset, len) = match script.byte() % 8 {
        0 => (script.number(SIZE + 1000), script.number(SIZE + 1000) as u32),
        1 => (u64::MAX - script.number(1000), script.number(2000) as u32),
        2 => (script.number(SIZE), 0),
        _ => (script.number(SIZE), 1 + script.number(5000) as u32),
    };
    let (offset, len) = if kind == 3 && choice < 200 { (0, 0) } else { (offset, len) };
    Some(Asked { kind, flags, offset, len, fill: script.byte() })
}

fn run(input: Vec<u8>, step: usize, disk: &Arc<MemDisk>, writable: bool) -> (Vec<u8>, Option<SessionReport>) {
    let export = Export::new("disk", disk.clone());
    let export = if writable { export.writable() } else { export };
    let exports = Exports::new(vec![export]).unwrap();
    let tape = Tape { input: Mutex::new(Cursor::new(input)), output: Mutex::default(), step };
    // On one thread, answers come in the order of the requests.
    let limits = SessionLimits { requests: 1, memory: 0 };
    let report = match negotiate(&tape, &exports, &Nobody) {
        Ok(Negotiated::Chosen(session)) => Some(session.run(&tape, &limits, &Nobody)),
        Ok(Negotiated::Aborted | Negotiated::HungUp) => None,
        Err(error) => panic!("a handshake of well-formed options succeeds: {error}"),
    };
    (tape.output.into_inner().unwrap(), report)
}

/// Passes over the answers to options, up to the last one.
fn skip_options(client: &mut Client<Replay>, by_name: bool) {
    let bytes = client.stream.0.get_ref().clone();
    loop {
        let at = client.stream.0.position() as usize;
        let header = &bytes[at..];
        if by_name && !header.starts_with(&0x0003_e889_0455_65a9_u64.to_be_bytes()) {
            client.stream.0.set_position(at as u64 + 10);
            return;
        }
        let option = u32::from_be_bytes(header[8..12].try_into().unwrap());
        let (kind, _) = client.option_reply(option).unwrap();
        if option == 7 && kind == client::ACK {
            return;
        }
    }
}

/// The error that a request must be answered with, or zero.
fn expected_error(asked: &Asked, model: &[u8], structured: bool, writable: bool) -> u32 {
    let &Asked { kind, flags, offset, len, .. } = asked;
    let allowed = match kind {
        0 if structured => 1 | 4,
        6 => 1 | 2 | 16,
        7 => 1 | 8,
        _ => 1,
    };
    let changes = matches!(kind, 1 | 4 | 6);
    match kind {
        9 => EINVAL,
        _ if flags & !allowed != 0 => EINVAL,
        _ if changes && !writable => EPERM,
        3 => {
            if (offset, len) == (0, 0) {
                0
            } else {
                EINVAL
            }
        }
        _ if offset.checked_add(u64::from(len)).is_none_or(|end| end > SIZE) => match kind {
            1 | 6 => ENOSPC,
            _ => EINVAL,
        },
        7 if !structured || len == 0 => EINVAL,
        // Memory is never known to be zeros, so that nothing but an empty range is zeroed fast.
        6 if flags & 16 != 0 && (flags & 2 != 0 || len > 0) => ENOTSUP,
        _ => {
            assert!(offset as usize + len as usize <= model.len());
            0
        }
    }
}

fn answer(
    client: &mut Client<Replay>,
    cookie: u64,
    asked: &Asked,
    model: &mut [u8],
    structured: bool,
    writable: bool,
) {
    let expected = expected_error(asked, model, structured, writable);
    let range = || asked.offset as usize..asked.offset as usize + asked.len as usize;
    if asked.kind == 0 && !structured {
        let (reply, data) = client.reply(asked.len as usize).unwrap();
        assert_eq!(reply, Reply::Simple { error: expected, cookie });
        assert!(expected != 0 || data == model[range()]);
        return;
    }
    let replies = client.replies();
    for reply in &replies {
        let (Reply::Simple { cookie: found, .. } | Reply::Chunk { cookie: found, .. }) = reply;
        assert_eq!(*found, cookie);
        assert!(structured || matches!(reply, Reply::Simple { .. }));
    }
    let error = replies.iter().map(Reply::error).max().unwrap();
    assert_eq!(error, expected, "command {} with flags {}", asked.kind, asked.flags);
    if error != 0 {
        return;
    }
    match asked.kind {
        0 => assert!(assemble(&replies, asked.offset, asked.len).unwrap().0 == model[range()]),
        1 => model[range()].fill(asked.fill),
        4 | 6 => model[range()].fill(0),
        7 => assert!(matches!(&replies[..], [Reply::Chunk { kind: 5, .. }])),
        _ => {}
    }
}
