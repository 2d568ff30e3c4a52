//! `vmwright vm …`: machines that stay until they are deleted.

mod cp;
pub(crate) mod create;
mod delete;
mod exec;
mod inspect;
mod list;
mod logs;
mod prune;
mod reconcile;
pub(crate) mod session;
mod shell;
mod start;
mod stop;
pub(crate) mod terminal;
mod wait;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Subcommand;
use vmwright_runtime::{Options, Runtime, State, VmInfo};

use crate::failure::{Failure, report_around_guest};
use crate::output::{json, line};

/// The verbs of `vm`.
#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Make a machine on a disk image, without starting it
    Create(create::Args),
    /// Boot a machine and wait until it answers
    Start(start::Args),
    /// Run a command in a running machine
    Exec(exec::Args),
    /// Open a shell in a running machine
    Shell(shell::Args),
    /// Copy a file into or out of a running machine
    Cp(cp::Args),
    /// Show what a machine printed on its console
    Logs(logs::Args),
    /// List machines
    #[command(visible_alias = "ls")]
    List(list::Args),
    /// Say everything that is known of a machine
    Inspect(inspect::Args),
    /// Wait until a machine has ended
    Wait(wait::Args),
    /// Power a machine off
    Stop(stop::Args),
    /// Remove a machine with its own disk
    #[command(visible_alias = "rm")]
    Delete(delete::Args),
    /// Remove every machine that has ended
    Prune(prune::Args),
    /// Clear up after a crash: of this program, of a monitor, of the host
    Reconcile(reconcile::Args),
}

/// Runs a verb.
pub(crate) fn run(verb: Verb) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::Create(args) => create::run(&args),
        Verb::Start(args) => start::run(&args),
        Verb::Exec(args) => Ok(exec::run(args).unwrap_or_else(|error| report_around_guest(&error))),
        Verb::Shell(args) => Ok(shell::run(args).unwrap_or_else(|error| report_around_guest(&error))),
        Verb::Cp(args) => cp::run(&args),
        Verb::Logs(args) => logs::run(&args),
        Verb::List(args) => list::run(&args),
        Verb::Inspect(args) => inspect::run(&args),
        Verb::Wait(args) => wait::run(&args),
        Verb::Stop(args) => stop::run(&args),
        Verb::Delete(args) => delete::run(&args),
        Verb::Prune(args) => prune::run(&args),
        Verb::Reconcile(args) => reconcile::run(&args),
    }
}

/// The manager over the user's state folder.
pub(crate) fn runtime() -> anyhow::Result<Runtime> {
    let mut options = Options::new(home()?);
    options.binary = std::env::current_exe().ok();
    Ok(Runtime::open(options)?)
}

/// Where state lives: `$VMWRIGHT_HOME`, else the XDG state folder.
fn home() -> anyhow::Result<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let xdg = || Some(variable("XDG_STATE_HOME")?.join("vmwright"));
    let default = || Some(variable("HOME")?.join(".local/state/vmwright"));
    let home = variable("VMWRIGHT_HOME").or_else(xdg).or_else(default);
    home.context("neither VMWRIGHT_HOME nor HOME is set: there is no place for state")
}

/// A machine as `--json` shows it.
fn describe(vm: &VmInfo) -> serde_json::Value {
    serde_json::json!({
        "name": vm.name.as_str(),
        "state": vm.state.name(),
        "pid": vm.pid,
        "ephemeral": vm.ephemeral,
        "created_at": vm.created_at,
        "updated_at": vm.updated_at,
        "config": vm.config,
        "exit": vm.exit,
        "directory": vm.dir.path(),
        "console_log": vm.dir.console_log(),
    })
}

/// Answers with a machine, in JSON or as one line.
fn answer(vm: &VmInfo, as_json: bool) -> anyhow::Result<ExitCode> {
    if as_json {
        json(&describe(vm))?;
    } else {
        line(format!("{} is {}", vm.name, state(vm.state)))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A state in words.
fn state(state: State) -> &'static str {
    match state {
        State::Created => "created",
        State::Running => "running",
        State::Paused => "paused",
        State::Stopped => "stopped",
        State::Error => "in error",
    }
}

/// Reads a time span as people write it: `30`, `30s`, `5m`, `2h`, `500ms`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits_end);
    let number: f64 = number.parse().map_err(|_| format!("{text:?} is not a time such as 30s"))?;
    let seconds = match unit {
        "ms" => number / 1000.0,
        "" | "s" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        "d" => number * 86_400.0,
        _ => return Err(format!("unknown unit {unit:?}; there are ms, s, m, h and d")),
    };
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// Checks that machines were named, or all asked for, and answers their names.
fn names(
    runtime: &Runtime,
    named: &[vmwright_runtime::VmName],
    all: bool,
) -> anyhow::Result<Vec<vmwright_runtime::VmName>> {
    match (named, all) {
        ([], false) => Err(Failure::usage("name a machine, or say --all")),
        (_, true) => Ok(runtime.list()?.into_iter().map(|vm| vm.name).collect()),
        _ => Ok(named.to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_as_they_are_written() {
        assert_eq!(parse_duration("30"), Ok(Duration::from_secs(30)));
        assert_eq!(parse_duration("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert!(parse_duration("soon").is_err());
        assert!(parse_duration("-1s").is_err());
    }
}
