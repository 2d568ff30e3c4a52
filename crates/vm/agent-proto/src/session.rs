use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU64;

use serde_bytes::ByteBuf;

use crate::error::{Error, Reason, Result};
use crate::frame::{self, AGENT_MAGIC, Deframer, HOST_MAGIC, Item, Preamble};
use crate::message::{Hello, Message, Request};
use crate::stream::Stream;

/// The oldest protocol version this library speaks.
pub const VERSION_MIN: u16 = 1;
/// The newest protocol version this library speaks.
pub const VERSION_MAX: u16 = 1;
/// How many streams may be open at once.
pub const MAX_STREAMS: usize = 64;
/// How many bytes of data one side may send on a stream before the other grants more.
pub const WINDOW: usize = 128 * 1024;
/// The most data in one frame; larger pieces are cut, so that streams take turns.
pub const MAX_DATA: usize = 32 * 1024;

/// Encoded bytes beyond which no more frames are encoded until some have been sent.
const OUTPUT_TARGET: usize = 64 * 1024;

/// The number of a stream; the host counts up from 1, and never uses one twice in a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(u32);

impl StreamId {
    /// The number on the wire.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl std::fmt::Display for StreamId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What a session has to say to its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The session is up. At the host, with what the agent says of itself; before this nothing is sent but
    /// the preamble.
    Established(Hello),
    /// At the agent: a host began a new session. All streams there were have ended.
    Begun,
    /// At the host: the agent that answered is gone and another one is there. This session is over; a new
    /// one, with a new epoch, will reach it.
    Replaced,
    /// A message on a stream. The last of a stream has [`Message::is_last`].
    Message(StreamId, Message),
    /// At the host: the agent leaves, or the guest ends.
    Goodbye(crate::Goodbye),
    /// At the agent: bytes from the host make no sense. All streams have ended; everything is dropped until
    /// a host begins a new session.
    Lost(Error),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Role {
    Host,
    Agent(Hello),
}

/// One end of the channel between host and agent, without any I/O.
///
/// Its owner feeds it the bytes that arrive, takes the events out until there are none, and sends what
/// [`Session::output`] holds. A host's session ends with the first error; an agent's goes on for ever, as
/// one host session follows another.
#[derive(Debug)]
pub struct Session {
    role: Role,
    epoch: u64,
    established: bool,
    incoming: Deframer,
    out: Vec<u8>,
    sent: usize,
    /// Messages that do not wait for their stream's turn.
    urgent: VecDeque<(u32, Message)>,
    streams: BTreeMap<u32, Stream>,
    /// The stream whose turn was last.
    turn: u32,
    last_opened: u32,
}

impl Session {
    /// Begins a session from the host; `epoch` should be random.
    ///
    /// [`Event::Established`] follows when the agent answers. Streams may be opened before.
    pub fn host(epoch: NonZeroU64) -> Self {
        let mut session = Self::new(Role::Host, Deframer::new(AGENT_MAGIC));
        session.epoch = epoch.get();
        session.write_preamble();
        session
    }

    /// Waits as the agent for a host to begin a session, and announces that it is there.
    pub fn agent(hello: Hello) -> Self {
        let mut session = Self::new(Role::Agent(hello), Deframer::new(HOST_MAGIC));
        session.write_preamble();
        session
    }

    fn new(role: Role, incoming: Deframer) -> Self {
        Self {
            role,
            epoch: 0,
            established: false,
            incoming,
            out: Vec::new(),
            sent: 0,
            urgent: VecDeque::new(),
            streams: BTreeMap::new(),
            turn: 0,
            last_opened: 0,
        }
    }

    /// Takes in bytes from the peer, at most some tens of kilobytes at a time.
    ///
    /// Call [`Session::next_event`] until it has none before feeding more: that bounds the memory.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.incoming.feed(bytes);
    }

    /// Takes out what happened next, if anything.
    ///
    /// # Errors
    ///
    /// At the host only: the agent broke the protocol or speaks no version of it that this side does. The
    /// session is over then.
    pub fn next_event(&mut self) -> Result<Option<Event>> {
        while let Some(item) = self.incoming.next() {
            let outcome = match item {
                Item::Preamble(preamble) => self.on_preamble(preamble),
                Item::Frame { stream, tag, message } if self.is_current(tag) => {
                    self.on_message(stream, message)
                }
                Item::Undecodable { stream, tag } if self.is_current(tag) => {
                    Err(Reason::Undecodable { stream }.into())
                }
                Item::Broken { expected, actual } => Err(Reason::Protocol {
                    what: "the byte that marks a frame is wrong",
                    expected: u64::from(expected),
                    actual: u64::from(actual),
                }
                .into()),
                Item::Frame { .. } | Item::Undecodable { .. } => Ok(None),
            };
            match (outcome, &self.role) {
                (Ok(None), _) => {}
                (Ok(event), _) => return Ok(event),
                (Err(error), Role::Host) => return Err(error),
                (Err(error), Role::Agent(_)) => return Ok(Some(self.lose(error))),
            }
        }
        Ok(None)
    }

    /// Opens a stream with a request, as the host.
    ///
    /// # Errors
    ///
    /// Too many streams are open, or the request does not fit in a frame.
    pub fn open(&mut self, request: Request) -> Result<StreamId> {
        if self.streams.len() >= MAX_STREAMS {
            return Err(Reason::TooManyStreams { max: MAX_STREAMS }.into());
        }
        let message = Message::Open(request);
        self.check_role(0, &message)?;
        frame::check_size(&message)?;
        let Some(id) = self.last_opened.checked_add(1) else {
            return Err(Reason::TooManyStreams { max: MAX_STREAMS }.into());
        };
        self.last_opened = id;
        self.streams.entry(id).or_default().queue(message);
        Ok(StreamId(id))
    }

    /// How many bytes of data the stream takes now; more once the peer has granted more.
    pub fn sendable(&self, stream: StreamId) -> usize {
        self.streams.get(&stream.0).map_or(0, Stream::sendable)
    }

    /// Queues as much of `bytes` as the stream takes now, and answers how much that was.
    pub fn send_data(&mut self, stream: StreamId, bytes: &[u8]) -> usize {
        self.send_pieces(stream, bytes, Message::Data)
    }

    /// Queues standard error, as [`Session::send_data`] does.
    pub fn send_stderr(&mut self, stream: StreamId, bytes: &[u8]) -> usize {
        self.send_pieces(stream, bytes, Message::Stderr)
    }

    fn send_pieces(&mut self, stream: StreamId, bytes: &[u8], message: fn(ByteBuf) -> Message) -> usize {
        let Some(stream) = self.streams.get_mut(&stream.0) else { return 0 };
        let len = bytes.len().min(stream.sendable());
        for piece in bytes[..len].chunks(MAX_DATA) {
            stream.queue(message(ByteBuf::from(piece)));
        }
        len
    }

    /// Queues a message other than data, behind the stream's data.
    ///
    /// [`Message::Reset`] goes before it and drops it. After a message that [`Message::is_last`] the stream
    /// is closed on this side.
    ///
    /// # Errors
    ///
    /// The stream is not open, or the message is not this side's to send, or it does not fit in a frame.
    pub fn send(&mut self, stream: StreamId, message: Message) -> Result<()> {
        self.check_role(stream.0, &message)?;
        frame::check_size(&message)?;
        let Some(state) = self.streams.get_mut(&stream.0).filter(|state| !state.is_finished()) else {
            return Err(Reason::Closed { stream: stream.0 }.into());
        };
        if message == Message::Reset {
            let opened = !state.is_unopened();
            self.streams.remove(&stream.0);
            if opened {
                self.urgent.push_back((stream.0, message));
            }
        } else {
            state.queue(message);
        }
        Ok(())
    }

    /// Reports that `len` bytes of the stream's data have been taken on, so that the peer may send more.
    pub fn consumed(&mut self, stream: StreamId, len: usize) {
        if let Some(state) = self.streams.get_mut(&stream.0) {
            state.consume(len);
        }
    }

    /// Says goodbye, as the agent.
    ///
    /// # Errors
    ///
    /// This is a host's session.
    pub fn goodbye(&mut self, why: crate::Goodbye) -> Result<()> {
        let message = Message::Goodbye(why);
        self.check_role(0, &message)?;
        self.urgent.push_back((0, message));
        Ok(())
    }

    /// Whether the handshake is over.
    pub fn is_established(&self) -> bool {
        self.established
    }

    /// How many streams are open.
    pub fn open_streams(&self) -> usize {
        self.streams.len()
    }

    /// The bytes to send next; report with [`Session::wrote`] how many of them went out.
    pub fn output(&mut self) -> &[u8] {
        self.encode_more();
        &self.out[self.sent..]
    }

    /// Whether there is anything to send.
    pub fn has_output(&self) -> bool {
        let waiting = || !self.urgent.is_empty() || self.streams.values().any(Stream::has_output);
        self.sent < self.out.len() || (self.established && waiting())
    }

    /// Drops `len` bytes, which have been sent, from [`Session::output`].
    pub fn wrote(&mut self, len: usize) {
        self.sent = (self.sent + len).min(self.out.len());
        if self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
        }
    }

    fn encode_more(&mut self) {
        while self.established && self.out.len() - self.sent < OUTPUT_TARGET {
            let Some((stream, message)) = self.next_message() else { return };
            let magic = self.magic();
            // Sizes were checked when the message was queued; data pieces fit by their length.
            frame::encode(&message, stream, self.tag(), &magic, &mut self.out)
                .expect("a queued message fits in a frame");
        }
    }

    /// Urgent messages first, then credit, then one message of the next stream in turn.
    fn next_message(&mut self) -> Option<(u32, Message)> {
        if let Some(next) = self.urgent.pop_front() {
            return Some(next);
        }
        let credit = self.streams.iter_mut().find_map(|(id, stream)| Some((*id, stream.take_credit()?)));
        if let Some((id, credit)) = credit {
            return Some((id, Message::Credit(credit)));
        }
        let after = (std::ops::Bound::Excluded(self.turn), std::ops::Bound::Unbounded);
        let next = |(id, stream): (&u32, &mut Stream)| Some((*id, stream.pop()?));
        let (id, message) = match self.streams.range_mut(after).find_map(next) {
            Some(found) => found,
            None => self.streams.iter_mut().find_map(next)?,
        };
        self.turn = id;
        if message.is_last() {
            self.streams.remove(&id);
        }
        Some((id, message))
    }

    fn on_preamble(&mut self, preamble: Preamble) -> Result<Option<Event>> {
        if self.role == Role::Host {
            return self.on_agent_preamble(preamble);
        }
        self.end_streams();
        self.epoch = preamble.epoch;
        self.established = versions_meet(preamble);
        self.out.clear();
        self.sent = 0;
        self.last_opened = 0;
        self.write_preamble();
        match &self.role {
            Role::Agent(hello) if self.established => {
                self.urgent.push_back((0, Message::Hello(hello.clone())));
            }
            // The host learns from the preamble that it is too old or too new.
            _ => self.epoch = 0,
        }
        Ok(Some(Event::Begun))
    }

    fn on_agent_preamble(&mut self, preamble: Preamble) -> Result<Option<Event>> {
        if preamble.epoch != self.epoch {
            if self.established {
                self.end_streams();
                self.established = false;
                return Ok(Some(Event::Replaced));
            }
            // An agent that has just arrived may not have seen this side's preamble.
            if self.sent == self.out.len() {
                self.write_preamble();
            }
        } else if !versions_meet(preamble) {
            return Err(Reason::Incompatible {
                ours_min: VERSION_MIN,
                ours_max: VERSION_MAX,
                theirs_min: preamble.min,
                theirs_max: preamble.max,
            }
            .into());
        }
        Ok(None)
    }

    fn on_message(&mut self, id: u32, message: Message) -> Result<Option<Event>> {
        let from_peer = match self.role {
            Role::Host => message.is_from_agent(),
            Role::Agent(_) => message.is_from_host(),
        };
        let early = !self.established && !matches!(message, Message::Hello(_));
        if !from_peer || early || message.is_session() != (id == 0) {
            return Err(Reason::Misplaced { message: message.name(), stream: id }.into());
        }
        match message {
            Message::Hello(hello) => {
                let again = std::mem::replace(&mut self.established, true);
                Ok((!again).then_some(Event::Established(hello)))
            }
            Message::Goodbye(why) => Ok(Some(Event::Goodbye(why))),
            Message::Open(_) => self.on_open(id, message),
            message => self.on_stream(id, message),
        }
    }

    fn on_open(&mut self, id: u32, message: Message) -> Result<Option<Event>> {
        if id <= self.last_opened {
            return Err(protocol("a stream number comes again", u64::from(self.last_opened) + 1, id.into()));
        }
        if self.streams.len() >= MAX_STREAMS {
            return Err(Reason::TooManyStreams { max: MAX_STREAMS }.into());
        }
        self.last_opened = id;
        self.streams.insert(id, Stream::default());
        Ok(Some(Event::Message(StreamId(id), message)))
    }

    fn on_stream(&mut self, id: u32, message: Message) -> Result<Option<Event>> {
        if id > self.last_opened {
            return Err(protocol("the stream was never opened", self.last_opened.into(), id.into()));
        }
        // What crossed the stream's end on its way here is of no interest any more.
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(None) };
        stream.receive(&message)?;
        let unwanted = stream.is_finished() && message != Message::Reset;
        if unwanted || matches!(message, Message::Credit(_)) {
            return Ok(None);
        }
        if message.is_last() {
            self.streams.remove(&id);
        }
        Ok(Some(Event::Message(StreamId(id), message)))
    }

    fn is_current(&self, tag: u32) -> bool {
        self.epoch != 0 && tag == self.tag()
    }

    /// The part of the epoch that each frame carries.
    fn tag(&self) -> u32 {
        (self.epoch & u64::from(u32::MAX)) as u32
    }

    fn magic(&self) -> frame::Magic {
        match self.role {
            Role::Host => HOST_MAGIC,
            Role::Agent(_) => AGENT_MAGIC,
        }
    }

    fn write_preamble(&mut self) {
        let preamble = Preamble { epoch: self.epoch, min: VERSION_MIN, max: VERSION_MAX };
        let magic = self.magic();
        preamble.encode(&magic, &mut self.out);
    }

    fn end_streams(&mut self) {
        self.streams.clear();
        self.urgent.clear();
        self.turn = 0;
    }

    fn lose(&mut self, error: Error) -> Event {
        self.incoming.desync();
        self.end_streams();
        self.established = false;
        // An announcement tells the host that it has to begin again.
        self.epoch = 0;
        self.out.clear();
        self.sent = 0;
        self.write_preamble();
        Event::Lost(error)
    }

    fn check_role(&self, stream: u32, message: &Message) -> Result<()> {
        let ours = match self.role {
            Role::Host => message.is_from_host(),
            Role::Agent(_) => message.is_from_agent(),
        };
        match ours {
            true => Ok(()),
            false => Err(Reason::Misplaced { message: message.name(), stream }.into()),
        }
    }
}

fn protocol(what: &'static str, expected: u64, actual: u64) -> Error {
    Reason::Protocol { what, expected, actual }.into()
}

fn versions_meet(theirs: Preamble) -> bool {
    theirs.min <= VERSION_MAX && theirs.max >= VERSION_MIN && theirs.min <= theirs.max
}
