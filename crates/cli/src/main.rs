//! Opens any virtual-machine disk, rewrites what is inside it, and runs it.
//!
//! One file per verb. Verbs turn arguments into calls of the libraries beneath and their answers into text or
//! JSON; they hold no logic of their own. This is the only crate that prints.
#![forbid(unsafe_code)]
// Notes and errors go to standard error from here and nowhere else.
#![allow(clippy::print_stderr)]

mod completion;
mod disk;
mod doctor;
mod failure;
mod filling;
mod fs;
mod gate;
mod guest;
mod opening;
mod output;
mod run;
mod secret;
mod signals;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Opens any virtual-machine disk, rewrites what is inside it, and runs it.
#[derive(Parser)]
#[command(
    name = "vmwright",
    version,
    propagate_version = true,
    disable_help_subcommand = true,
    max_term_width = 100
)]
struct Cli {
    #[command(subcommand)]
    noun: Noun,
}

#[derive(Subcommand)]
enum Noun {
    /// Look at, create and convert disk images
    #[command(subcommand)]
    Disk(disk::Verb),
    /// Look at and change what is inside a disk
    #[command(subcommand)]
    Guest(guest::Verb),
    /// Make, check, resize and tune the filesystem on one volume of a disk
    #[command(subcommand)]
    Fs(fs::Verb),
    /// Boot a disk, run a command in it, and throw the changes away
    Run(run::Args),
    /// Manage machines that stay
    #[command(subcommand)]
    Vm(vm::Verb),
    /// Say what works on this host, and why the rest does not
    Doctor(doctor::Args),
    /// Print a completion script for a shell
    Completion(completion::Args),
}

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    if args.nth(1).is_some_and(|first| first == vmwright_runtime::shim::ARGUMENT) {
        return vmwright_runtime::shim::main(args);
    }
    match dispatch(Cli::parse().noun) {
        Ok(code) => code,
        Err(error) => failure::report(&error),
    }
}

fn dispatch(noun: Noun) -> anyhow::Result<ExitCode> {
    match noun {
        Noun::Disk(verb) => disk::run(verb),
        Noun::Guest(verb) => guest::run(verb),
        Noun::Fs(verb) => fs::run(verb),
        Noun::Run(args) => Ok(run::run(args).unwrap_or_else(|error| failure::report_around_guest(&error))),
        Noun::Vm(verb) => vm::run(verb),
        Noun::Doctor(args) => doctor::run(&args),
        Noun::Completion(args) => completion::run(&args),
    }
}
