//! `vmwright disk wipe`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use vmwright_image::{WipeOptions, WipePattern, wipe};

use super::bar::Bar;
use super::source::Editing;
use crate::output::{line, note, size};

/// What `disk wipe` takes.
#[derive(clap::Args)]
#[group(skip)]
pub(crate) struct Args {
    /// The image
    image: PathBuf,
    #[command(flatten)]
    what: What,
    /// Overwrite by zeros instead of random numbers
    #[arg(long)]
    zeros: bool,
    /// Destroy the content of files that have further names too
    #[arg(long, requires = "delete")]
    even_linked: bool,
    #[command(flatten)]
    editing: Editing,
}

/// What is overwritten.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct What {
    /// The whole image with all its files, which are then removed; what lies beneath it stays
    #[arg(long)]
    delete: bool,
    /// What the filesystems on it do not use; the image stays
    #[arg(long)]
    free_space: bool,
}

/// Overwrites what nobody shall read again.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let attempt = || format!("cannot wipe {}", args.image.display());
    args.editing.allow(&args.image).with_context(attempt)?;
    if args.what.free_space {
        return super::free::wipe(&args.image, args.zeros, &args.editing).with_context(attempt);
    }
    if args.editing.is_dry_run() {
        line(format!("would overwrite and remove {}", args.image.display()))?;
        return Ok(ExitCode::SUCCESS);
    }
    let opening = args.editing.opening();
    let gate = opening.gate(&args.image).with_context(attempt)?;
    let pattern = if args.zeros { WipePattern::Zeros } else { WipePattern::Random };
    let options = WipeOptions { pattern, even_linked: args.even_linked };
    let bar = Bar::new();
    let done = wipe(&args.image, opening.choice(), &gate, &options, &|done, total| bar.show(done, total));
    bar.end();
    let done = done.with_context(attempt)?;
    for file in &done.files {
        line(format!("overwrote and removed {}", file.display()))?;
    }
    note(format!("{} were overwritten", size(done.bytes)));
    if done.may_leave_copies {
        note("the filesystem writes to new places: the old content may still be on the device");
    }
    Ok(ExitCode::SUCCESS)
}
