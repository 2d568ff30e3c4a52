//! `vmwright fs undelete`

use std::ops::ControlFlow;

use anyhow::Context;
use vmwright_guest::fs::Removed;

use super::source::{Place, Reading};
use crate::output::{Table, json, line, time};

/// What `fs undelete` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    place: Place,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reading: Reading,
}

/// Lists what is left of removed files.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let attempt = || format!("cannot look for removed files on {}", args.place.shown());
    let target = args.reading.open(&args.place).with_context(attempt)?;
    let mut found = Vec::new();
    let listing = target.removed(&mut |removed| {
        found.push(removed);
        ControlFlow::Continue(())
    });
    listing.with_context(attempt)?;
    if args.json {
        return json(&found);
    }
    if found.is_empty() {
        return line("nothing is left of any removed file");
    }
    let headings = ["INODE", "KIND", "MODE", "OWNER", "SIZE", "DELETED", "MODIFIED", "BLOCKS", "STILL FREE"];
    let mut table = Table::new(headings).right(0).right(4).right(7).right(8);
    found.into_iter().for_each(|removed| table.row(row(removed)));
    table.print()
}

fn row(removed: Removed) -> [String; 9] {
    [
        removed.inode.to_string(),
        removed.kind.to_owned(),
        format!("{:04o}", removed.mode),
        format!("{}:{}", removed.uid, removed.gid),
        removed.size.to_string(),
        time(removed.deleted),
        time(removed.modified),
        removed.blocks.to_string(),
        removed.free_blocks.map_or("unknown".to_owned(), |free| free.to_string()),
    ]
}
