//! `vmwright vm start`

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use vmwright_runtime::{StartOptions, VmName};

use super::{answer, parse_duration, runtime};
use crate::output::note;

/// What `vm start` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The machine
    name: VmName,
    /// How long the guest may take to answer
    #[arg(long, value_parser = parse_duration, default_value = "2m")]
    timeout: Duration,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// Starts the machine.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let started = runtime()?.start(&args.name, &StartOptions { agent_timeout: args.timeout });
    let started = started.with_context(|| format!("cannot start {}", args.name))?;
    started.notices.iter().for_each(note);
    answer(&started.vm, args.json)
}
