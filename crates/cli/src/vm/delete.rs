//! `vmwright vm delete`

use std::process::ExitCode;

use anyhow::Context;
use vmwright_runtime::VmName;

use super::{names, runtime};
use crate::output::line;

/// What `vm delete` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The machines
    names: Vec<VmName>,
    /// Delete every machine
    #[arg(long, conflicts_with = "names")]
    all: bool,
    /// Delete machines that run, too: they are killed
    #[arg(short, long)]
    force: bool,
    /// Say what would be deleted, and delete nothing
    #[arg(long)]
    dry_run: bool,
}

/// Deletes machines with their own disks; the images they were made on stay.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let runtime = runtime()?;
    for name in names(&runtime, &args.names, args.all)? {
        let attempt = || format!("cannot delete {name}");
        if args.dry_run {
            let vm = runtime.inspect(&name).with_context(attempt)?;
            line(format!("would delete {name} ({}) with {}", vm.state.name(), vm.dir.path().display()))?;
            continue;
        }
        runtime.delete(&name, args.force).with_context(attempt)?;
        line(format!("deleted {name}"))?;
    }
    Ok(ExitCode::SUCCESS)
}
