//! `vmwright vm exec`

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Context;
use vmwright_runtime::VmName;

use super::runtime;
use super::session::{Streams, attach};

/// What `vm exec` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The machine
    name: VmName,
    #[command(flatten)]
    streams: Streams,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Runs the command and answers its exit code.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let session = runtime()?.exec(&args.name, &args.streams.request(&args.command));
    let session =
        session.with_context(|| format!("cannot run {} in {}", args.command[0].display(), args.name))?;
    attach(session, &args.streams)
}
