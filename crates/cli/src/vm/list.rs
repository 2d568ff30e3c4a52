//! `vmwright vm list`

use std::process::ExitCode;

use super::{describe, runtime};
use crate::output::{Table, json, size};

/// What `vm list` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// Lists machines.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let machines = runtime()?.list()?;
    if args.json {
        json(&machines.iter().map(describe).collect::<Vec<_>>())?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(["NAME", "STATE", "PID", "CPUS", "MEMORY", "DISK"]).right(2).right(3).right(4);
    for vm in &machines {
        table.row([
            vm.name.to_string(),
            vm.state.name().to_owned(),
            vm.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
            vm.config.cpus.to_string(),
            size(vm.config.memory),
            vm.config.base.path.display().to_string(),
        ]);
    }
    table.print()?;
    Ok(ExitCode::SUCCESS)
}
