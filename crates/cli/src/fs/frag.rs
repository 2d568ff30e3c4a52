//! `vmwright fs frag`

use anyhow::Context;
use vmwright_guest::fs::{FilePieces, Fragmentation};

use super::source::{Place, Reading};
use crate::output::{Table, json, line};

/// What `fs frag` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    place: Place,
    /// A file, or a directory with -R; otherwise the whole filesystem
    path: Option<String>,
    /// Everything beneath the directory, too
    #[arg(short = 'R', long, requires = "path")]
    recursive: bool,
    /// How many of the files in the most pieces are listed
    #[arg(long, value_name = "N", default_value = "10", conflicts_with = "path")]
    worst: usize,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reading: Reading,
}

/// Says in how many pieces files lie.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let attempt = || format!("cannot measure the fragmentation of {}", args.place.shown());
    let target = args.reading.open(&args.place).with_context(attempt)?;
    if let Some(path) = &args.path {
        let files = target.pieces_of(path.as_bytes(), args.recursive).with_context(attempt)?;
        return if args.json { json(&files) } else { table(&files) };
    }
    let all = target.fragmentation(args.worst).with_context(attempt)?;
    match args.json {
        true => json(&all),
        false => print(&all),
    }
}

fn print(all: &Fragmentation) -> anyhow::Result<()> {
    line(format!(
        "{} of {} files and directories lie in more pieces than they must: {} blocks in {} pieces, at best {}",
        all.fragmented, all.files, all.blocks, all.pieces, all.fewest
    ))?;
    let meaning = match all.score {
        score if score <= 30.0 => "no problem",
        score if score <= 55.0 => "a little fragmented",
        _ => "defragmenting would help",
    };
    line(format!("score {:.0} of 100: {meaning}", all.score))?;
    if all.worst.is_empty() { Ok(()) } else { table(&all.worst) }
}

fn table(files: &[FilePieces]) -> anyhow::Result<()> {
    let mut table = Table::new(["INODE", "BLOCKS", "PIECES", "AT BEST", "SCORE", "PATH"])
        .right(0)
        .right(1)
        .right(2)
        .right(3)
        .right(4);
    for file in files {
        table.row([
            file.inode.to_string(),
            file.blocks.to_string(),
            file.pieces.to_string(),
            file.fewest.to_string(),
            format!("{:.0}", file.score),
            file.path.clone().unwrap_or_else(|| "(no path)".to_owned()),
        ]);
    }
    table.print()
}
