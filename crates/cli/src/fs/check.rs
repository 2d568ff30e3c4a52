//! `vmwright fs check`

use std::process::ExitCode;

use anyhow::Context;
use clap::ValueEnum;
use vmwright_guest::fs::{Checked, Format, Purpose, Target};

use super::source::{Editing, Place};
use crate::output::{json, line};

/// What `fs check` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    place: Place,
    /// Put right what can be put right without losing anything
    #[arg(long)]
    repair: bool,
    /// Which filesystem it is, where too little is left to tell
    #[arg(short = 't', long = "type", value_enum)]
    kind: Option<Kind>,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    editing: Editing,
}

/// A filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Kind {
    Ext2,
    Ext3,
    Ext4,
}

/// Checks the filesystem; exit code 4 where it is damaged.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let attempt = || format!("cannot check the filesystem on {}", args.place.shown());
    let check = |target: &Target| Ok(target.check(args.kind.map(|_| Format::Ext), args.repair)?);
    let checked = match args.repair {
        true => args.editing.edit(&args.place, Purpose::Filesystem, args.json, check),
        false => args.editing.read(&args.place).and_then(|target| check(&target)),
    };
    let checked = checked.with_context(attempt)?;
    match args.json {
        true => json(&checked)?,
        false => print(&checked, args)?,
    }
    Ok(if checked.clean { ExitCode::SUCCESS } else { ExitCode::from(4) })
}

fn print(checked: &Checked, args: &Args) -> anyhow::Result<()> {
    for found in &checked.findings {
        let end = match (found.repaired, found.repairable, args.repair) {
            (true, _, _) => " (repaired)",
            (false, true, false) => " (--repair puts it right)",
            _ => "",
        };
        line(format!("{}{end}", found.text))?;
    }
    let shown = checked.findings.len() as u64;
    if checked.total > shown {
        line(format!("… and {} more", checked.total - shown))?;
    }
    if checked.journal_replayed {
        line("the journal holds changes that were never brought to their places; they were followed")?;
    }
    line(match (checked.clean, checked.total) {
        (true, 0) => "the filesystem is sound".to_owned(),
        (true, total) => format!("all {total} damages were repaired"),
        (false, total) => format!("{total} damages were found, {} of them repaired", checked.repaired),
    })?;
    let percent = |(used, all): (u64, u64)| used as f64 * 100.0 / all.max(1) as f64;
    line(format!(
        "{} files, {} directories, {} symbolic links, {} others; {} of {} inodes ({:.1} %) and {} of {} blocks \
         ({:.1} %) are in use",
        checked.files,
        checked.directories,
        checked.symlinks,
        checked.special,
        checked.inodes.0,
        checked.inodes.1,
        percent(checked.inodes),
        checked.blocks.0,
        checked.blocks.1,
        percent(checked.blocks),
    ))
}
