//! `vmwright guest …`: what is inside a disk.

mod cat;
mod chmod;
mod chown;
mod cp;
mod edit;
mod inspect;
mod ln;
mod ls;
mod mkdir;
mod mv;
mod rm;
pub(crate) mod source;
mod stat;
mod write;

use std::process::ExitCode;

use clap::Subcommand;

/// The verbs of `guest`.
#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Say what system is on a disk, and how it is set up
    Inspect(inspect::Args),
    /// List a directory
    Ls(ls::Args),
    /// Say what is known of a file
    Stat(stat::Args),
    /// Print a file
    Cat(cat::Args),
    /// Replace a file's content; owner, mode and attributes stay
    Write(write::Args),
    /// Change a file by substitutions, or in an editor
    Edit(edit::Args),
    /// Copy files and directories into or out of a disk
    Cp(cp::Args),
    /// Make a directory
    Mkdir(mkdir::Args),
    /// Remove files and directories
    Rm(rm::Args),
    /// Move a file or directory
    Mv(mv::Args),
    /// Make a hard or symbolic link
    Ln(ln::Args),
    /// Change modes
    Chmod(chmod::Args),
    /// Change owners
    Chown(chown::Args),
}

/// Runs a verb.
pub(crate) fn run(verb: Verb) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::Inspect(args) => inspect::run(&args)?,
        Verb::Ls(args) => ls::run(&args)?,
        Verb::Stat(args) => stat::run(&args)?,
        Verb::Cat(args) => cat::run(&args)?,
        Verb::Write(args) => write::run(&args)?,
        Verb::Edit(args) => edit::run(&args)?,
        Verb::Cp(args) => cp::run(&args)?,
        Verb::Mkdir(args) => mkdir::run(&args)?,
        Verb::Rm(args) => rm::run(&args)?,
        Verb::Mv(args) => mv::run(&args)?,
        Verb::Ln(args) => ln::run(&args)?,
        Verb::Chmod(args) => chmod::run(&args)?,
        Verb::Chown(args) => chown::run(&args)?,
    }
    Ok(ExitCode::SUCCESS)
}
