//! `vmwright vm inspect`

use std::process::ExitCode;

use anyhow::Context;
use vmwright_runtime::{DiskMode, ExitCause, ExitRecord, VmName};

use super::{describe, runtime, state};
use crate::output::{json, properties, size};

/// What `vm inspect` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The machine
    name: VmName,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// Says everything that is known.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let vm = runtime()?.inspect(&args.name).with_context(|| format!("cannot inspect {}", args.name))?;
    if args.json {
        json(&describe(&vm))?;
        return Ok(ExitCode::SUCCESS);
    }
    let config = &vm.config;
    let disk_mode = match config.disk_mode {
        DiskMode::Isolated => "an overlay of its own",
        DiskMode::Shared => "the image itself",
    };
    properties(&[
        ("name", Some(vm.name.to_string())),
        ("state", Some(state(vm.state).to_owned())),
        ("pid", vm.pid.map(|pid| pid.to_string())),
        ("image", Some(config.base.path.display().to_string())),
        ("writes to", Some(disk_mode.to_owned())),
        ("cpus", Some(config.cpus.to_string())),
        ("memory", Some(size(config.memory))),
        ("kernel", config.kernel.as_ref().map(|kernel| kernel.display().to_string())),
        ("created", Some(vm.created_at.clone())),
        ("changed", Some(vm.updated_at.clone())),
        ("last end", vm.exit.as_ref().map(end)),
        ("console log", Some(vm.dir.console_log().display().to_string())),
    ])?;
    Ok(ExitCode::SUCCESS)
}

/// How a run ended, in words.
fn end(exit: &ExitRecord) -> String {
    let cause = match exit.cause {
        ExitCause::Stopped => "stopped",
        ExitCause::Guest => "the guest powered off",
        ExitCause::Ttl => "its time was over",
        ExitCause::Lease => "whoever ran it went away",
        ExitCause::Died => "its monitor died",
        ExitCause::StartFailed => "it never came up",
        ExitCause::Lost => "lost with its shim or the host",
        ExitCause::Other => "ended",
    };
    let monitor = exit.vmm.as_ref().map(|vmm| format!(": {}", vmm.reason)).unwrap_or_default();
    let detail = exit.detail.as_ref().map(|detail| format!("; {detail}")).unwrap_or_default();
    format!("{cause}{monitor}{detail}")
}
