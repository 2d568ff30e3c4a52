//! Agreeing on an export: fixed newstyle negotiation.

mod metadata;
mod options;
mod reply;

use std::io;
use std::sync::Arc;

use zerocopy::{FromZeros, IntoBytes};

use crate::error::Reason;
use crate::export::ContextId;
use crate::layout::{
    CLIENT_FIXED_NEWSTYLE, CLIENT_NO_ZEROES, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, Greeting, INIT_PASSWD,
    OPT_ABORT, OPT_EXPORT_NAME, OPT_GO, OPT_INFO, OPT_LIST, OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT,
    OPT_STARTTLS, OPT_STRUCTURED_REPLY, OPTION_MAGIC, OptionHeader, REP_ERR_INVALID, REP_ERR_POLICY,
    REP_ERR_SHUTDOWN, REP_ERR_TLS_REQD, REP_ERR_TOO_BIG, REP_ERR_UNSUP,
};
use crate::session::{Observer, Session};
use crate::transport::{Encryption, Transport, read_exact, write_all};
use crate::{Error, Export, Exports, Result};
use reply::Replies;

/// The longest data of an option that is read: a name and some queries.
const MOST_DATA: u32 = 64 << 10;
/// The longest data of an option that is passed over; a client that sends more is not one.
const MOST_SKIPPED: u32 = 1 << 20;
/// How many options a client may send.
const MOST_OPTIONS: u32 = 4096;

/// How a negotiation ended that did not fail.
#[derive(Debug)]
pub enum Negotiated {
    /// The client chose an export.
    Chosen(Session),
    /// The client said goodbye, as one does that only wanted to look.
    Aborted,
    /// The client hung up between two options.
    HungUp,
}

/// Greets a client and answers its options until it chooses an export or goes.
pub fn negotiate(
    transport: &dyn Transport,
    exports: &Exports,
    observer: &dyn Observer,
) -> Result<Negotiated> {
    let greeting = Greeting {
        init_passwd: INIT_PASSWD.into(),
        option_magic: OPTION_MAGIC.into(),
        handshake_flags: (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).into(),
    };
    write_all(transport, &mut [io::IoSlice::new(greeting.as_bytes())])?;
    let mut flags = [0; 4];
    match receive_first(transport, &mut flags)? {
        Received::End => return Ok(Negotiated::HungUp),
        Received::All => {}
    }
    let flags = u32::from_be_bytes(flags);
    let known = CLIENT_FIXED_NEWSTYLE | CLIENT_NO_ZEROES;
    if flags & !known != 0 {
        let (expected, actual) = (u64::from(known), u64::from(flags));
        return Err(Reason::Protocol { what: "the client's flags", expected, actual }.into());
    }
    let mut handshake = Handshake {
        transport,
        exports,
        fixed: flags & CLIENT_FIXED_NEWSTYLE != 0,
        zeroes: flags & CLIENT_NO_ZEROES == 0,
        structured: false,
        contexts: None,
    };
    for _ in 0..MOST_OPTIONS {
        if let Some(negotiated) = handshake.next_option(observer)? {
            return Ok(negotiated);
        }
    }
    Err(Reason::TooManyOptions { most: MOST_OPTIONS }.into())
}

enum Received {
    All,
    End,
}

/// Fills `buf`, unless the stream ends before its first byte.
fn receive_first(transport: &dyn Transport, buf: &mut [u8]) -> Result<Received> {
    let (first, rest) = buf.split_at_mut(1);
    match read_exact(transport, first) {
        Err(error)
            if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) =>
        {
            return Ok(Received::End);
        }
        other => other.map_err(Error::connection("receive an option"))?,
    }
    read_exact(transport, rest).map_err(Error::connection("receive an option"))?;
    Ok(Received::All)
}

/// What has been agreed on so far.
struct Handshake<'a> {
    transport: &'a dyn Transport,
    exports: &'a Exports,
    /// Whether the client understands answers to options.
    fixed: bool,
    /// Whether 124 zeros follow the answer to `NBD_OPT_EXPORT_NAME`.
    zeroes: bool,
    structured: bool,
    /// Which contexts were selected, of which export.
    contexts: Option<(Arc<Export>, Vec<ContextId>)>,
}

impl Handshake<'_> {
    fn next_option(&mut self, observer: &dyn Observer) -> Result<Option<Negotiated>> {
        let mut header = OptionHeader::new_zeroed();
        if matches!(receive_first(self.transport, header.as_mut_bytes())?, Received::End) {
            return Ok(Some(Negotiated::HungUp));
        }
        if header.magic.get() != OPTION_MAGIC {
            let (expected, actual) = (OPTION_MAGIC, header.magic.get());
            return Err(Reason::Protocol { what: "the mark of an option", expected, actual }.into());
        }
        let (option, length) = (header.option.get(), header.length.get());
        let replies = Replies::new(self.transport, option);
        if let Some(refused) = self.refused(option, observer) {
            self.skip(length)?;
            // `NBD_OPT_EXPORT_NAME` has no answer that refuses.
            return match option {
                OPT_EXPORT_NAME => Err(Reason::TlsRequired.into()),
                _ => replies.error(refused.0, refused.1).map(|()| None),
            };
        }
        let Some(data) = self.data(option, length)? else {
            return match option {
                OPT_EXPORT_NAME => Err(too_long(length)),
                _ => replies.error(REP_ERR_TOO_BIG, "the data of the option is too long").map(|()| None),
            };
        };
        self.answer(option, &data, &replies)
    }

    /// Why an option is not even looked at.
    fn refused(&self, option: u32, observer: &dyn Observer) -> Option<(u32, &'static str)> {
        if option == OPT_ABORT {
            return None;
        }
        if self.transport.encryption() == Encryption::Required && option != OPT_STARTTLS {
            return Some((REP_ERR_TLS_REQD, "this server wants TLS first"));
        }
        // Choosing by the old option has no answer that refuses; the session ends at once instead.
        let stopping = observer.is_stopping() && option != OPT_EXPORT_NAME;
        stopping.then_some((REP_ERR_SHUTDOWN, "this server is shutting down"))
    }

    fn answer(&mut self, option: u32, data: &[u8], replies: &Replies<'_>) -> Result<Option<Negotiated>> {
        let only_alone = matches!(option, OPT_LIST | OPT_STARTTLS | OPT_STRUCTURED_REPLY);
        if only_alone && !data.is_empty() {
            return replies.error(REP_ERR_INVALID, "the option has no data").map(|()| None);
        }
        match option {
            OPT_EXPORT_NAME => return self.export_name(data).map(Some),
            OPT_GO | OPT_INFO => return self.info(option == OPT_GO, data, replies),
            OPT_ABORT => {
                // Many clients do not wait for the answer.
                let _ = replies.ack();
                return Ok(Some(Negotiated::Aborted));
            }
            OPT_LIST => self.list(replies)?,
            OPT_STARTTLS => self.start_tls(replies)?,
            OPT_STRUCTURED_REPLY => {
                self.structured = true;
                replies.ack()?;
            }
            OPT_LIST_META_CONTEXT => self.list_contexts(data, replies)?,
            OPT_SET_META_CONTEXT => self.set_contexts(data, replies)?,
            _ => replies.error(REP_ERR_UNSUP, "this server does not know the option")?,
        }
        Ok(None)
    }

    fn start_tls(&mut self, replies: &Replies<'_>) -> Result<()> {
        match self.transport.encryption() {
            Encryption::Off => replies.error(REP_ERR_POLICY, "this server does not use TLS"),
            Encryption::Active => replies.error(REP_ERR_INVALID, "TLS was started already"),
            Encryption::Offered | Encryption::Required if !self.fixed => {
                replies.error(REP_ERR_INVALID, "TLS needs fixed newstyle negotiation")
            }
            Encryption::Offered | Encryption::Required => {
                replies.ack()?;
                self.transport.start_tls().map_err(Error::connection("start TLS"))?;
                // Whatever was agreed on before may have been somebody else's wish.
                self.structured = false;
                self.contexts = None;
                Ok(())
            }
        }
    }

    fn session(&self, export: &Arc<Export>) -> Session {
        let contexts = self.contexts.iter().filter(|(of, _)| Arc::ptr_eq(of, export));
        Session {
            export: export.clone(),
            size: export.disk().len(),
            structured: self.structured,
            contexts: contexts.flat_map(|(_, contexts)| contexts.iter().copied()).collect(),
        }
    }

    /// Reads the data of an option; passes over it, with nothing to show, where it is too long or not for anything.
    fn data(&self, option: u32, length: u32) -> Result<Option<Vec<u8>>> {
        let wanted = matches!(option, OPT_EXPORT_NAME..=OPT_LIST | OPT_STARTTLS..=OPT_SET_META_CONTEXT);
        if !wanted || option == OPT_ABORT {
            return self.skip(length).map(|()| Some(Vec::new()));
        }
        if length > MOST_DATA {
            return self.skip(length).map(|()| None);
        }
        let mut data = vec![0; length as usize];
        read_exact(self.transport, &mut data).map_err(Error::connection("receive an option"))?;
        Ok(Some(data))
    }

    fn skip(&self, length: u32) -> Result<()> {
        if length > MOST_SKIPPED {
            return Err(too_long(length));
        }
        let mut scratch = [0; 4096];
        let mut left = length as usize;
        while left > 0 {
            let count = left.min(scratch.len());
            let part = &mut scratch[..count];
            read_exact(self.transport, part).map_err(Error::connection("receive an option"))?;
            left -= count;
        }
        Ok(())
    }
}

fn too_long(length: u32) -> Error {
    Reason::TooLong {
        what: "the data of an option",
        most: u64::from(MOST_SKIPPED),
        actual: u64::from(length),
    }
    .into()
}
