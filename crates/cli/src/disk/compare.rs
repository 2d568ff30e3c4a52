//! `vmwright disk compare`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use vmwright_disk::Disk;
use vmwright_image::copy::{compare, compare_strictly};

use super::FormatName;
use super::bar::Bar;
use super::source::Reading;
use crate::output::{json, line};

/// What `disk compare` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// One image; the options of opening are about it
    first: PathBuf,
    /// The other
    second: PathBuf,
    /// The format of the other, instead of looking at its first bytes
    #[arg(short = 'F', long, value_enum, value_name = "FORMAT")]
    second_format: Option<FormatName>,
    /// Also fail where one is longer, though the rest is zeros, or stores what the other leaves out
    #[arg(short, long)]
    strict: bool,
    /// How many threads work
    #[arg(short = 'j', long, default_value_t = 4, value_name = "THREADS")]
    threads: usize,
    #[command(flatten)]
    reading: Reading,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// Says whether two images show the same; exit code 1 where they do not.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let attempt = || format!("cannot compare {} with {}", args.first.display(), args.second.display());
    let first = args.reading.open(&args.first).with_context(attempt)?;
    let second = args.reading.with_format(args.second_format).open(&args.second).with_context(attempt)?;
    let bar = Bar::new();
    let how = if args.strict { compare_strictly } else { compare };
    let found = how(&first, &second, args.threads.max(1), &|done, total| bar.show(done, total));
    bar.end();
    let found = found.with_context(attempt)?;
    let same = if args.strict { found.is_same() } else { found.first_difference.is_none() };
    if args.json {
        json(&found)?;
    } else if let Some(offset) = found.first_difference {
        line(format!("they differ: the first difference is at offset {offset}"))?;
    } else if let Some(offset) = found.first_difference_in_allocation {
        line(format!("they hold the same, but only one stores what is at offset {offset}"))?;
    } else if !found.same_size {
        let sizes = format!("{} and {} bytes", first.len(), second.len());
        line(format!("they hold the same, but differ in size ({sizes}); what one has more is zeros"))?;
    } else {
        line("they hold the same")?;
    }
    Ok(if same { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
