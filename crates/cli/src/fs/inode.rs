//! `vmwright fs inode`

use anyhow::Context;
use serde::Serialize;
use vmwright_vfs::Root;

use super::source::{Place, Reading};
use crate::output::{json, line};

/// What `fs inode` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    place: Place,
    /// The path in the filesystem; a symbolic link at its end is not followed
    path: String,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reading: Reading,
}

#[derive(Serialize)]
struct Answer<'a> {
    path: &'a str,
    inode: u64,
}

/// Prints the inode that a path leads to.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let attempt = || format!("cannot find {} on {}", args.path, args.place.shown());
    let target = args.reading.open(&args.place).with_context(attempt)?;
    let root = Root::new(target.filesystem_to_read().with_context(attempt)?);
    let found = root.resolve(args.path.as_bytes(), false).with_context(attempt)?;
    let inode = found.location.inode.0;
    match args.json {
        true => json(&Answer { path: &args.path, inode }),
        false => line(inode.to_string()),
    }
}
