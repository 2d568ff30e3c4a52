//! `vmwright fs path`

use anyhow::Context;
use serde::Serialize;
use vmwright_vfs::{InodeNumber, paths_of};

use super::source::{Place, Reading};
use crate::output::{json, line};

/// The most paths of one inode that are printed.
const MOST: usize = 65_536;

/// What `fs path` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    place: Place,
    /// The number of the inode
    inode: u64,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reading: Reading,
}

#[derive(Serialize)]
struct Answer {
    inode: u64,
    paths: Vec<String>,
}

/// Prints every path that leads to an inode.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let attempt = || format!("cannot find inode {} on {}", args.inode, args.place.shown());
    let filesystem = args.reading.open(&args.place).and_then(|target| Ok(target.filesystem_to_read()?));
    let paths = paths_of(&*filesystem.with_context(attempt)?, InodeNumber(args.inode), MOST);
    let paths = paths.with_context(attempt)?.into_iter();
    let paths: Vec<_> = paths.map(|path| String::from_utf8_lossy(&path).into_owned()).collect();
    match args.json {
        true => json(&Answer { inode: args.inode, paths }),
        false => paths.iter().try_for_each(line),
    }
}
