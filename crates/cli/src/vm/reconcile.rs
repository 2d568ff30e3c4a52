//! `vmwright vm reconcile`

use std::process::ExitCode;

use super::runtime;
use crate::output::{json, line};

/// What `vm reconcile` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// Brings what is remembered and what is there into agreement.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let done = runtime()?.reconcile()?;
    let words =
        |names: &[vmwright_runtime::VmName]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    let operations: Vec<_> =
        done.operations.iter().map(|(name, kind)| format!("{name}: {}", kind.name())).collect();
    if args.json {
        json(&serde_json::json!({
            "operations": operations,
            "died": words(&done.died),
            "ephemeral": words(&done.ephemeral),
            "orphans": words(&done.orphans),
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let sections = [
        ("settled an operation that broke off", operations),
        ("found ended", words(&done.died)),
        ("removed, its user is gone", words(&done.ephemeral)),
        ("removed, unknown to the store", words(&done.orphans)),
    ];
    for (what, names) in &sections {
        for name in names {
            line(format!("{what}: {name}"))?;
        }
    }
    if done.is_empty() {
        line("nothing to do")?;
    }
    Ok(ExitCode::SUCCESS)
}
