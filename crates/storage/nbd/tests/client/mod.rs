//! A client that says what it likes, for tests: nothing of it is shared with the server.
#![allow(dead_code, reason = "no test uses all of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "this is a test, though callers are elsewhere")]

use std::io::{self, Read, Write};

pub(crate) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
pub(crate) const ACK: u32 = 1;
pub(crate) const ERR_UNSUP: u32 = 0x8000_0001;
pub(crate) const ERR_POLICY: u32 = 0x8000_0002;
pub(crate) const ERR_INVALID: u32 = 0x8000_0003;
pub(crate) const ERR_TLS_REQD: u32 = 0x8000_0005;
pub(crate) const ERR_UNKNOWN: u32 = 0x8000_0006;
pub(crate) const ERR_SHUTDOWN: u32 = 0x8000_0007;
pub(crate) const ERR_TOO_BIG: u32 = 0x8000_0009;

/// One answer in the transmission phase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    Simple { error: u32, cookie: u64 },
    Chunk { flags: u16, kind: u16, cookie: u64, payload: Vec<u8> },
}

impl Reply {
    /// The error it carries, or zero.
    pub(crate) fn error(&self) -> u32 {
        match self {
            Self::Simple { error, .. } => *error,
            Self::Chunk { kind, payload, .. } if kind & 0x8000 != 0 => {
                u32::from_be_bytes(payload[..4].try_into().unwrap())
            }
            Self::Chunk { .. } => 0,
        }
    }
}

/// What was agreed on about an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chosen {
    pub(crate) size: u64,
    pub(crate) flags: u16,
}

pub(crate) struct Client<S> {
    pub(crate) stream: S,
    pub(crate) handshake_flags: u16,
    next_cookie: u64,
}

impl<S: Read + Write> Client<S> {
    /// Greets with the flags that clients of today send.
    pub(crate) fn connect(stream: S) -> Self {
        Self::connect_with(stream, 3)
    }

    pub(crate) fn connect_with(mut stream: S, client_flags: u32) -> Self {
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting[..8], b"NBDMAGIC");
        assert_eq!(&greeting[8..16], b"IHAVEOPT");
        let handshake_flags = u16::from_be_bytes([greeting[16], greeting[17]]);
        stream.write_all(&client_flags.to_be_bytes()).unwrap();
        Self { stream, handshake_flags, next_cookie: 0x1000 }
    }

    pub(crate) fn send_option(&mut self, option: u32, data: &[u8]) {
        let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
        bytes.extend(option.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
        self.stream.write_all(&bytes).unwrap();
    }

    /// Sends an option; answers all answers, the final one last.
    pub(crate) fn option(&mut self, option: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        self.send_option(option, data);
        let mut replies = Vec::new();
        loop {
            let (kind, data) = self.option_reply(option).unwrap();
            let last = kind == ACK || kind & (1 << 31) != 0;
            replies.push((kind, data));
            if last {
                return replies;
            }
        }
    }

    pub(crate) fn option_reply(&mut self, option: u32) -> io::Result<(u32, Vec<u8>)> {
        let mut header = [0; 20];
        self.stream.read_exact(&mut header)?;
        assert_eq!(header[..8], 0x0003_e889_0455_65a9_u64.to_be_bytes());
        assert_eq!(header[8..12], option.to_be_bytes());
        let number = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
        let mut data = vec![0; number(16) as usize];
        self.stream.read_exact(&mut data)?;
        Ok((number(12), data))
    }

    /// The kind of the final answer to an option.
    pub(crate) fn last(&mut self, option: u32, data: &[u8]) -> u32 {
        self.option(option, data).last().unwrap().0
    }

    pub(crate) fn structured(&mut self) {
        assert_eq!(self.last(8, &[]), ACK);
    }

    /// Selects contexts; answers the number and name of each that the server has.
    pub(crate) fn contexts(&mut self, export: &str, queries: &[&str]) -> Vec<(u32, String)> {
        self.meta_option(10, export, queries)
    }

    /// Sends one of the two options about contexts, which must succeed.
    pub(crate) fn meta_option(&mut self, option: u32, export: &str, queries: &[&str]) -> Vec<(u32, String)> {
        let mut replies = self.option(option, &meta_data(export, queries));
        assert_eq!(replies.pop().unwrap().0, ACK);
        let parse = |(kind, data): (u32, Vec<u8>)| {
            assert_eq!(kind, 4);
            let name = String::from_utf8(data[4..].to_vec()).unwrap();
            (u32::from_be_bytes(data[..4].try_into().unwrap()), name)
        };
        replies.into_iter().map(parse).collect()
    }

    /// Chooses an export by `NBD_OPT_GO`.
    pub(crate) fn go(&mut self, export: &str) -> Chosen {
        let mut replies = self.option(7, &info_data(export, &[]));
        assert_eq!(replies.pop().unwrap().0, ACK, "the export is granted");
        let info = replies.iter().find(|(kind, data)| *kind == 3 && data[..2] == [0, 0]);
        let (_, data) = info.expect("the one answer that there must be");
        Chosen {
            size: u64::from_be_bytes(data[2..10].try_into().unwrap()),
            flags: u16::from_be_bytes(data[10..12].try_into().unwrap()),
        }
    }

    /// Sends a request; answers its cookie.
    pub(crate) fn send(&mut self, kind: u16, flags: u16, offset: u64, len: u32, data: &[u8]) -> u64 {
        self.next_cookie += 1;
        let bytes = request(kind, flags, self.next_cookie, offset, len, data);
        self.stream.write_all(&bytes).unwrap();
        self.next_cookie
    }

    /// The next answer; `simple_len` is what a simple one without error has as data.
    pub(crate) fn reply(&mut self, simple_len: usize) -> io::Result<(Reply, Vec<u8>)> {
        let mut magic = [0; 4];
        self.stream.read_exact(&mut magic)?;
        match u32::from_be_bytes(magic) {
            0x6744_6698 => {
                let mut rest = [0; 12];
                self.stream.read_exact(&mut rest)?;
                let error = u32::from_be_bytes(rest[..4].try_into().unwrap());
                let cookie = u64::from_be_bytes(rest[4..].try_into().unwrap());
                let mut data = vec![0; if error == 0 { simple_len } else { 0 }];
                self.stream.read_exact(&mut data)?;
                Ok((Reply::Simple { error, cookie }, data))
            }
            0x668e_33ef => {
                let mut rest = [0; 16];
                self.stream.read_exact(&mut rest)?;
                let flags = u16::from_be_bytes([rest[0], rest[1]]);
                let kind = u16::from_be_bytes([rest[2], rest[3]]);
                let cookie = u64::from_be_bytes(rest[4..12].try_into().unwrap());
                let mut payload = vec![0; u32::from_be_bytes(rest[12..].try_into().unwrap()) as usize];
                self.stream.read_exact(&mut payload)?;
                Ok((Reply::Chunk { flags, kind, cookie, payload }, Vec::new()))
            }
            other => panic!("{other:#x} begins no answer"),
        }
    }

    /// All chunks up to the final one, or the one simple answer.
    pub(crate) fn replies(&mut self) -> Vec<Reply> {
        let mut all = Vec::new();
        loop {
            let (reply, _) = self.reply(0).unwrap();
            let last = match &reply {
                Reply::Simple { .. } => true,
                Reply::Chunk { flags, .. } => flags & 1 != 0,
            };
            all.push(reply);
            if last {
                return all;
            }
        }
    }

    /// Sends a request other than a read and answers its error, or zero.
    pub(crate) fn error_of(&mut self, kind: u16, flags: u16, offset: u64, len: u32, data: &[u8]) -> u32 {
        let sent = self.send(kind, flags, offset, len, data);
        let replies = self.replies();
        for reply in &replies {
            let (Reply::Simple { cookie, .. } | Reply::Chunk { cookie, .. }) = reply;
            assert_eq!(*cookie, sent);
        }
        replies.iter().map(Reply::error).max().unwrap()
    }

    /// Reads in simple form; answers the error or the bytes.
    pub(crate) fn read_simple(&mut self, offset: u64, len: u32) -> Result<Vec<u8>, u32> {
        self.send(0, 0, offset, len, &[]);
        match self.reply(len as usize).unwrap() {
            (Reply::Simple { error: 0, .. }, data) => Ok(data),
            (Reply::Simple { error, .. }, _) => Err(error),
            (chunk, _) => panic!("{chunk:?} where chunks were not agreed on"),
        }
    }

    /// Reads in chunks, and checks that they are what they must be; answers the error or the bytes, and the holes.
    pub(crate) fn read(&mut self, flags: u16, offset: u64, len: u32) -> Result<(Vec<u8>, u64), u32> {
        self.send(0, flags, offset, len, &[]);
        assemble(&self.replies(), offset, len)
    }
}

/// Puts the chunks of a read together: they must cover it, once.
pub(crate) fn assemble(replies: &[Reply], offset: u64, len: u32) -> Result<(Vec<u8>, u64), u32> {
    let mut bytes = vec![0; len as usize];
    let mut covered = vec![false; len as usize];
    let mut holes = 0;
    for reply in replies {
        let Reply::Chunk { kind, payload, .. } = reply else { panic!("{reply:?} answers a read") };
        if reply.error() != 0 {
            return Err(reply.error());
        }
        let at = || (u64::from_be_bytes(payload[..8].try_into().unwrap()) - offset) as usize;
        let range = match kind {
            0 => continue,
            1 => {
                assert!(payload.len() >= 9, "a chunk of data has some");
                bytes[at()..at() + payload.len() - 8].copy_from_slice(&payload[8..]);
                at()..at() + payload.len() - 8
            }
            2 => {
                let hole = u32::from_be_bytes(payload[8..].try_into().unwrap()) as usize;
                assert!(hole > 0);
                holes += hole as u64;
                at()..at() + hole
            }
            kind => panic!("a chunk of kind {kind} answers a read"),
        };
        for covered in &mut covered[range] {
            assert!(!std::mem::replace(covered, true), "chunks overlap");
        }
    }
    assert!(covered.iter().all(|covered| *covered), "chunks cover the whole read");
    Ok((bytes, holes))
}

pub(crate) fn request(kind: u16, flags: u16, cookie: u64, offset: u64, len: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes.extend(data);
    bytes
}

/// A string after its length.
pub(crate) fn sized(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat()
}

pub(crate) fn info_data(export: &str, wanted: &[u16]) -> Vec<u8> {
    let mut data = sized(export);
    data.extend((wanted.len() as u16).to_be_bytes());
    data.extend(wanted.iter().flat_map(|item| item.to_be_bytes()));
    data
}

pub(crate) fn meta_data(export: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = sized(export);
    data.extend((queries.len() as u32).to_be_bytes());
    data.extend(queries.iter().flat_map(|query| sized(query)));
    data
}
