//! `vmwright doctor`

use std::path::Path;
use std::process::ExitCode;

use serde_json::json as value;
use vmwright_runtime::Runtime;
use vmwright_vmm::Capabilities;

use crate::output::{json, line, note, size};
use crate::vm::runtime;

/// What `doctor` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// Says what works on this host, and why the rest does not; fails where nothing can run a machine.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let runtime = runtime()?;
    let backends = runtime.backends();
    let can_run =
        backends.iter().any(|(_, probed)| probed.as_ref().is_ok_and(|profiles| !profiles.is_empty()));
    if args.json {
        let monitors = backends.iter().map(|(name, probed)| match probed {
            Ok(profiles) => value!({"name": name, "profiles": profiles}),
            Err(error) => value!({"name": name, "error": error.to_string()}),
        });
        json(&value!({
            "home": runtime.home().root(),
            "monitors": monitors.collect::<Vec<_>>(),
            "usable": can_run,
        }))?;
    } else {
        print_disks(&runtime)?;
        for (name, probed) in &backends {
            match probed {
                Ok(profiles) => profiles.iter().try_for_each(print_profile)?,
                Err(error) => line(format!("no   {name}: {}", chain(error)))?,
            }
        }
        if !can_run {
            note("nothing on this host can run a machine; everything on disks works");
        }
    }
    Ok(if can_run { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_disks(runtime: &Runtime) -> anyhow::Result<()> {
    line("yes  disks: opened, inspected and changed by this program itself")?;
    let home = runtime.home().root();
    let kind = if home.exists() { "is there" } else { "is made at the first machine" };
    line(format!("yes  state: {} {kind}{}", home.display(), free_space(home)))
}

/// The free space of the filesystem that a folder is on, or will be on.
fn free_space(folder: &Path) -> String {
    let there = folder.ancestors().find(|folder| folder.exists());
    let stat = there.and_then(|folder| rustix::fs::statvfs(folder).ok());
    stat.map_or_else(String::new, |stat| {
        format!(", {} free", size(stat.f_bavail.saturating_mul(stat.f_frsize)))
    })
}

fn print_profile(profile: &Capabilities) -> anyhow::Result<()> {
    let engines: Vec<_> = profile.engines.iter().map(ToString::to_string).collect();
    let formats: Vec<_> = profile.disk_formats.iter().map(ToString::to_string).collect();
    let verdict = if engines.is_empty() { "no " } else { "yes" };
    line(format!("{verdict}  {} {}: {}", profile.profile, profile.version, engines.join(", ")))?;
    let limits = &profile.limits;
    line(format!(
        "       up to {} cpus, {} to {}, {} disks ({})",
        limits.cpus,
        size(limits.memory_min),
        size(limits.memory_max),
        limits.disks,
        formats.join(", ")
    ))?;
    for offered in &profile.offers {
        line(format!("       can {offered}"))?;
    }
    for (engine, reason) in &profile.engines_missing {
        line(format!("       without {engine}: {reason}"))?;
    }
    for (requirement, reason) in &profile.lacks {
        line(format!("       cannot {requirement}: {reason}"))?;
    }
    for exclusion in &profile.exclusions {
        line(format!("       {} excludes {}: {}", exclusion.one, exclusion.other, exclusion.reason))?;
    }
    Ok(())
}

/// An error with everything beneath it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(beneath) = cause {
        text = format!("{text}: {beneath}");
        cause = beneath.source();
    }
    text
}
