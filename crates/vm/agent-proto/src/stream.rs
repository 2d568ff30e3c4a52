use std::collections::VecDeque;

use crate::Message;
use crate::error::{Reason, Result};
use crate::session::WINDOW;

/// One end's view of a stream: what waits to be sent, and how much data may flow either way.
#[derive(Debug)]
pub(crate) struct Stream {
    queue: VecDeque<Message>,
    /// Bytes of data in the queue.
    queued: usize,
    /// Bytes of data that the peer still takes.
    credit: usize,
    /// Bytes of data that the peer may still send.
    window: usize,
    /// Bytes taken on here and not yet granted again.
    consumed: usize,
    /// Whether the last message is queued.
    finished: bool,
}

impl Default for Stream {
    fn default() -> Self {
        let queue = VecDeque::new();
        Self { queue, queued: 0, credit: WINDOW, window: WINDOW, consumed: 0, finished: false }
    }
}

impl Stream {
    /// A peer may grant what it likes; what waits here stays within one window.
    pub(crate) fn sendable(&self) -> usize {
        if self.finished { 0 } else { self.credit.min(WINDOW.saturating_sub(self.queued)) }
    }

    pub(crate) fn queue(&mut self, message: Message) {
        let weight = message.weight();
        self.queued += weight;
        self.credit = self.credit.saturating_sub(weight);
        self.finished |= message.is_last();
        self.queue.push_back(message);
    }

    pub(crate) fn pop(&mut self) -> Option<Message> {
        let message = self.queue.pop_front()?;
        self.queued -= message.weight();
        Some(message)
    }

    pub(crate) fn has_output(&self) -> bool {
        !self.queue.is_empty() || self.grantable()
    }

    /// Whether the request that opens it has not been sent yet.
    pub(crate) fn is_unopened(&self) -> bool {
        matches!(self.queue.front(), Some(Message::Open(_)))
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.finished
    }

    /// Accounts for a message from the peer.
    pub(crate) fn receive(&mut self, message: &Message) -> Result<()> {
        let weight = message.weight();
        if weight > self.window {
            let (expected, actual) = (self.window as u64, weight as u64);
            let what = "more data than the window allows";
            return Err(Reason::Protocol { what, expected, actual }.into());
        }
        self.window -= weight;
        if let Message::Credit(more) = message {
            self.credit = self.credit.saturating_add(*more as usize);
        }
        Ok(())
    }

    /// Never grants more than the peer has sent, whatever the caller says.
    pub(crate) fn consume(&mut self, len: usize) {
        let outstanding = WINDOW - self.window - self.consumed;
        self.consumed += len.min(outstanding);
    }

    fn grantable(&self) -> bool {
        !self.finished && self.consumed >= WINDOW / 4
    }

    pub(crate) fn take_credit(&mut self) -> Option<u32> {
        if !self.grantable() {
            return None;
        }
        let credit = std::mem::take(&mut self.consumed);
        self.window += credit;
        u32::try_from(credit).ok()
    }
}
