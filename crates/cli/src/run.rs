//! `vmwright run`

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use vmwright_runtime::{CreateRequest, RunRequest, StartOptions, VmName};

use crate::output::note;
use crate::vm::create::Hardware;
use crate::vm::session::{Streams, attach};
use crate::vm::{parse_duration, runtime};

/// What `run` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The disk image to boot from
    source: PathBuf,
    /// Keep the machine, stopped, with what was written to its disk
    #[arg(long)]
    keep: bool,
    /// The name of a machine that is kept
    #[arg(long)]
    name: Option<VmName>,
    #[command(flatten)]
    hardware: Hardware,
    #[command(flatten)]
    streams: Streams,
    /// How long the guest may take to answer
    #[arg(long, value_parser = parse_duration, default_value = "2m")]
    timeout: Duration,
    /// The command and its arguments; a shell otherwise
    #[arg(last = true)]
    command: Vec<OsString>,
}

/// Boots the disk, runs the command, and throws the changes away; answers the command's exit code.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut vm = CreateRequest::new(&args.source);
    vm.name = args.name;
    args.hardware.apply(&mut vm);
    let mut request = RunRequest::new(vm);
    request.start = StartOptions { agent_timeout: args.timeout };
    request.keep = args.keep;
    let runtime = runtime()?;
    let attempt = || format!("cannot run {}", args.source.display());
    let machine = runtime.run(&request).with_context(attempt)?;
    machine.notices().iter().for_each(note);
    let mut streams = args.streams;
    let command = if args.command.is_empty() {
        streams.interactive = true;
        streams.tty = std::io::IsTerminal::is_terminal(&std::io::stdin());
        vec!["/bin/sh".into(), "-l".into()]
    } else {
        args.command
    };
    let session = machine.exec(&streams.request(&command)).with_context(attempt);
    let code = session.and_then(|session| attach(session, &streams));
    let name = machine.name().clone();
    // Whatever became of the command, the machine is ended, and the command's own failure is the one to tell.
    let ended = machine.finish().with_context(|| format!("cannot end {name}"));
    let code = code?;
    ended?;
    if args.keep {
        note(format!("kept as {name}"));
    }
    Ok(code)
}
