//! The reader of the machine protocol without a connection, for the fuzzer and for tests.

use std::io::Cursor;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use tokio::io::BufReader;

use super::read_message;

/// What a monitor's bytes came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replayed {
    /// How many messages were understood before the end or the first line that was none.
    pub messages: usize,
    /// Whether the end came after a whole message.
    pub complete: bool,
}

/// Reads bytes as if QEMU's monitor had sent them, at most `piece` at a time.
///
/// Panics where the reader waits for something that cannot come.
pub fn replay(bytes: &[u8], piece: usize) -> Replayed {
    let mut from = BufReader::with_capacity(piece.max(1), Cursor::new(bytes));
    let mut messages = 0;
    loop {
        let next = pin!(read_message(&mut from)).poll(&mut Context::from_waker(Waker::noop()));
        match next {
            Poll::Ready(Ok(Some(_))) => messages += 1,
            Poll::Ready(Ok(None)) => return Replayed { messages, complete: true },
            Poll::Ready(Err(_)) => return Replayed { messages, complete: false },
            Poll::Pending => unreachable!("all bytes are there"),
        }
    }
}

/// Compares a replay with what another reading of the same bytes allows, and panics where they differ.
///
/// It does not depend on how the bytes are cut; every message is a whole line of JSON; nothing after the first other line is read;
/// and what ends in the middle of a line is not complete.
pub fn check(bytes: &[u8], piece: usize) {
    let replayed = replay(bytes, piece);
    assert_eq!(replayed, replay(bytes, bytes.len()), "the same bytes are read the same");
    let lines: Vec<_> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
    let is_json =
        |line: &&&[u8]| line.ends_with(b"\n") && serde_json::from_slice::<serde_json::Value>(line).is_ok();
    let leading = lines.iter().take_while(is_json).count();
    assert!(replayed.messages <= leading, "{} messages in {leading} lines", replayed.messages);
    assert_eq!(replayed.complete, replayed.messages == lines.len(), "the end comes after the last line");
}
