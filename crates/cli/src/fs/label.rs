//! `vmwright fs label`

use anyhow::Context;
use serde::Serialize;
use vmwright_guest::fs::Purpose;

use super::source::{Editing, Place};
use crate::output::{json, line};

/// What `fs label` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    place: Place,
    /// The new label; an empty one takes it away. Otherwise the label is printed
    label: Option<String>,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    editing: Editing,
}

#[derive(Serialize)]
struct Answer {
    label: String,
}

/// Prints or changes the label.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let label = match &args.label {
        None => read(args).with_context(|| format!("cannot read the label of {}", args.place.shown()))?,
        Some(label) => {
            let change = |target: &vmwright_guest::fs::Target| {
                let mut filesystem = target.filesystem()?;
                filesystem.set_label(label.as_bytes())?;
                filesystem.sync()?;
                Ok(label.clone())
            };
            let changed = args.editing.edit(&args.place, Purpose::Filesystem, args.json, change);
            changed.with_context(|| format!("cannot change the label of {}", args.place.shown()))?
        }
    };
    match (args.json, &args.label) {
        (true, _) => json(&Answer { label }),
        (false, None) => line(label),
        (false, Some(_)) => Ok(()),
    }
}

fn read(args: &Args) -> anyhow::Result<String> {
    let filesystem = args.editing.read(&args.place)?.filesystem_to_read()?;
    Ok(String::from_utf8_lossy(&filesystem.identity().label).into_owned())
}
