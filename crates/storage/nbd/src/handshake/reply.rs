use std::io::IoSlice;

use zerocopy::IntoBytes;

use crate::Result;
use crate::layout::{OPTION_REPLY_MAGIC, OptionReply, REP_ACK};
use crate::transport::{Transport, write_all};

/// The answers to one option.
pub(super) struct Replies<'a> {
    transport: &'a dyn Transport,
    option: u32,
}

impl<'a> Replies<'a> {
    pub(super) fn new(transport: &'a dyn Transport, option: u32) -> Self {
        Self { transport, option }
    }

    /// The last answer to an option that was carried out.
    pub(super) fn ack(&self) -> Result<()> {
        self.send(REP_ACK, &[])
    }

    /// The last answer to an option that was not, with words for the client's user.
    pub(super) fn error(&self, reply: u32, why: &str) -> Result<()> {
        self.send(reply, why.as_bytes())
    }

    /// One of several answers.
    pub(super) fn send(&self, reply: u32, data: &[u8]) -> Result<()> {
        let header = OptionReply {
            magic: OPTION_REPLY_MAGIC.into(),
            option: self.option.into(),
            reply: reply.into(),
            // A name and a description, at most.
            length: u32::try_from(data.len()).unwrap_or(u32::MAX).into(),
        };
        write_all(self.transport, &mut [IoSlice::new(header.as_bytes()), IoSlice::new(data)])
    }
}
