//! `vmwright fs …`: the filesystem on one volume of a disk, as a whole.

mod check;
mod frag;
mod info;
mod inode;
mod label;
pub(crate) mod make;
mod path;
mod resize;
mod source;
mod trim;
mod tune;
mod undelete;
mod uuid;

use std::process::ExitCode;

use clap::Subcommand;

/// The verbs of `fs`.
#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Make a filesystem on a partition or a whole disk; what is there is lost
    Make(make::Args),
    /// Say whether a filesystem is sound, and repair what can be repaired without losing anything
    Check(check::Args),
    /// Make a filesystem larger or smaller within its partition
    Resize(resize::Args),
    /// Print a filesystem's label, or change it
    Label(label::Args),
    /// Print a filesystem's UUID, or change it
    Uuid(uuid::Args),
    /// Give the space that no file uses back, or fill it with zeros
    Trim(trim::Args),
    /// Say what a filesystem is: features, layout, usage, state, history
    Info(info::Args),
    /// Change a filesystem's features and settings
    Tune(tune::Args),
    /// Say in how many pieces files lie
    Frag(frag::Args),
    /// List removed files, with what is still known of them
    Undelete(undelete::Args),
    /// Print the paths that lead to an inode
    Path(path::Args),
    /// Print the inode that a path leads to
    Inode(inode::Args),
}

/// Runs a verb.
pub(crate) fn run(verb: Verb) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::Make(args) => make::run(&args)?,
        Verb::Check(args) => return check::run(&args),
        Verb::Resize(args) => resize::run(&args)?,
        Verb::Label(args) => label::run(&args)?,
        Verb::Uuid(args) => uuid::run(&args)?,
        Verb::Trim(args) => trim::run(&args)?,
        Verb::Info(args) => info::run(&args)?,
        Verb::Tune(args) => tune::run(&args)?,
        Verb::Frag(args) => frag::run(&args)?,
        Verb::Undelete(args) => undelete::run(&args)?,
        Verb::Path(args) => path::run(&args)?,
        Verb::Inode(args) => inode::run(&args)?,
    }
    Ok(ExitCode::SUCCESS)
}
