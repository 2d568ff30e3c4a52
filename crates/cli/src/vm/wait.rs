//! `vmwright vm wait`

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use vmwright_runtime::VmName;

use super::{answer, parse_duration, runtime};

/// What `vm wait` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The machine
    name: VmName,
    /// Wait no longer than this
    #[arg(long, value_parser = parse_duration)]
    timeout: Option<Duration>,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// Waits.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let attempt = || format!("cannot wait for {}", args.name);
    match runtime()?.wait(&args.name, args.timeout).with_context(attempt)? {
        Some(vm) => answer(&vm, args.json),
        None => anyhow::bail!("{} still runs after {:?}", args.name, args.timeout.unwrap_or_default()),
    }
}
