//! The agent as a plain process, served over a unix socket.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::num::NonZeroU64;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use vmwright_agent_proto::{
    ByteBuf, Event, Exec, ExitStatus, Goodbye, Hello, Message, Mode, Put, Request, Session, Shutdown,
    StreamId, WindowSize,
};

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// What came on one stream.
#[derive(Default)]
struct Heard {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    other: Vec<Message>,
    last: Option<Message>,
}

struct Host {
    stream: UnixStream,
    session: Session,
    heard: BTreeMap<StreamId, Heard>,
    hello: Option<Hello>,
    goodbye: Option<Goodbye>,
    /// Whether data that arrives is granted again.
    consuming: bool,
}

impl Host {
    fn connect(path: &Path, epoch: u64) -> Self {
        let deadline = Instant::now() + PATIENCE;
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        stream.set_write_timeout(Some(Duration::from_millis(20))).unwrap();
        let session = Session::host(NonZeroU64::new(epoch).unwrap());
        let heard = BTreeMap::new();
        let mut host = Self { stream, session, heard, hello: None, goodbye: None, consuming: true };
        host.until(|host| host.hello.is_some());
        host
    }

    fn open(&mut self, request: Request) -> StreamId {
        let id = self.session.open(request).unwrap();
        self.heard.insert(id, Heard::default());
        id
    }

    fn exec(&mut self, argv: &[&str]) -> StreamId {
        self.open(Request::Exec(exec(argv)))
    }

    /// Carries bytes both ways once; false at the end of the connection.
    fn turn(&mut self) -> bool {
        while self.session.has_output() {
            match self.stream.write(self.session.output()) {
                Ok(len) => self.session.wrote(len),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return false,
            }
        }
        let mut buf = vec![0; 64 * 1024];
        match self.stream.read(&mut buf) {
            Ok(0) => return false,
            Ok(len) => self.session.feed(&buf[..len]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => panic!("{error}"),
        }
        while let Some(event) = self.session.next_event().unwrap() {
            match event {
                Event::Established(hello) => self.hello = Some(hello),
                Event::Goodbye(why) => self.goodbye = Some(why),
                Event::Message(id, message) => self.hear(id, message),
                event => panic!("{event:?}"),
            }
        }
        true
    }

    fn hear(&mut self, id: StreamId, message: Message) {
        let heard = self.heard.get_mut(&id).unwrap();
        assert_eq!(heard.last, None, "{message:?} after the last message");
        let taken = match &message {
            Message::Data(bytes) => {
                heard.stdout.extend_from_slice(bytes);
                bytes.len()
            }
            Message::Stderr(bytes) => {
                heard.stderr.extend_from_slice(bytes);
                bytes.len()
            }
            _ => 0,
        };
        if self.consuming {
            self.session.consumed(id, taken);
        }
        if message.is_last() {
            heard.last = Some(message);
        } else if taken == 0 {
            heard.other.push(message);
        }
    }

    fn until(&mut self, condition: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self) {
            assert!(self.turn(), "the agent hung up");
            assert!(Instant::now() < deadline, "the agent does not get on");
        }
    }

    fn last(&mut self, id: StreamId) -> Message {
        self.until(|host| host.heard[&id].last.is_some());
        self.heard[&id].last.clone().unwrap()
    }

    fn stdout(&self, id: StreamId) -> String {
        String::from_utf8(self.heard[&id].stdout.clone()).unwrap()
    }

    /// Runs a program to its end and answers what it wrote.
    fn run(&mut self, exec: Exec) -> String {
        let id = self.open(Request::Exec(exec));
        assert_eq!(self.last(id), Message::Exited(ExitStatus::Code(0)), "{:?}", self.heard[&id].stderr);
        self.stdout(id)
    }

    fn errno(&mut self, id: StreamId) -> i32 {
        match self.last(id) {
            Message::Failed(failure) => failure.errno,
            message => panic!("{message:?}"),
        }
    }
}

struct Agent {
    child: Child,
    dir: tempfile::TempDir,
}

impl Agent {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let program = env!("CARGO_BIN_EXE_vmwright-agent");
        let socket = dir.path().join("agent");
        let child = Command::new(program).arg("--listen-unix").arg(socket).spawn().unwrap();
        Self { child, dir }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("agent")
    }

    fn host(&self) -> Host {
        Host::connect(&self.socket(), 1)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn exec(argv: &[&str]) -> Exec {
    Exec { argv: argv.iter().map(|arg| ByteBuf::from(*arg)).collect(), ..Exec::default() }
}

fn sh(script: &str) -> Exec {
    exec(&["sh", "-c", script])
}

fn is_alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    !stat.is_empty() && !stat.rsplit_once(')').unwrap().1.starts_with(" Z")
}

fn await_death(pid: &str) {
    let deadline = Instant::now() + PATIENCE;
    while is_alive(pid) {
        assert!(Instant::now() < deadline, "process {pid} lives on");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_program_s_output_and_exit_code_come_back() {
    let agent = Agent::start();
    let mut host = agent.host();
    assert_eq!(host.hello.as_ref().unwrap().mode, Mode::Service);
    let id = host.open(Request::Exec(sh("echo out; echo err >&2; exit 7")));
    assert_eq!(host.last(id), Message::Exited(ExitStatus::Code(7)));
    assert_eq!(host.stdout(id), "out\n");
    assert_eq!(host.heard[&id].stderr, b"err\n");
    assert!(matches!(host.heard[&id].other[..], [Message::Started(1..)]));
}

#[test]
fn a_hundred_megabytes_go_through_a_program_and_come_back() {
    let agent = Agent::start();
    let mut host = agent.host();
    let id = host.open(Request::Exec(Exec { stdin: true, ..exec(&["cat"]) }));
    let len: usize = 100 << 20;
    let data: Vec<u8> = (0..len).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect();
    let (mut sent, mut checked) = (0, 0);
    while checked < len {
        sent += host.session.send_data(id, &data[sent..]);
        assert!(host.turn());
        let heard = host.heard.get_mut(&id).unwrap();
        let end = checked + heard.stdout.len();
        assert!(heard.stdout == data[checked..end], "bytes differ between {checked} and {end}");
        checked = end;
        heard.stdout.clear();
    }
    host.session.send(id, Message::Eof).unwrap();
    assert_eq!(host.last(id), Message::Exited(ExitStatus::Code(0)));
}

#[test]
fn many_streams_run_at_once() {
    let agent = Agent::start();
    let mut host = agent.host();
    let sleeper = host.exec(&["sleep", "1000"]);
    let ids: Vec<_> = (0..40)
        .map(|n| host.open(Request::Exec(sh(&format!("head -c 200000 /dev/zero | tr '\\0' x; exit {n}")))))
        .collect();
    for (n, id) in ids.into_iter().enumerate() {
        assert_eq!(host.last(id), Message::Exited(ExitStatus::Code(n as u8)));
        assert_eq!(host.heard[&id].stdout.len(), 200_000);
    }
    assert_eq!(host.heard[&sleeper].last, None);
}

#[test]
fn a_stream_that_is_not_read_does_not_hold_up_another() {
    let agent = Agent::start();
    let mut host = agent.host();
    host.consuming = false;
    let stuck = host.exec(&["cat", "/dev/zero"]);
    host.until(|host| host.heard[&stuck].stdout.len() == vmwright_agent_proto::WINDOW);
    assert_eq!(host.run(sh("echo through")), "through\n");
    assert_eq!(host.heard[&stuck].stdout.len(), vmwright_agent_proto::WINDOW);
}

#[test]
fn a_signal_reaches_the_program_and_its_end_is_told() {
    let agent = Agent::start();
    let mut host = agent.host();
    let id = host.open(Request::Exec(sh("echo ready; sleep 1000")));
    host.until(|host| host.heard[&id].stdout == b"ready\n");
    host.session.send(id, Message::Signal(15)).unwrap();
    assert_eq!(host.last(id), Message::Exited(ExitStatus::Signal(15)));
}

#[test]
fn a_reset_kills_the_program_and_what_it_started() {
    let agent = Agent::start();
    let mut host = agent.host();
    let id = host.open(Request::Exec(sh("sleep 1000 & echo $!; wait")));
    host.until(|host| host.heard[&id].stdout.ends_with(b"\n"));
    let pid = host.stdout(id);
    assert!(is_alive(&pid));
    host.session.send(id, Message::Reset).unwrap();
    host.turn();
    await_death(&pid);
}

#[test]
fn a_new_session_ends_the_programs_of_the_old_one() {
    let agent = Agent::start();
    let mut host = agent.host();
    let id = host.open(Request::Exec(sh("echo $$; exec sleep 1000")));
    host.until(|host| host.heard[&id].stdout.ends_with(b"\n"));
    let pid = host.stdout(id);
    // The same connection, as on a virtio-serial port, where nobody hangs up.
    host.session = Session::host(NonZeroU64::new(2).unwrap());
    host.hello = None;
    host.until(|host| host.hello.is_some());
    await_death(&pid);
    assert_eq!(host.run(sh("echo again")), "again\n");
}

#[test]
fn a_host_that_hangs_up_ends_its_programs_and_another_may_come() {
    let agent = Agent::start();
    let mut host = agent.host();
    let id = host.open(Request::Exec(sh("echo $$; exec sleep 1000")));
    host.until(|host| host.heard[&id].stdout.ends_with(b"\n"));
    let pid = host.stdout(id);
    drop(host);
    await_death(&pid);
    assert_eq!(Host::connect(&agent.socket(), 2).run(sh("echo again")), "again\n");
}

#[test]
fn stdin_can_end_while_the_output_goes_on() {
    let agent = Agent::start();
    let mut host = agent.host();
    let id = host.open(Request::Exec(Exec { stdin: true, ..sh("wc -c; echo after") }));
    host.session.send_data(id, b"four");
    host.session.send(id, Message::Eof).unwrap();
    assert_eq!(host.last(id), Message::Exited(ExitStatus::Code(0)));
    assert_eq!(host.stdout(id), "4\nafter\n");
}

#[test]
fn input_that_nobody_reads_does_not_block_the_stream() {
    let agent = Agent::start();
    let mut host = agent.host();
    let id = host.open(Request::Exec(Exec { stdin: true, ..sh("exec <&-; sleep 0.2; echo done") }));
    let data = vec![0; 1 << 20];
    let mut sent = 0;
    while sent < data.len() && host.heard[&id].last.is_none() {
        sent += host.session.send_data(id, &data[sent..]);
        host.turn();
    }
    assert_eq!(host.last(id), Message::Exited(ExitStatus::Code(0)));
    assert_eq!(host.stdout(id), "done\n");
}

#[test]
fn without_stdin_a_program_reads_an_end() {
    let agent = Agent::start();
    assert_eq!(agent.host().run(sh("wc -c")), "0\n");
}

#[test]
fn a_daemon_that_keeps_the_pipes_does_not_delay_the_exit() {
    let agent = Agent::start();
    let mut host = agent.host();
    let id = host.open(Request::Exec(sh("sleep 1000 & echo $!")));
    assert_eq!(host.last(id), Message::Exited(ExitStatus::Code(0)));
    let pid = host.stdout(id);
    assert!(is_alive(&pid), "what a program leaves behind lives on");
    assert!(Command::new("kill").arg(pid.trim()).status().unwrap().success());
}

#[test]
fn a_daemon_that_writes_for_ever_does_not_delay_the_exit() {
    let agent = Agent::start();
    let mut host = agent.host();
    let id = host.open(Request::Exec(sh("cat /dev/zero & echo $! >&2")));
    assert_eq!(host.last(id), Message::Exited(ExitStatus::Code(0)));
    // Its pipe is closed, which ends it.
    await_death(&String::from_utf8(host.heard[&id].stderr.clone()).unwrap());
}

#[test]
fn output_written_just_before_the_exit_is_complete() {
    let agent = Agent::start();
    let mut host = agent.host();
    for _ in 0..50 {
        assert_eq!(host.run(sh("head -c 60000 /dev/zero | tr '\\0' y")).len(), 60_000);
    }
}

#[test]
fn what_a_slow_host_has_not_read_is_not_lost_at_the_exit() {
    let agent = Agent::start();
    let mut host = agent.host();
    host.consuming = false;
    let id = host.open(Request::Exec(sh("head -c 180000 /dev/zero")));
    host.until(|host| host.heard[&id].stdout.len() == vmwright_agent_proto::WINDOW);
    // Longer than the agent waits for others who hold the pipe.
    let pause = Instant::now() + Duration::from_millis(300);
    host.until(|_| Instant::now() > pause);
    host.consuming = true;
    host.session.consumed(id, vmwright_agent_proto::WINDOW);
    assert_eq!(host.last(id), Message::Exited(ExitStatus::Code(0)));
    assert_eq!(host.heard[&id].stdout.len(), 180_000);
}

#[test]
fn a_program_gets_the_environment_and_the_folder_it_is_given() {
    let agent = Agent::start();
    let mut host = agent.host();
    let env = [("A", "one=1"), ("HOME", "/elsewhere")];
    let env = env.map(|(name, value)| (ByteBuf::from(name), ByteBuf::from(value))).to_vec();
    let cwd = Some(ByteBuf::from("/usr"));
    let text = host.run(Exec { env, cwd, ..sh("pwd; echo $A $HOME; env | grep -c ^PATH=") });
    assert_eq!(text, "/usr\none=1 /elsewhere\n1\n");
    let text = host.run(exec(&["env"]));
    assert!(text.contains("PATH=/usr/local/sbin:") && text.contains("LOGNAME="), "{text}");
}

#[test]
fn failures_to_start_are_told_with_their_number() {
    let agent = Agent::start();
    let mut host = agent.host();
    let cwd = Some(ByteBuf::from("/no/such/folder"));
    let cases = [
        (exec(&["no-such-program"]), 2),
        (exec(&["/etc/passwd"]), 13),
        (exec(&[]), 22),
        (Exec { cwd, ..exec(&["true"]) }, 2),
        (Exec { user: Some("no-such-user".into()), ..exec(&["true"]) }, 2),
        (exec(&["a\0b"]), 22),
    ];
    for (exec, errno) in cases {
        let id = host.open(Request::Exec(exec.clone()));
        assert_eq!(host.errno(id), errno, "{exec:?}");
    }
    let id = host.exec(&["no-such-program"]);
    let Message::Failed(failure) = host.last(id) else { panic!() };
    assert_eq!(failure.action, "cannot execute no-such-program");
}

#[test]
fn a_program_runs_as_the_user_it_is_given() {
    let agent = Agent::start();
    let mut host = agent.host();
    if host.run(exec(&["id", "-u"])) != "0\n" {
        vmwright_judges::skip!("only root can become another user");
    }
    let user = |user: &str| Exec { user: Some(user.into()), ..sh("id -u; id -g; id -G; pwd") };
    assert_eq!(host.run(user("12345:678")), "12345\n678\n678\n/\n");
    assert!(host.run(user("daemon")).starts_with("1\n1\n1\n"));
    // The agent itself has not become anybody else.
    assert_eq!(host.run(exec(&["id", "-u"])), "0\n");
}

#[test]
fn a_terminal_is_one_and_can_change_its_size() {
    let agent = Agent::start();
    let mut host = agent.host();
    let pty = Some(WindowSize { rows: 24, columns: 80 });
    let script = "tty >/dev/null && stty size; read line; stty size; echo got $line $TERM";
    let id = host.open(Request::Exec(Exec { pty, stdin: true, ..sh(script) }));
    host.until(|host| host.heard[&id].stdout.ends_with(b"24 80\r\n"));
    host.session.send(id, Message::Resize(WindowSize { rows: 50, columns: 132 })).unwrap();
    host.session.send_data(id, b"hello\n");
    assert_eq!(host.last(id), Message::Exited(ExitStatus::Code(0)));
    let text = host.stdout(id);
    assert!(text.ends_with("50 132\r\ngot hello xterm-256color\r\n"), "{text:?}");
}

#[test]
fn a_terminal_s_input_can_end() {
    let agent = Agent::start();
    let mut host = agent.host();
    let pty = Some(WindowSize { rows: 24, columns: 80 });
    let id = host.open(Request::Exec(Exec { pty, stdin: true, ..exec(&["cat"]) }));
    host.session.send_data(id, b"line\n");
    host.session.send(id, Message::Eof).unwrap();
    assert_eq!(host.last(id), Message::Exited(ExitStatus::Code(0)));
}

fn put(path: &Path) -> Put {
    let path = ByteBuf::from(path.to_str().unwrap());
    Put { path, mode: None, owner: None, modified: None }
}

#[test]
fn a_file_goes_in_and_comes_out_again() {
    let agent = Agent::start();
    let mut host = agent.host();
    let path = agent.dir.path().join("file");
    let data: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
    let request = Put { mode: Some(0o640), modified: Some((1_000_000_000, 500)), ..put(&path) };
    let id = host.open(Request::Put(request));
    let mut sent = 0;
    while sent < data.len() {
        sent += host.session.send_data(id, &data[sent..]);
        host.turn();
        assert!(!path.exists(), "a file appears only when it is complete");
    }
    host.session.send(id, Message::Eof).unwrap();
    assert_eq!(host.last(id), Message::Done);
    let metadata = std::fs::metadata(&path).unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.mtime()), (0o640, 1_000_000_000));
    let id = host.open(Request::Get { path: ByteBuf::from(path.to_str().unwrap()) });
    assert_eq!(host.last(id), Message::Done);
    assert!(host.heard[&id].stdout == data);
    let [Message::File(info)] = host.heard[&id].other[..] else { panic!() };
    assert_eq!((info.size, info.mode, info.modified), (1_000_000, 0o640, (1_000_000_000, 500)));
}

#[test]
fn a_replaced_file_keeps_its_mode_and_a_link_stays_a_link() {
    let agent = Agent::start();
    let mut host = agent.host();
    let (path, link) = (agent.dir.path().join("file"), agent.dir.path().join("link"));
    std::fs::write(&path, "old").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o601)).unwrap();
    std::os::unix::fs::symlink("file", &link).unwrap();
    let id = host.open(Request::Put(put(&link)));
    host.session.send_data(id, b"new");
    host.session.send(id, Message::Eof).unwrap();
    assert_eq!(host.last(id), Message::Done);
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(std::fs::read(&path).unwrap(), b"new");
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o601);
}

#[test]
fn a_file_given_up_leaves_nothing_behind() {
    let agent = Agent::start();
    let mut host = agent.host();
    let folder = agent.dir.path().join("folder");
    std::fs::create_dir(&folder).unwrap();
    let count = || std::fs::read_dir(&folder).unwrap().count();
    let id = host.open(Request::Put(put(&folder.join("file"))));
    host.session.send_data(id, b"half");
    host.turn();
    host.session.send(id, Message::Reset).unwrap();
    let deadline = Instant::now() + PATIENCE;
    let ping = host.open(Request::Ping);
    assert_eq!(host.last(ping), Message::Done);
    assert!(count() == 0 && Instant::now() < deadline);
}

#[test]
fn files_that_are_none_are_refused() {
    let agent = Agent::start();
    let mut host = agent.host();
    for (path, errno) in [("/no/such/file", 2), ("/etc", 21), ("/dev/null", 22)] {
        let id = host.open(Request::Get { path: ByteBuf::from(path) });
        assert_eq!(host.errno(id), errno, "get {path}");
        let id = host.open(Request::Put(put(Path::new(path))));
        assert_eq!(host.errno(id), errno, "put {path}");
    }
    let id = host.open(Request::Put(put(Path::new("relative"))));
    assert_eq!(host.errno(id), 22);
}

#[test]
fn a_second_agent_finds_the_place_taken_and_leaves_in_peace() {
    let agent = Agent::start();
    let _host = agent.host();
    let program = env!("CARGO_BIN_EXE_vmwright-agent");
    let status = Command::new(program).arg("--listen-unix").arg(agent.socket()).status().unwrap();
    assert!(status.success());
}

#[test]
fn shutdown_is_answered_by_goodbye() {
    let mut agent = Agent::start();
    let mut host = agent.host();
    host.open(Request::Shutdown(Shutdown::PowerOff));
    host.until(|host| host.goodbye.is_some());
    assert_eq!(host.goodbye, Some(Goodbye::Exit));
    assert!(agent.child.wait().unwrap().success());
}

#[test]
fn an_agent_told_to_end_says_goodbye() {
    let mut agent = Agent::start();
    let mut host = agent.host();
    assert!(Command::new("kill").arg(agent.child.id().to_string()).status().unwrap().success());
    host.until(|host| host.goodbye.is_some());
    assert_eq!(host.goodbye, Some(Goodbye::Exit));
    assert!(agent.child.wait().unwrap().success());
}

#[test]
fn an_agent_can_be_the_one_that_connects() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("host");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let program = env!("CARGO_BIN_EXE_vmwright-agent");
    let mut child = Command::new(program).arg("--connect-unix").arg(&path).spawn().unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    // It writes first.
    stream.read_exact(&mut [0; 28]).unwrap();
    drop(stream);
    assert!(child.wait().unwrap().success());
}
