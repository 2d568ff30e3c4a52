//! `vmwright vm stop`

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use vmwright_runtime::{StopOptions, VmName};

use super::{answer, names, parse_duration, runtime};

/// What `vm stop` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The machines
    names: Vec<VmName>,
    /// Stop every machine
    #[arg(long, conflicts_with = "names")]
    all: bool,
    /// How long the guest may take to power off before it is killed
    #[arg(long, value_parser = parse_duration)]
    grace: Option<Duration>,
    /// Kill at once, as if the power failed
    #[arg(short, long)]
    force: bool,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// Stops machines; one that does not run is left as it is.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let runtime = runtime()?;
    let mut options = StopOptions { force: args.force, ..StopOptions::default() };
    options.grace = args.grace.unwrap_or(options.grace);
    for name in names(&runtime, &args.names, args.all)? {
        let vm = runtime.stop(&name, &options).with_context(|| format!("cannot stop {name}"))?;
        answer(&vm, args.json)?;
    }
    Ok(ExitCode::SUCCESS)
}
