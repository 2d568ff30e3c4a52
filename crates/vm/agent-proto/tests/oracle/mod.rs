//! Two sessions joined by pipes that cut, chop and corrupt, against a model of what may arrive.

use std::collections::BTreeMap;
use std::num::NonZeroU64;

use vmwright_agent_proto::{
    Event, ExitStatus, Hello, MAX_FRAME, MAX_STREAMS, Message, Mode, Request, Session, StreamId, WINDOW,
};

/// Bytes sent on one stream in one direction of the present session, and how many arrived.
#[derive(Default)]
struct Flow {
    sent: Vec<u8>,
    arrived: usize,
    unconsumed: usize,
}

impl Flow {
    fn arrive(&mut self, bytes: &[u8], trusted: bool) {
        if trusted {
            let end = self.arrived + bytes.len();
            assert!(self.sent.get(self.arrived..end) == Some(bytes), "data arrived that was not sent so");
        }
        self.arrived += bytes.len();
        self.unconsumed += bytes.len();
        assert!(self.unconsumed <= WINDOW, "the window was overrun");
    }
}

struct World {
    host: Session,
    agent: Session,
    to_agent: Vec<u8>,
    to_host: Vec<u8>,
    /// All bytes that ever reached the agent, and how many had been sent when the present host began.
    delivered: usize,
    began: usize,
    epoch: u64,
    /// Whether the pipes have been faithful since the session began.
    trusted: bool,
    /// Whether a host's session has failed, which only corruption may bring about.
    failed: bool,
    stdin: BTreeMap<StreamId, Flow>,
    stdout: BTreeMap<StreamId, Flow>,
    /// Streams the agent knows of.
    served: Vec<StreamId>,
    magics: [Vec<u8>; 2],
}

fn hello() -> Hello {
    Hello { version: "test".into(), mode: Mode::Service, boot_id: [9; 16] }
}

impl World {
    fn new() -> Self {
        let mut host = Session::host(NonZeroU64::MIN);
        let mut agent = Session::agent(hello());
        let magics = [host.output()[..16].to_vec(), agent.output()[..16].to_vec()];
        Self {
            host,
            agent,
            to_agent: Vec::new(),
            to_host: Vec::new(),
            delivered: 0,
            began: 0,
            epoch: 1,
            trusted: true,
            failed: false,
            stdin: BTreeMap::new(),
            stdout: BTreeMap::new(),
            served: Vec::new(),
            magics,
        }
    }

    /// Bytes that look as much as possible like the beginning of a session.
    fn payload(&self, seed: u8, len: usize) -> Vec<u8> {
        let mask = [0, 0, 1, seed][usize::from(seed) % 4];
        let tail = [seed, 0x5A];
        let source = self.magics[usize::from(seed >> 2) % 2].iter().chain(&tail);
        source.map(|byte| byte ^ mask).cycle().skip(usize::from(seed) % 18).take(len).collect()
    }

    fn restart_host(&mut self) {
        self.epoch += 1;
        self.host = Session::host(NonZeroU64::new(self.epoch).expect("counts up from one"));
        self.to_host.clear();
        self.began = self.delivered + self.to_agent.len();
        self.stdin.clear();
        self.stdout.clear();
        self.trusted = true;
        self.failed = false;
    }

    /// Whether the agent has heard of the present host; before, it serves the one that is gone.
    fn agent_is_current(&self) -> bool {
        self.delivered >= self.began + 28
    }

    fn pump_out(&mut self) {
        self.to_agent.extend_from_slice(self.host.output());
        self.host.wrote(usize::MAX);
        self.to_host.extend_from_slice(self.agent.output());
        self.agent.wrote(usize::MAX);
    }

    fn deliver_to_agent(&mut self, len: usize) {
        self.pump_out();
        let len = len.min(self.to_agent.len());
        let bytes: Vec<_> = self.to_agent.drain(..len).collect();
        self.delivered += len;
        let current = self.agent_is_current();
        self.agent.feed(&bytes);
        while let Some(event) = self.agent.next_event().expect("an agent's session never fails") {
            match event {
                Event::Begun | Event::Lost(_) => self.served.clear(),
                Event::Message(id, Message::Open(request)) => {
                    assert!(!self.trusted || request == Request::Ping);
                    self.served.push(id);
                    assert!(self.served.len() <= MAX_STREAMS);
                }
                Event::Message(id, Message::Data(bytes)) if current => {
                    self.stdin.entry(id).or_default().arrive(&bytes, self.trusted);
                }
                Event::Message(id, message) if message.is_last() => {
                    self.served.retain(|served| *served != id);
                }
                Event::Message(..) => {}
                event => panic!("an agent saw {event:?}"),
            }
        }
    }

    fn deliver_to_host(&mut self, len: usize) {
        self.pump_out();
        let len = len.min(self.to_host.len());
        let bytes: Vec<_> = self.to_host.drain(..len).collect();
        if self.failed {
            return;
        }
        self.host.feed(&bytes);
        loop {
            match self.host.next_event() {
                Ok(None) => return,
                Ok(Some(Event::Message(id, Message::Data(bytes)))) => {
                    self.stdout.entry(id).or_default().arrive(&bytes, self.trusted);
                }
                Ok(Some(Event::Established(said))) => assert!(!self.trusted || said == hello()),
                Ok(Some(Event::Replaced)) | Err(_) => {
                    assert!(!self.trusted, "a faithful pipe ended the session");
                    self.failed = true;
                    return;
                }
                Ok(Some(_)) => {}
            }
        }
    }

    fn nth(streams: impl Iterator<Item = StreamId>, n: u8) -> Option<StreamId> {
        let streams: Vec<_> = streams.collect();
        streams.get(usize::from(n) % streams.len().max(1)).copied()
    }

    fn consume(&mut self) {
        for (id, flow) in &mut self.stdin {
            self.agent.consumed(*id, std::mem::take(&mut flow.unconsumed));
        }
        for (id, flow) in &mut self.stdout {
            self.host.consumed(*id, std::mem::take(&mut flow.unconsumed));
        }
    }

    fn step(&mut self, op: u8, a: u8, b: u8) {
        let len = usize::from(a) * usize::from(b);
        match op % 11 {
            0 | 1 => self.deliver_to_agent(len),
            2 | 3 => self.deliver_to_host(len),
            4 => {
                let _ = self.host.open(Request::Ping).map(|id| self.stdin.insert(id, Flow::default()));
            }
            5 => {
                let bytes = self.payload(a, usize::from(b) * 300);
                if let Some(id) = Self::nth(self.stdin.keys().copied(), a) {
                    let taken = self.host.send_data(id, &bytes);
                    self.stdin.entry(id).or_default().sent.extend_from_slice(&bytes[..taken]);
                }
            }
            6 => {
                let bytes = self.payload(a, usize::from(b) * 300);
                if let Some(id) = Self::nth(self.served.iter().copied(), a) {
                    let taken = self.agent.send_data(id, &bytes);
                    if self.agent_is_current() {
                        self.stdout.entry(id).or_default().sent.extend_from_slice(&bytes[..taken]);
                    }
                }
            }
            7 => self.consume(),
            8 => {
                let id = Self::nth(self.served.iter().copied(), a);
                if let Some(id) = id {
                    let message = Message::Exited(ExitStatus::Code(b));
                    self.agent.send(id, message).expect("a stream that is served is open");
                    self.served.retain(|served| *served != id);
                }
            }
            9 => {
                // The connection breaks: part of what is under way arrives, then another host comes.
                self.pump_out();
                self.to_agent.truncate(len);
                self.restart_host();
            }
            _ => {
                self.pump_out();
                let pipe = if a & 1 == 0 { &mut self.to_agent } else { &mut self.to_host };
                let at = usize::from(b) * pipe.len() / 256;
                if let Some(byte) = pipe.get_mut(at) {
                    *byte ^= a | 1;
                    self.trusted = false;
                }
            }
        }
    }

    /// After whatever happened, a new host reaches the agent and every byte arrives.
    fn settle(&mut self) {
        self.restart_host();
        let id = self.host.open(Request::Ping).expect("the first stream of a session");
        let stdin = self.payload(3, 2 * WINDOW);
        let stdout = self.payload(7, 2 * WINDOW);
        for _ in 0..200 {
            let sent = self.stdin.entry(id).or_default().sent.len();
            let taken = self.host.send_data(id, &stdin[sent..]);
            self.stdin.entry(id).or_default().sent.extend_from_slice(&stdin[sent..sent + taken]);
            if self.served.contains(&id) && self.host.is_established() {
                let sent = self.stdout.entry(id).or_default().sent.len();
                let taken = self.agent.send_data(id, &stdout[sent..]);
                self.stdout.entry(id).or_default().sent.extend_from_slice(&stdout[sent..sent + taken]);
            }
            self.deliver_to_agent(MAX_FRAME);
            self.deliver_to_host(MAX_FRAME);
            self.consume();
        }
        assert!(self.host.is_established());
        assert_eq!(self.served, [id]);
        assert_eq!(self.stdin[&id].arrived, stdin.len());
        assert_eq!(self.stdout[&id].arrived, stdout.len());
    }
}

/// Plays a script of three-byte steps and then demands that the channel works.
pub(crate) fn check(script: &[u8]) {
    let mut world = World::new();
    for step in script.chunks_exact(3).take(400) {
        world.step(step[0], step[1], step[2]);
    }
    world.settle();
}
