//! Connects a program in a guest with this process: its streams, signals and exit code.

use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use vmwright_runtime::{ExitStatus, Session, SessionEvent, SessionInput, SessionOutput};

use super::terminal;

/// The arguments that `run` and `vm exec` share.
#[derive(clap::Args)]
pub(crate) struct Streams {
    /// Feed standard input to the command
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Set a variable in the command's environment
    #[arg(short, long = "env", value_name = "NAME=VALUE", value_parser = parse_variable)]
    pub(crate) env: Vec<(String, String)>,
    /// Run the command in this folder; the user's home otherwise
    #[arg(short, long, value_name = "PATH")]
    pub(crate) workdir: Option<String>,
    /// Run the command as this user: name, name:group, uid or uid:gid
    #[arg(short, long)]
    pub(crate) user: Option<String>,
}

impl Streams {
    /// Makes the request for a command.
    pub(crate) fn request(&self, command: &[std::ffi::OsString]) -> vmwright_runtime::ExecRequest {
        use std::os::unix::ffi::OsStrExt;
        let bytes = |text: &String| text.clone().into_bytes();
        vmwright_runtime::ExecRequest {
            argv: command.iter().map(|argument| argument.as_bytes().to_vec()).collect(),
            env: self.env.iter().map(|(name, value)| (bytes(name), bytes(value))).collect(),
            cwd: self.workdir.as_ref().map(bytes),
            user: self.user.clone(),
            pty: self.tty.then(|| terminal::size().unwrap_or((24, 80))),
            stdin: self.interactive,
        }
    }
}

fn parse_variable(text: &str) -> Result<(String, String), String> {
    let (name, value) =
        text.split_once('=').ok_or_else(|| format!("{text:?} is not of the form NAME=VALUE"))?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Carries a session to its end and answers the exit code that stands for the program's: its own, or 128 and
/// the number of the signal that ended it.
pub(crate) fn attach(session: Session, streams: &Streams) -> anyhow::Result<ExitCode> {
    let Session { input, output } = session;
    let raw = if streams.tty { terminal::Raw::enter() } else { None };
    forward_signals(input.clone(), raw.is_some())?;
    if streams.interactive {
        thread::spawn(move || feed(&input));
    }
    let status = drain(output);
    drop(raw);
    Ok(match status? {
        ExitStatus::Code(code) => ExitCode::from(code),
        ExitStatus::Signal(signal) => ExitCode::from(u8::try_from(128 + signal).unwrap_or(u8::MAX)),
    })
}

/// Writes the program's output until it has ended.
fn drain(mut output: SessionOutput) -> anyhow::Result<ExitStatus> {
    while let Some(event) = output.next_event()? {
        match event {
            SessionEvent::Stdout(bytes) => write_all(&mut io::stdout().lock(), &bytes)?,
            SessionEvent::Stderr(bytes) => write_all(&mut io::stderr().lock(), &bytes)?,
            SessionEvent::Exit(status) => return Ok(status),
        }
    }
    anyhow::bail!("the connection to the machine ended before the command did")
}

fn write_all(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

/// Feeds standard input to the program until either ends.
fn feed(input: &SessionInput) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count) = io::stdin().lock().read(&mut buffer) {
        // A program that has stopped reading is no failure: its exit code tells.
        if count == 0 || input.write(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = input.close();
}

/// Passes the signals that a user or a supervisor sends on to the program, and the terminal's new sizes.
///
/// On a raw terminal the keys reach the program itself, so that only the size is left to pass on.
fn forward_signals(input: SessionInput, raw: bool) -> anyhow::Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGWINCH] {
        signals.add(signal);
    }
    signals.thread_block()?;
    thread::spawn(move || {
        while let Ok(signal) = signals.wait() {
            let sent = match signal {
                Signal::SIGWINCH if raw => {
                    terminal::size().map_or(Ok(()), |(rows, columns)| input.resize(rows, columns))
                }
                Signal::SIGWINCH => Ok(()),
                _ => {
                    // A guest that hangs passes nothing on: whoever asked must still get rid of this process.
                    if matches!(signal, Signal::SIGTERM | Signal::SIGHUP) {
                        thread::spawn(move || detach_after(signal));
                    }
                    input.signal(signal as i32)
                }
            };
            if sent.is_err() {
                break;
            }
        }
    });
    Ok(())
}

/// How long a command may take to end after it was told to.
const LAST_CHANCE: Duration = Duration::from_secs(10);

/// Ends this process, as the signal would have, where the command in the guest does not end in time.
fn detach_after(signal: Signal) {
    thread::sleep(LAST_CHANCE);
    crate::output::note(format!(
        "the command did not end within {LAST_CHANCE:?} of {signal}: it is left alone"
    ));
    std::process::exit(128 + signal as i32);
}
