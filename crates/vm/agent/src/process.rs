//! A program that runs for a stream.

use std::collections::VecDeque;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use vmwright_agent_proto::{Exec, ExitStatus, MAX_DATA, Message, Session, StreamId, WindowSize};

use crate::sys::{self, Epoll, Pid, Plan, Step};
use crate::task::{Failed, Role, failed, token};
use crate::users::{self, Account};

/// How long a program's output is waited for after its end, where something it started holds the pipes.
const DRAIN: Duration = Duration::from_millis(100);
/// More than a pipe holds, unless root made it larger.
const MAX_REST: usize = 1 << 20;
const PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The character by which a terminal ends its input.
const END_OF_INPUT: u8 = 4;

/// Where output comes from.
struct Source {
    file: File,
    /// How much more is read, once the program is over for long enough.
    left: Option<usize>,
    send: fn(&mut Session, StreamId, &[u8]) -> usize,
}

/// Where input goes.
struct Sink {
    file: File,
    pending: VecDeque<u8>,
    ended: bool,
}

/// A running program, or one that has ended with output still to come.
pub(crate) struct Process {
    id: StreamId,
    pid: Pid,
    status: Option<(ExitStatus, Instant)>,
    sink: Option<Sink>,
    sources: [Option<Source>; 2],
    terminal: Option<OwnedFd>,
}

/// What the program is connected to: its own ends and the agent's.
struct Connections {
    stdio: [OwnedFd; 3],
    stdin: Option<File>,
    stdout: File,
    stderr: Option<File>,
    terminal: Option<OwnedFd>,
}

impl Process {
    /// Starts the program.
    pub(crate) fn start(id: StreamId, exec: &Exec, epoll: &Epoll) -> Result<Self, Failed> {
        let connections = connect(exec).map_err(|error| failed("cannot connect the program", &error))?;
        let account = match &exec.user {
            None => users::own_account(),
            Some(user) => {
                users::find(user).map_err(|error| failed(format!("cannot find the user {user}"), &error))?
            }
        };
        let Connections { stdio, stdin, stdout, stderr, terminal } = connections;
        let plan = plan(exec, account, stdio)?;
        let pid = sys::spawn(&plan).map_err(|(step, error)| {
            let program = String::from_utf8_lossy(exec.argv.first().map_or(b"", |name| name)).into_owned();
            let action = match step {
                Step::Stdio => "cannot connect the program".into(),
                Step::Identity => "cannot become the user".into(),
                Step::Directory => "cannot enter the working directory".into(),
                Step::Execute => format!("cannot execute {program}"),
            };
            failed(action, &error)
        })?;
        let sink = stdin.map(|file| Sink { file, pending: VecDeque::new(), ended: false });
        let stdout = Source { file: stdout, left: None, send: Session::send_data };
        let stderr = stderr.map(|file| Source { file, left: None, send: Session::send_stderr });
        let process = Self { id, pid, status: None, sink, sources: [Some(stdout), stderr], terminal };
        // A program that cannot be watched would never end for the host: it must not run.
        process.watch(epoll).map_err(|error| {
            process.kill();
            failed("cannot watch the program", &error)
        })?;
        Ok(process)
    }

    fn watch(&self, epoll: &Epoll) -> io::Result<()> {
        if let Some(sink) = &self.sink {
            sys::set_nonblocking(&sink.file, true)?;
            epoll.add(&sink.file, sys::EPOLLOUT, token(self.id, Role::Stdin))?;
        }
        for (source, role) in self.sources.iter().zip([Role::Stdout, Role::Stderr]) {
            if let Some(source) = source {
                sys::set_nonblocking(&source.file, true)?;
                epoll.add(&source.file, sys::EPOLLIN, token(self.id, role))?;
            }
        }
        Ok(())
    }

    /// The number of the process, until it has ended.
    pub(crate) fn pid(&self) -> Option<Pid> {
        self.status.is_none().then_some(self.pid)
    }

    pub(crate) fn exited(&mut self, status: ExitStatus) {
        self.status = Some((status, Instant::now()));
        self.sink = None;
    }

    /// Sends a signal to the program and what it started, unless it has ended.
    pub(crate) fn signal(&self, signal: i32) {
        if self.status.is_none() {
            // It may have ended this moment; that is no failure.
            let _ = sys::kill(-self.pid, signal);
        }
    }

    /// Ends the program and what it started, at once.
    pub(crate) fn kill(&self) {
        self.signal(sys::SIGKILL);
    }

    pub(crate) fn resize(&self, size: WindowSize) {
        if let Some(terminal) = &self.terminal {
            let _ = sys::resize_pty(terminal, size);
        }
    }

    /// Takes input on; what cannot be written at once waits, within the stream's window.
    pub(crate) fn input(&mut self, bytes: &[u8], session: &mut Session) {
        match &mut self.sink {
            Some(sink) if !sink.ended => sink.pending.extend(bytes),
            // Nobody reads it any more; the host may go on sending.
            _ => session.consumed(self.id, bytes.len()),
        }
    }

    pub(crate) fn end_input(&mut self) {
        if let Some(sink) = &mut self.sink
            && !std::mem::replace(&mut sink.ended, true)
            && self.terminal.is_some()
        {
            sink.pending.push_back(END_OF_INPUT);
        }
    }

    /// Moves what can be moved; true once the program is over and everything has been queued.
    pub(crate) fn pump(&mut self, session: &mut Session) -> bool {
        self.pump_input(session);
        self.limit_output();
        for source in &mut self.sources {
            if source.as_mut().is_some_and(|source| source.pump(self.id, session)) {
                *source = None;
            }
        }
        match self.status {
            Some((status, _)) if self.sources.iter().all(Option::is_none) => {
                // The stream is open, as this process belongs to it.
                let _ = session.send(self.id, Message::Exited(status));
                true
            }
            _ => false,
        }
    }

    /// When [`Process::pump`] has to be called although nothing has happened.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let waiting = self.sources.iter().flatten().any(|source| source.left.is_none());
        self.status.filter(|_| waiting).map(|(_, ended)| ended + DRAIN)
    }

    /// Once the program is over for long enough, only what is in the pipes is still read, and not what some
    /// other process goes on writing.
    fn limit_output(&mut self) {
        if self.deadline().is_some_and(|deadline| deadline <= Instant::now()) {
            for source in self.sources.iter_mut().flatten() {
                source.left.get_or_insert(MAX_REST);
            }
        }
    }

    fn pump_input(&mut self, session: &mut Session) {
        let Some(sink) = &mut self.sink else { return };
        while !sink.pending.is_empty() {
            match sink.file.write(sink.pending.as_slices().0) {
                Ok(len) => {
                    sink.pending.drain(..len);
                    session.consumed(self.id, len);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    session.consumed(self.id, sink.pending.len());
                    self.sink = None;
                    return;
                }
            }
        }
        if sink.ended && self.terminal.is_none() {
            self.sink = None;
        }
    }
}

impl Source {
    /// Sends what there is; true at the end.
    fn pump(&mut self, id: StreamId, session: &mut Session) -> bool {
        let mut buf = [0; MAX_DATA];
        loop {
            let left = self.left.unwrap_or(usize::MAX);
            let room = session.sendable(id).min(buf.len()).min(left);
            if room == 0 {
                return left == 0;
            }
            match self.file.read(&mut buf[..room]) {
                Ok(0) => return true,
                Ok(len) => {
                    (self.send)(session, id, &buf[..len]);
                    self.left = self.left.map(|left| left - len);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return self.left.is_some(),
                // A terminal that nobody holds any more answers with an error.
                Err(_) => return true,
            }
        }
    }
}

fn connect(exec: &Exec) -> io::Result<Connections> {
    if let Some(size) = exec.pty {
        let (master, slave) = sys::open_pty(size)?;
        let stdin = exec.stdin.then(|| master.try_clone().map(File::from)).transpose()?;
        let stdio = [slave.try_clone()?, slave.try_clone()?, slave];
        let terminal = Some(master.try_clone()?);
        return Ok(Connections { stdio, stdin, stdout: File::from(master), stderr: None, terminal });
    }
    let (stdin_end, stdin): (OwnedFd, _) = if exec.stdin {
        let (reader, writer) = io::pipe()?;
        (reader.into(), Some(File::from(OwnedFd::from(writer))))
    } else {
        (File::open("/dev/null")?.into(), None)
    };
    let (stdout, stdout_end) = io::pipe()?;
    let (stderr, stderr_end) = io::pipe()?;
    let stdio = [stdin_end, stdout_end.into(), stderr_end.into()];
    let [stdout, stderr] = [stdout, stderr].map(|end| File::from(OwnedFd::from(end)));
    Ok(Connections { stdio, stdin, stdout, stderr: Some(stderr), terminal: None })
}

fn plan(exec: &Exec, account: Account, stdio: [OwnedFd; 3]) -> Result<Plan, Failed> {
    let invalid = || io::Error::from_raw_os_error(sys::EINVAL);
    let c_string = |bytes: &[u8]| {
        CString::new(bytes).map_err(|_| failed("cannot pass on a string that contains NUL", &invalid()))
    };
    let program = exec.argv.first().ok_or_else(|| failed("cannot execute nothing", &invalid()))?;
    let env = environment(exec, &account);
    let path = env.iter().rev().find(|(name, _)| *name == b"PATH").map_or(PATH, |(_, value)| *value);
    let programs = match program.contains(&b'/') {
        true => vec![c_string(program)?],
        false => path
            .split(|byte| *byte == b':')
            .map(|directory| c_string(&[directory, b"/", program].concat()))
            .collect::<Result<_, _>>()?,
    };
    let directories = match &exec.cwd {
        Some(directory) => vec![c_string(directory)?],
        None => vec![c_string(&account.home)?, c_string(b"/")?],
    };
    let argv = exec.argv.iter().map(|arg| c_string(arg)).collect::<Result<_, _>>()?;
    let env = env.iter().map(|(name, value)| c_string(&[name, &b"="[..], value].concat()));
    let env = env.collect::<Result<_, _>>()?;
    let identity = exec.user.is_some().then_some((account.uid, account.gid, account.groups));
    Ok(Plan { programs, argv, env, directories, identity, stdio, terminal: exec.pty.is_some() })
}

/// The defaults, then what the host asks for; later ones replace earlier ones.
fn environment<'a>(exec: &'a Exec, account: &'a Account) -> Vec<(&'a [u8], &'a [u8])> {
    let mut env: Vec<(&[u8], &[u8])> = vec![
        (b"PATH", PATH),
        (b"HOME", &account.home),
        (b"USER", &account.name),
        (b"LOGNAME", &account.name),
        (b"SHELL", &account.shell),
    ];
    if exec.pty.is_some() {
        env.push((b"TERM", b"xterm-256color"));
    }
    for (name, value) in &exec.env {
        match env.iter_mut().find(|(known, _)| *known == name.as_slice()) {
            Some(entry) => entry.1 = value,
            None => env.push((name, value)),
        }
    }
    env
}
