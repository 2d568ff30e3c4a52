//! `vmwright fs trim`

use anyhow::{Context, anyhow};
use serde::Serialize;
use vmwright_guest::fs::{Purpose, Target};
use vmwright_image::copy::{Fill, Freed, sparsify, wipe};

use super::source::{Editing, Place};
use crate::disk::bar::Bar;
use crate::output::{json, line, size};
use crate::signals;

/// What `fs trim` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    place: Place,
    /// Write zeros over the free space, instead of giving it back: what was removed is gone, the image stays as large
    #[arg(long)]
    zero: bool,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    editing: Editing,
}

#[derive(Serialize)]
struct Answer {
    bytes_free: u64,
    /// What of it held something, and was given back or overwritten.
    bytes_treated: u64,
}

/// Gives the free space back, or fills it with zeros.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let trim = |target: &Target| trim(target, args.zero);
    let freed = args.editing.edit(&args.place, Purpose::Filesystem, args.json, trim);
    let freed = freed.with_context(|| format!("cannot trim the filesystem on {}", args.place.shown()))?;
    if args.json {
        return json(&Answer { bytes_free: freed.bytes_free, bytes_treated: freed.bytes_treated });
    }
    let were = if args.editing.is_dry_run() { "would be" } else { "were" };
    let treated = if args.zero { "overwritten with zeros" } else { "given back" };
    line(format!(
        "{} are free; {} of them {were} {treated}",
        size(freed.bytes_free),
        size(freed.bytes_treated)
    ))
}

fn trim(target: &Target, zero: bool) -> anyhow::Result<Freed> {
    let filesystem = target.filesystem_to_read()?;
    let free = filesystem.free_map().ok_or_else(|| anyhow!("what is free on it cannot be told"))?;
    let (disk, cancel, bar) = (&**target.disk(), signals::flag()?, Bar::new());
    let show = |done, total| bar.show(done, total);
    let freed = match zero {
        true => wipe(disk, free, Fill::Zeros, Some(&cancel), &show),
        false => sparsify(disk, free, Some(&cancel), &show),
    };
    bar.end();
    Ok(freed?)
}
