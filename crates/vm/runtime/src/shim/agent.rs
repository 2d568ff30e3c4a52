//! The one session with the agent, shared by everybody who wants something of the guest.
//!
//! Whatever comes from the agent comes from an attacker: [`Session`] bounds frames, streams and windows, and
//! an [`Inbox`] holds two byte strings within one window and no list that a peer could make longer.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::num::NonZeroU64;
use std::rc::Rc;

use tokio::net::UnixStream;
use tokio::sync::{Notify, watch};
use vmwright_agent_proto::{Event, FileInfo, Goodbye, Message, Request, Session, StreamId};

use super::state::AgentState;

/// How much is read from the agent at a time.
const READ: usize = 16 * 1024;

/// What is known of the agent.
#[derive(Debug, Clone, Default)]
pub(super) struct AgentStatus {
    /// What it said of itself, while it answers.
    pub(super) hello: Option<AgentState>,
    /// How it took its leave.
    pub(super) goodbye: Option<Goodbye>,
}

/// Why a session ended.
#[derive(Debug)]
pub(super) enum SessionEnd {
    /// The other end of the channel is gone.
    Closed,
    /// Another agent has come: the same channel carries a new session.
    Replaced,
    /// The agent does not keep to the protocol.
    Broken(vmwright_agent_proto::Error),
    /// The host could not read or write.
    Host(io::Error),
}

/// What has arrived on one stream and has not been taken yet.
#[derive(Debug, Default)]
pub(super) struct Arrived {
    pub(super) output: Vec<u8>,
    pub(super) error_output: Vec<u8>,
    pub(super) file: Option<FileInfo>,
    /// The stream's last message.
    pub(super) last: Option<Message>,
    /// The session ended before the stream did.
    pub(super) lost: bool,
}

impl Arrived {
    fn is_empty(&self) -> bool {
        self.output.is_empty()
            && self.error_output.is_empty()
            && self.file.is_none()
            && self.last.is_none()
            && !self.lost
    }
}

/// One stream's end in the shim.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    arrived: RefCell<Arrived>,
    ready: Notify,
    /// Rung whenever the stream may take more data.
    room: Notify,
}

impl Inbox {
    /// Takes out what has arrived, waiting until something has.
    pub(super) async fn take(&self) -> Arrived {
        loop {
            let arrived = self.arrived.take();
            if !arrived.is_empty() {
                return arrived;
            }
            self.ready.notified().await;
        }
    }

    /// Waits until the stream may take more data.
    pub(super) async fn room(&self) {
        self.room.notified().await;
    }
}

/// A stream that is open; dropping it ends it.
pub(super) struct Stream {
    hub: Rc<Hub>,
    id: StreamId,
    generation: u64,
    pub(super) inbox: Rc<Inbox>,
}

impl Stream {
    /// Queues as much data as the stream takes now; answers how much that was.
    pub(super) fn send_data(&self, bytes: &[u8]) -> usize {
        self.hub.with_session(self.generation, |session| session.send_data(self.id, bytes)).unwrap_or(0)
    }

    /// Queues a message behind the data; a stream that has ended takes none.
    pub(super) fn send(&self, message: Message) {
        // The stream may have ended just now, which its inbox says.
        let _ = self.hub.with_session(self.generation, |session| session.send(self.id, message));
    }

    /// Lets the agent send so much more.
    pub(super) fn consumed(&self, len: usize) {
        self.hub.with_session(self.generation, |session| session.consumed(self.id, len));
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.hub.streams.borrow_mut().remove(&self.id).is_some() {
            self.send(Message::Reset);
        }
    }
}

/// The shim's end of the agent's channel.
pub(super) struct Hub {
    session: RefCell<Option<Session>>,
    /// Tells the streams of one session from the next one's.
    generation: Cell<u64>,
    streams: RefCell<HashMap<StreamId, Rc<Inbox>>>,
    /// Rung when there is something to send.
    output: Notify,
    status: watch::Sender<AgentStatus>,
}

impl Hub {
    pub(super) fn new() -> Rc<Self> {
        Rc::new(Self {
            session: RefCell::new(None),
            generation: Cell::new(0),
            streams: RefCell::default(),
            output: Notify::new(),
            status: watch::Sender::default(),
        })
    }

    /// Follows what is known of the agent.
    pub(super) fn status(&self) -> watch::Receiver<AgentStatus> {
        self.status.subscribe()
    }

    /// Forgets the agent of a run that is over.
    pub(super) fn reset(&self) {
        self.end_session();
        self.status.send_replace(AgentStatus::default());
    }

    /// Opens a stream; nothing where no agent answers, an error where it cannot take another one.
    pub(super) fn open(
        self: &Rc<Self>,
        request: Request,
    ) -> Option<Result<Stream, vmwright_agent_proto::Error>> {
        let generation = self.generation.get();
        let established = |session: &mut Session| session.is_established().then(|| session.open(request));
        let id = match self.with_session(generation, established)?? {
            Ok(id) => id,
            Err(error) => return Some(Err(error)),
        };
        let inbox = Rc::new(Inbox::default());
        self.streams.borrow_mut().insert(id, inbox.clone());
        Some(Ok(Stream { hub: self.clone(), id, generation, inbox }))
    }

    /// Carries one session over the channel, until it ends.
    pub(super) async fn carry(&self, channel: &UnixStream, epoch: NonZeroU64) -> SessionEnd {
        self.generation.set(self.generation.get() + 1);
        *self.session.borrow_mut() = Some(Session::host(epoch));
        let end = self.pump(channel).await;
        self.end_session();
        end
    }

    async fn pump(&self, channel: &UnixStream) -> SessionEnd {
        let mut buffer = vec![0; READ];
        loop {
            let has_output = self.session.borrow().as_ref().is_some_and(Session::has_output);
            tokio::select! {
                ready = channel.readable() => {
                    match ready.and_then(|()| channel.try_read(&mut buffer)) {
                        Ok(0) => return SessionEnd::Closed,
                        Ok(len) => if let Some(end) = self.arrived(&buffer[..len]) { return end },
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Err(error) => return SessionEnd::Host(error),
                    }
                }
                ready = channel.writable(), if has_output => {
                    match ready.and_then(|()| self.write(channel)) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return SessionEnd::Closed,
                        Err(error) => return SessionEnd::Host(error),
                        Ok(()) => self.ring(|inbox| &inbox.room),
                    }
                }
                () = self.output.notified() => {}
            }
        }
    }

    fn write(&self, channel: &UnixStream) -> io::Result<()> {
        if let Some(session) = self.session.borrow_mut().as_mut() {
            let len = channel.try_write(session.output())?;
            session.wrote(len);
        }
        Ok(())
    }

    /// Takes bytes of the agent in; answers with the session's end, if they end it.
    fn arrived(&self, bytes: &[u8]) -> Option<SessionEnd> {
        let mut session = self.session.borrow_mut();
        let session = session.as_mut()?;
        session.feed(bytes);
        loop {
            match session.next_event() {
                Ok(Some(Event::Established(hello))) => {
                    let boot_id = hello.boot_id.iter().map(|byte| format!("{byte:02x}")).collect();
                    // The text is the guest's: it goes into records and onto terminals.
                    let version = printable(&hello.version, 64);
                    let hello = AgentState { version, boot_id };
                    self.status.send_modify(|status| status.hello = Some(hello));
                }
                Ok(Some(Event::Goodbye(why))) => {
                    self.status.send_modify(|status| status.goodbye = Some(why));
                }
                Ok(Some(Event::Message(id, message))) => self.deliver(id, message),
                Ok(Some(Event::Replaced)) => return Some(SessionEnd::Replaced),
                // Events of the agent's own side do not come from a host's session.
                Ok(Some(Event::Begun | Event::Lost(_))) => {}
                Ok(None) => break,
                Err(error) => return Some(SessionEnd::Broken(error)),
            }
        }
        self.ring(|inbox| &inbox.room);
        None
    }

    fn deliver(&self, id: StreamId, message: Message) {
        let mut streams = self.streams.borrow_mut();
        let Some(inbox) = streams.get(&id) else { return };
        let mut arrived = inbox.arrived.borrow_mut();
        match message {
            Message::Data(bytes) => arrived.output.extend_from_slice(&bytes),
            Message::Stderr(bytes) => arrived.error_output.extend_from_slice(&bytes),
            Message::File(info) => arrived.file = Some(info),
            message if message.is_last() => arrived.last = Some(message),
            _ => {}
        }
        inbox.ready.notify_one();
        if arrived.last.is_some() {
            drop(arrived);
            streams.remove(&id);
        }
    }

    fn ring(&self, bell: impl Fn(&Inbox) -> &Notify) {
        self.streams.borrow().values().for_each(|inbox| bell(inbox).notify_one());
    }

    fn end_session(&self) {
        self.session.borrow_mut().take();
        for (_, inbox) in self.streams.borrow_mut().drain() {
            inbox.arrived.borrow_mut().lost = true;
            inbox.ready.notify_one();
            inbox.room.notify_one();
        }
        self.status.send_modify(|status| status.hello = None);
    }

    fn with_session<T>(&self, generation: u64, work: impl FnOnce(&mut Session) -> T) -> Option<T> {
        if generation != self.generation.get() {
            return None;
        }
        let mut session = self.session.borrow_mut();
        let answer = work(session.as_mut()?);
        self.output.notify_one();
        Some(answer)
    }
}

/// At most `max` characters of a guest's text, control characters replaced.
pub(super) fn printable(text: &str, max: usize) -> String {
    text.chars().take(max).map(|c| if c.is_control() { '\u{FFFD}' } else { c }).collect()
}
