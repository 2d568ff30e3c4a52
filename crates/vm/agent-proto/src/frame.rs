//! Bytes on the wire: preambles and frames.
//!
//! ```text
//! preamble   magic 16 · epoch u64 · min u16 · max u16
//! frame      marker u8 · mask 2 bytes · payload length u16 · tag u32 · stream u32 · payload · marker u8
//! ```
//!
//! Integers are little-endian. The payload is a postcard [`Message`], XORed with the mask's two bytes by
//! turns. The sender picks a mask such that the frame does not contain its own magic, and the marker is no byte of a
//! magic: so a magic in the byte stream is always the start of a preamble, wherever the stream was cut.

use crate::Message;
use crate::error::{Reason, Result};

/// The longest frame, with its header and its closing marker.
pub const MAX_FRAME: usize = 64 * 1024;
/// The length of a preamble.
pub(crate) const PREAMBLE: usize = 28;

const MAGIC_LEN: usize = 16;
const HEADER: usize = 13;
const MAX_PAYLOAD: usize = MAX_FRAME - HEADER - 1;
const MARKER: u8 = 0x5A;

/// What opens a preamble of one end.
pub(crate) type Magic = [u8; MAGIC_LEN];
/// Opens the host's preamble.
pub(crate) const HOST_MAGIC: Magic =
    [0xF1, 0x9C, 0x07, 0xE3, 0x42, 0xB8, 0x1D, 0xCA, 0x76, 0x90, 0x2F, 0xD5, 0x08, 0xBE, 0x63, 0xA7];
/// Opens the agent's preamble.
pub(crate) const AGENT_MAGIC: Magic =
    [0xF3, 0x1E, 0xC4, 0x85, 0x39, 0xD0, 0x62, 0xAF, 0x17, 0xEB, 0x54, 0x98, 0x2B, 0xC6, 0x7D, 0x01];

/// How a session opens, in either direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Preamble {
    /// The session's number; 0 in an agent's announcement that it is there and knows of no session.
    pub(crate) epoch: u64,
    /// The oldest version the sender speaks.
    pub(crate) min: u16,
    /// The newest version the sender speaks.
    pub(crate) max: u16,
}

impl Preamble {
    pub(crate) fn encode(&self, magic: &Magic, out: &mut Vec<u8>) {
        out.extend_from_slice(magic);
        out.extend_from_slice(&self.epoch.to_le_bytes());
        out.extend_from_slice(&self.min.to_le_bytes());
        out.extend_from_slice(&self.max.to_le_bytes());
    }

    fn parse(bytes: &[u8; PREAMBLE]) -> Self {
        let [.., e0, e1, e2, e3, e4, e5, e6, e7, n0, n1, x0, x1] = *bytes;
        Self {
            epoch: u64::from_le_bytes([e0, e1, e2, e3, e4, e5, e6, e7]),
            min: u16::from_le_bytes([n0, n1]),
            max: u16::from_le_bytes([x0, x1]),
        }
    }
}

/// Appends one frame to `out`.
pub(crate) fn encode(
    message: &Message,
    stream: u32,
    tag: u32,
    magic: &Magic,
    out: &mut Vec<u8>,
) -> Result<()> {
    let start = out.len();
    out.extend_from_slice(&[MARKER, 0, 0, 0, 0]);
    out.extend_from_slice(&tag.to_le_bytes());
    out.extend_from_slice(&stream.to_le_bytes());
    let mut encoded = postcard::to_extend(message, std::mem::take(out))
        .expect("messages are plain data and a vector takes any length");
    let len = encoded.len() - start - HEADER;
    if len > MAX_PAYLOAD {
        encoded.truncate(start);
        *out = encoded;
        return Err(Reason::TooLarge { len, max: MAX_PAYLOAD }.into());
    }
    encoded[start + 3..start + 5].copy_from_slice(&(len as u16).to_le_bytes());
    hide_magic(&mut encoded[start..], magic);
    encoded.push(MARKER);
    *out = encoded;
    Ok(())
}

/// Refuses a message that does not fit in a frame.
pub(crate) fn check_size(message: &Message) -> Result<()> {
    let len = postcard::experimental::serialized_size(message).unwrap_or(usize::MAX);
    if len > MAX_PAYLOAD {
        return Err(Reason::TooLarge { len, max: MAX_PAYLOAD }.into());
    }
    Ok(())
}

/// Masks a frame's payload such that the frame does not contain `magic`.
fn hide_magic(frame: &mut [u8], magic: &Magic) {
    if find(frame, magic).is_none() {
        return;
    }
    // Each place in the payload rules out at most one mask, and there are more masks than places.
    let mut excluded = std::collections::BTreeSet::from([0]);
    for (at, window) in frame[HEADER..].windows(MAGIC_LEN).enumerate() {
        let mask = [window[at % 2] ^ magic[at % 2], window[1 - at % 2] ^ magic[1 - at % 2]];
        if window.iter().zip(magic).enumerate().all(|(i, (byte, want))| byte ^ mask[(at + i) % 2] == *want) {
            excluded.insert(u16::from_le_bytes(mask));
        }
    }
    // What reaches into the header rules out a few more, found by trying.
    for mask in (1..=u16::MAX).filter(|mask| !excluded.contains(mask)) {
        let mask = mask.to_le_bytes();
        frame[1..3].copy_from_slice(&mask);
        apply_mask(&mut frame[HEADER..], mask);
        if find(frame, magic).is_none() {
            return;
        }
        apply_mask(&mut frame[HEADER..], mask);
    }
}

/// Masks or unmasks a payload.
fn apply_mask(payload: &mut [u8], mask: [u8; 2]) {
    payload.iter_mut().enumerate().for_each(|(at, byte)| *byte ^= mask[at % 2]);
}

/// Where `magic` begins in `bytes`.
fn find(bytes: &[u8], magic: &Magic) -> Option<usize> {
    let mut from = 0;
    while let Some(at) = bytes.get(from..)?.iter().position(|byte| *byte == magic[0]) {
        let at = from + at;
        if bytes[at..].starts_with(magic) {
            return Some(at);
        }
        from = at + 1;
    }
    None
}

/// What a [`Deframer`] finds in the bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Item {
    Preamble(Preamble),
    /// A frame with the epoch tag it carried.
    Frame {
        stream: u32,
        tag: u32,
        message: Message,
    },
    /// A frame whose content is no message.
    Undecodable {
        stream: u32,
        tag: u32,
    },
    /// Bytes that are no frame; everything up to the next preamble is dropped.
    Broken {
        expected: u8,
        actual: u8,
    },
}

/// Cuts the peer's bytes into preambles and frames.
#[derive(Debug)]
pub(crate) struct Deframer {
    magic: Magic,
    buf: Vec<u8>,
    /// Bytes of `buf` already taken.
    start: usize,
    /// Where to look for the magic from.
    scanned: usize,
    /// Whether the bytes at `start` begin a frame or a preamble; otherwise they are dropped up to one.
    synced: bool,
}

impl Deframer {
    /// Waits for a preamble that opens with `magic`.
    pub(crate) fn new(magic: Magic) -> Self {
        Self { magic, buf: Vec::new(), start: 0, scanned: 0, synced: false }
    }

    /// Takes bytes in. Memory stays bounded as long as [`Deframer::next`] is called until it has nothing.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.buf.drain(..self.start);
        self.scanned = self.scanned.saturating_sub(self.start);
        self.start = 0;
        self.buf.extend_from_slice(bytes);
        self.scan();
    }

    /// Drops everything up to the next preamble.
    pub(crate) fn desync(&mut self) {
        self.synced = false;
    }

    /// Finds the last preamble in the buffer: whatever is before it belongs to a session that is over.
    fn scan(&mut self) {
        while let Some(at) = find(&self.buf[self.scanned..], &self.magic) {
            self.start = self.scanned + at;
            self.scanned = self.start + 1;
            self.synced = true;
        }
        self.scanned = self.scanned.max((self.buf.len() + 1).saturating_sub(MAGIC_LEN));
    }

    /// Takes the next item out, if a whole one is there.
    pub(crate) fn next(&mut self) -> Option<Item> {
        if !self.synced {
            // The tail may be the beginning of a magic.
            self.start = self.start.max(self.scanned).min(self.buf.len());
            return None;
        }
        let rest = &self.buf[self.start..];
        let first = *rest.first()?;
        if first == MARKER {
            return self.next_frame();
        }
        if rest.len() < MAGIC_LEN && self.magic.starts_with(rest) {
            return None;
        }
        if !rest.starts_with(&self.magic) {
            return Some(self.broken(MARKER, first));
        }
        let preamble = Preamble::parse(rest.first_chunk()?);
        self.start += PREAMBLE;
        Some(Item::Preamble(preamble))
    }

    fn next_frame(&mut self) -> Option<Item> {
        let rest = &self.buf[self.start..];
        let &[_, m0, m1, l0, l1, t0, t1, t2, t3, s0, s1, s2, s3] = rest.first_chunk::<HEADER>()?;
        let len = usize::from(u16::from_le_bytes([l0, l1])).min(MAX_PAYLOAD);
        let end = *rest.get(HEADER + len)?;
        if end != MARKER {
            // A frame cut short and filled up by the beginning of a preamble ends like this.
            return Some(self.broken(MARKER, end));
        }
        let tag = u32::from_le_bytes([t0, t1, t2, t3]);
        let stream = u32::from_le_bytes([s0, s1, s2, s3]);
        let payload = &mut self.buf[self.start + HEADER..self.start + HEADER + len];
        if [m0, m1] != [0, 0] {
            apply_mask(payload, [m0, m1]);
        }
        let item = match postcard::take_from_bytes(payload) {
            Ok((message, [])) => Item::Frame { stream, tag, message },
            _ => Item::Undecodable { stream, tag },
        };
        self.start += HEADER + len + 1;
        Some(item)
    }

    fn broken(&mut self, expected: u8, actual: u8) -> Item {
        self.desync();
        Item::Broken { expected, actual }
    }
}
