//! `vmwright disk snapshot …`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Subcommand;
use vmwright_image::SnapshotInfo;

use super::source::{Editing, Reading};
use crate::output::{Table, json, line, size, time};

/// What `disk snapshot` takes.
#[derive(Subcommand)]
pub(crate) enum Verb {
    /// List the internal snapshots of an image
    List {
        /// The image
        image: PathBuf,
        #[command(flatten)]
        reading: Reading,
        /// Answer in JSON
        #[arg(long)]
        json: bool,
    },
    /// Keep the present state of the disk as a snapshot inside the image
    Create {
        /// The image
        image: PathBuf,
        /// The snapshot's name
        name: String,
        #[command(flatten)]
        editing: Editing,
    },
    /// Make the disk what it was when a snapshot was taken; what it holds now is lost
    Apply {
        /// The image
        image: PathBuf,
        /// The snapshot's id or name
        snapshot: String,
        #[command(flatten)]
        editing: Editing,
    },
    /// Remove a snapshot and give its space back
    Delete {
        /// The image
        image: PathBuf,
        /// The snapshot's id or name
        snapshot: String,
        #[command(flatten)]
        editing: Editing,
    },
}

/// Runs a verb.
pub(crate) fn run(verb: &Verb) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::List { image, reading, json: as_json } => {
            let attempt = || format!("cannot list the snapshots of {}", image.display());
            let all = reading.open(image).and_then(|image| Ok(image.snapshots()?.list()?));
            let all = all.with_context(attempt)?;
            if *as_json { json(&all)? } else { print(&all)? }
        }
        Verb::Create { image, name, editing } => {
            let attempt = || format!("cannot make a snapshot of {}", image.display());
            let made = editing.edit(image, false, |image| Ok(image.snapshots()?.create(name)?));
            let made = made.with_context(attempt)?;
            if !editing.is_dry_run() {
                line(format!("snapshot {} {} was made", made.id, made.name))?;
            }
        }
        Verb::Apply { image, snapshot, editing } => {
            let attempt = || format!("cannot go back to snapshot {snapshot} of {}", image.display());
            editing
                .edit(image, false, |image| Ok(image.snapshots()?.apply(snapshot)?))
                .with_context(attempt)?;
        }
        Verb::Delete { image, snapshot, editing } => {
            let attempt = || format!("cannot delete snapshot {snapshot} of {}", image.display());
            editing
                .edit(image, false, |image| Ok(image.snapshots()?.delete(snapshot)?))
                .with_context(attempt)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print(all: &[SnapshotInfo]) -> anyhow::Result<()> {
    let mut table = Table::new(["ID", "NAME", "TAKEN", "MACHINE STATE"]).right(3);
    for one in all {
        let state = if one.vm_state_size == 0 { "none".to_owned() } else { size(one.vm_state_size) };
        table.row([one.id.clone(), one.name.clone(), time(one.date_sec.into()), state]);
    }
    table.print()
}
