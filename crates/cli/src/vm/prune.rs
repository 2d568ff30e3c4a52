//! `vmwright vm prune`

use std::process::ExitCode;

use vmwright_runtime::State;

use super::runtime;
use crate::output::line;

/// What `vm prune` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Say what would be deleted, and delete nothing
    #[arg(long)]
    dry_run: bool,
}

/// Removes every machine that has ended.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let runtime = runtime()?;
    if args.dry_run {
        let ended = |state| matches!(state, State::Stopped | State::Error);
        for vm in runtime.list()?.into_iter().filter(|vm| ended(vm.state)) {
            line(format!("would delete {} ({})", vm.name, vm.state.name()))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    for name in runtime.prune()? {
        line(format!("deleted {name}"))?;
    }
    Ok(ExitCode::SUCCESS)
}
