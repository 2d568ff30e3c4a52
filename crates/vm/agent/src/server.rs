//! The agent's loop: carries bytes between the channel, the session and the tasks.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use vmwright_agent_proto::{
    Event, Goodbye, Hello, MAX_FRAME, Message, Mode, Request, Session, Shutdown, StreamId,
};

use crate::channel::{Channel, Got};
use crate::files::{Reading, Writing};
use crate::process::Process;
use crate::shutdown;
use crate::sys::{self, Epoll};
use crate::task::{Failed, Task, failed, stream_of};

const CHANNEL: u64 = 0;
const SIGNALS: u64 = 1;
const LISTENER: u64 = 2;
/// The length of one record that a signal descriptor delivers; the signal's number is its first integer.
const SIGNAL_RECORD: usize = 128;

/// How long the news that a program runs waits for the news that it has ended: most programs that are asked for
/// are short, and each write to the port costs more than they do.
const TOGETHER: Duration = Duration::from_millis(4);

/// Where connections come from.
pub(crate) enum Source {
    /// One channel, for ever.
    Fixed(Channel),
    /// One connection after another.
    Listener(UnixListener),
}

/// How far "shut the guest down" reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// The agent is process 1 and ends the machine itself.
    Kernel,
    /// The guest's own init is told to.
    Init,
    /// The agent is an ordinary process and only ends itself.
    Process,
}

/// Serves hosts until it is told to end.
pub(crate) struct Server {
    epoll: Epoll,
    signals: File,
    listener: Option<UnixListener>,
    channel: Option<Channel>,
    session: Session,
    hello: Hello,
    reach: Reach,
    tasks: BTreeMap<StreamId, Task>,
    /// Output that waits a moment for what may follow, by its length, and until when it waits.
    held: Option<(usize, Instant)>,
    /// Set once the agent is to end, to how.
    ending: Option<Goodbye>,
}

impl Server {
    pub(crate) fn new(source: Source, mode: Mode, reach: Reach) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let signals = sys::signal_fd(&[sys::SIGCHLD, sys::SIGTERM, sys::SIGINT])?;
        epoll.add(&signals, sys::EPOLLIN, SIGNALS)?;
        let hello = Hello { version: env!("CARGO_PKG_VERSION").into(), mode, boot_id: boot_id() };
        let mut server = Self {
            epoll,
            signals: File::from(signals),
            listener: None,
            channel: None,
            session: Session::agent(hello.clone()),
            hello,
            reach,
            tasks: BTreeMap::new(),
            held: None,
            ending: None,
        };
        match source {
            Source::Fixed(channel) => server.adopt(channel)?,
            Source::Listener(listener) => {
                server.epoll.add(&listener, sys::EPOLLIN, LISTENER)?;
                server.listener = Some(listener);
            }
        }
        Ok(server)
    }

    /// Runs until the agent is to end; in the reach of the kernel it does not return.
    pub(crate) fn run(mut self) -> io::Result<()> {
        let mut tokens = Vec::new();
        loop {
            if !self.holds() {
                self.flush();
            }
            if let Some(why) = self.ending {
                return self.end(why);
            }
            if self.channel.is_none() && self.listener.is_none() {
                self.end_tasks();
                return Ok(());
            }
            self.epoll.wait(self.timeout(), &mut tokens)?;
            for token in &tokens {
                match *token {
                    CHANNEL => self.receive(),
                    SIGNALS => self.on_signals(),
                    LISTENER => self.accept()?,
                    token => self.pump_stream(token),
                }
            }
            self.pump_late();
        }
    }

    fn adopt(&mut self, channel: Channel) -> io::Result<()> {
        self.epoll.add(channel.file(), sys::EPOLLIN | sys::EPOLLOUT, CHANNEL)?;
        self.session = Session::agent(self.hello.clone());
        self.channel = Some(channel);
        Ok(())
    }

    fn accept(&mut self) -> io::Result<()> {
        if let (None, Some(listener)) = (&self.channel, &self.listener)
            && let Some(channel) = Channel::accept(listener)?
        {
            self.adopt(channel)?;
        }
        Ok(())
    }

    /// Whether the output is to wait: nothing was added to it, and its moment is not over.
    fn holds(&mut self) -> bool {
        let Some((len, until)) = self.held else { return false };
        let holds = self.session.output().len() == len && Instant::now() < until;
        if !holds {
            self.held = None;
        }
        holds
    }

    /// Sends what the session has, as far as the channel takes it.
    fn flush(&mut self) {
        loop {
            let Some(channel) = &mut self.channel else { return };
            let bytes = self.session.output();
            if bytes.is_empty() {
                return;
            }
            match channel.write(bytes) {
                Some(0) => return,
                Some(len) => {
                    self.session.wrote(len);
                    self.pump_blocked();
                }
                None => self.disconnect(),
            }
        }
    }

    fn disconnect(&mut self) {
        self.channel = None;
        self.end_tasks();
        // The next one may be waiting already.
        if let Err(error) = self.accept() {
            crate::report(format_args!("cannot accept a connection: {error}"));
        }
    }

    fn end_tasks(&mut self) {
        for task in std::mem::take(&mut self.tasks).into_values() {
            if let Task::Process(process) = task {
                process.kill();
            }
        }
    }

    fn receive(&mut self) {
        let mut buf = [0; MAX_FRAME];
        while let Some(channel) = &mut self.channel {
            match channel.read(&mut buf) {
                Got::Nothing => break,
                Got::End => return self.disconnect(),
                Got::Bytes(len) => {
                    self.session.feed(&buf[..len]);
                    self.take_events();
                }
            }
        }
        self.pump_blocked();
    }

    fn take_events(&mut self) {
        loop {
            match self.session.next_event() {
                Ok(Some(Event::Message(id, message))) => self.on_message(id, message),
                Ok(Some(Event::Begun)) => self.end_tasks(),
                Ok(Some(Event::Lost(error))) => {
                    crate::report(format_args!("lost the host: {error}"));
                    self.end_tasks();
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return,
            }
        }
    }

    fn on_message(&mut self, id: StreamId, message: Message) {
        let outcome = match message {
            Message::Open(request) => self.open(id, request),
            message => self.on_task_message(id, message),
        };
        if let Err(failure) = outcome {
            self.tasks.remove(&id);
            self.answer(id, Message::Failed(*failure));
        }
    }

    fn open(&mut self, id: StreamId, request: Request) -> Result<(), Failed> {
        let task = match request {
            Request::Exec(exec) => {
                let process = Process::start(id, &exec, &self.epoll)?;
                let was_idle = self.session.output().is_empty();
                self.answer(id, Message::Started(process.pid().map_or(0, |pid| pid.unsigned_abs())));
                if was_idle {
                    self.held = Some((self.session.output().len(), Instant::now() + TOGETHER));
                }
                Task::Process(Box::new(process))
            }
            Request::Put(put) => Task::Writing(Box::new(Writing::start(id, put)?)),
            Request::Get { path } => Task::Reading(Reading::start(id, &path, &mut self.session)?),
            Request::SetClock { seconds, nanoseconds } => {
                sys::set_clock(seconds, nanoseconds)
                    .map_err(|error| failed("cannot set the clock", &error))?;
                self.answer(id, Message::Done);
                return Ok(());
            }
            Request::Ping => {
                self.answer(id, Message::Done);
                return Ok(());
            }
            Request::Shutdown(how) => return self.shut_down(id, how),
        };
        self.tasks.insert(id, task);
        self.pump(id);
        Ok(())
    }

    fn shut_down(&mut self, id: StreamId, how: Shutdown) -> Result<(), Failed> {
        match self.reach {
            Reach::Kernel => self.ending = Some(shutdown::reason(how)),
            Reach::Process => self.ending = Some(Goodbye::Exit),
            Reach::Init => {
                let child = shutdown::ask_init(how)
                    .map_err(|error| failed("cannot tell the guest's init to shut down", &error))?;
                drop(child);
                // It only fails at a host's end.
                let _ = self.session.goodbye(shutdown::reason(how));
            }
        }
        self.answer(id, Message::Done);
        Ok(())
    }

    fn on_task_message(&mut self, id: StreamId, message: Message) -> Result<(), Failed> {
        match (self.tasks.get_mut(&id), message) {
            (Some(Task::Process(process)), Message::Reset) => {
                process.kill();
                self.tasks.remove(&id);
            }
            (Some(_), Message::Reset) => drop(self.tasks.remove(&id)),
            (Some(Task::Process(process)), message) => {
                match message {
                    Message::Data(bytes) => process.input(&bytes, &mut self.session),
                    Message::Eof => process.end_input(),
                    Message::Signal(signal) => process.signal(signal),
                    Message::Resize(size) => process.resize(size),
                    _ => {}
                }
                self.pump(id);
            }
            (Some(Task::Writing(file)), Message::Data(bytes)) => file.data(&bytes, &mut self.session)?,
            (Some(Task::Writing(_)), Message::Eof) => {
                if let Some(Task::Writing(file)) = self.tasks.remove(&id) {
                    file.finish()?;
                    self.answer(id, Message::Done);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Queues a message on a stream; one that is gone needs no answer.
    fn answer(&mut self, id: StreamId, message: Message) {
        let _ = self.session.send(id, message);
    }

    fn pump_stream(&mut self, token: u64) {
        let id = stream_of(token).and_then(|id| self.tasks.keys().find(|key| key.get() == id).copied());
        if let Some(id) = id {
            self.pump(id);
        }
    }

    /// Moves a task's data on, and ends it where it is complete.
    fn pump(&mut self, id: StreamId) {
        let over = match self.tasks.get_mut(&id) {
            None => return,
            Some(Task::Writing(_)) => false,
            Some(Task::Process(process)) => process.pump(&mut self.session),
            Some(Task::Reading(file)) => match file.pump(&mut self.session) {
                Ok(over) => {
                    if over {
                        self.answer(id, Message::Done);
                    }
                    over
                }
                Err(failure) => {
                    self.answer(id, Message::Failed(*failure));
                    true
                }
            },
        };
        if over {
            self.tasks.remove(&id);
        }
    }

    /// Lets every task go on that may have waited for the host.
    fn pump_blocked(&mut self) {
        let ids: Vec<_> = self.tasks.keys().copied().collect();
        ids.into_iter().for_each(|id| self.pump(id));
    }

    fn deadlines(&self) -> impl Iterator<Item = (StreamId, Instant)> {
        self.tasks.iter().filter_map(|(id, task)| match task {
            Task::Process(process) => Some((*id, process.deadline()?)),
            _ => None,
        })
    }

    /// Milliseconds until some task must be looked at; negative for never.
    fn timeout(&self) -> i32 {
        let now = Instant::now();
        let deadlines =
            self.deadlines().map(|(_, deadline)| deadline).chain(self.held.map(|(_, until)| until));
        let next = deadlines.map(|deadline| deadline.saturating_duration_since(now)).min();
        next.map_or(-1, |left| left.as_millis() as i32 + 1)
    }

    fn pump_late(&mut self) {
        let now = Instant::now();
        let late: Vec<_> = self.deadlines().filter(|(_, at)| *at <= now).map(|(id, _)| id).collect();
        late.into_iter().for_each(|id| self.pump(id));
    }

    fn on_signals(&mut self) {
        let mut record = [0; SIGNAL_RECORD];
        while let Ok(SIGNAL_RECORD) = self.signals.read(&mut record) {
            let [a, b, c, d, ..] = record;
            match (i32::from_ne_bytes([a, b, c, d]), self.reach) {
                (sys::SIGTERM, Reach::Kernel) => self.ending = Some(Goodbye::PowerOff),
                (sys::SIGINT, Reach::Kernel) => self.ending = Some(Goodbye::Reboot),
                (sys::SIGTERM | sys::SIGINT, _) => self.ending = Some(Goodbye::Exit),
                _ => {}
            }
        }
        while let Some((pid, status)) = sys::reap() {
            let of = |task: &Task| matches!(task, Task::Process(process) if process.pid() == Some(pid));
            let id = self.tasks.iter().find(|(_, task)| of(task)).map(|(id, _)| *id);
            if let Some(id) = id
                && let Some(Task::Process(process)) = self.tasks.get_mut(&id)
            {
                process.exited(status);
                self.pump(id);
            }
        }
    }

    fn end(mut self, why: Goodbye) -> io::Result<()> {
        // It only fails at a host's end.
        let _ = self.session.goodbye(why);
        self.flush_waiting();
        self.end_tasks();
        match (self.reach, why) {
            (Reach::Kernel, Goodbye::Reboot) => Err(shutdown::end_machine(&self.signals, false)),
            (Reach::Kernel, _) => Err(shutdown::end_machine(&self.signals, true)),
            _ => Ok(()),
        }
    }

    /// Sends everything before it returns, as long as a host is there to take it.
    fn flush_waiting(&mut self) {
        let Some(channel) = &mut self.channel else { return };
        if !channel.is_connected() || sys::set_nonblocking(channel.file(), false).is_err() {
            return;
        }
        while let bytes @ [_, ..] = self.session.output() {
            match channel.write(bytes) {
                Some(len) if len > 0 => self.session.wrote(len),
                _ => return,
            }
        }
    }
}

fn boot_id() -> [u8; 16] {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: Vec<u8> =
        text.chars().filter_map(|char| char.to_digit(16)).map(|digit| digit as u8).collect();
    let mut id = [0; 16];
    for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = pair[0] << 4 | pair[1];
    }
    id
}
