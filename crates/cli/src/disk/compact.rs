//! `vmwright disk compact`

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use vmwright_disk::{Disk, FreeMap};
use vmwright_guest::FreeSpace;
use vmwright_image::copy::{CompactOptions, compact, sparsify};

use super::bar::Bar;
use super::free::{find, tell};
use super::source::Editing;
use crate::failure::Failure;
use crate::output::{json, line, size};
use crate::signals;

/// What `disk compact` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The image
    image: PathBuf,
    /// Also leave out what the filesystems on the disk do not use
    #[arg(long)]
    free_space: bool,
    /// Give the free space back in place, instead of writing the image anew
    #[arg(long, requires = "free_space")]
    in_place: bool,
    /// Compress
    #[arg(short, long, conflicts_with = "in_place")]
    compress: bool,
    #[command(flatten)]
    editing: Editing,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// Makes the image smaller.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let attempt = || format!("cannot compact {}", args.image.display());
    args.editing.allow(&args.image).with_context(attempt)?;
    if args.editing.is_dry_run() {
        return dry_run(args).with_context(attempt);
    }
    if args.in_place {
        return in_place(args).with_context(attempt);
    }
    let opening = args.editing.opening();
    if opening.redo_dir().is_some() {
        let text = "writing an image anew needs no redo file: leave --redo-dir out";
        return Err(Failure::usage(text)).with_context(attempt);
    }
    let how = opening.chain(&args.image).with_context(attempt)?;
    let options = CompactOptions {
        compress: args.compress,
        secret: how.secret,
        lenient: how.lenient,
        cancel: Some(signals::flag()?),
    };
    let gate = opening.gate(&args.image).with_context(attempt)?;
    let find_free = |disk: &Arc<dyn Disk>| -> vmwright_disk::Result<Box<dyn FreeMap>> {
        let space = FreeSpace::of(disk).map_err(|error| vmwright_disk::Error::layer(error.kind(), error))?;
        tell(&space);
        Ok(Box::new(space))
    };
    let find_free: Option<vmwright_image::copy::FindFree<'_>> =
        if args.free_space { Some(&find_free) } else { None };
    let bar = Bar::new();
    let done = compact(&args.image, opening.choice(), &gate, find_free, &options, &|done, total| {
        bar.show(done, total)
    });
    bar.end();
    let done = done.with_context(attempt)?;
    if args.json {
        json(&done)?;
    } else {
        let free =
            if args.free_space { format!("; {} were free", size(done.bytes_free)) } else { String::new() };
        line(format!(
            "{} takes {} now instead of {}{free}",
            args.image.display(),
            size(done.bytes_after),
            size(done.bytes_before)
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn in_place(args: &Args) -> anyhow::Result<ExitCode> {
    let cancel = signals::flag()?;
    let image = args.editing.open_in_place(&args.image)?;
    let space = find(&image)?;
    let bar = Bar::new();
    let done = sparsify(&*image, &space, Some(&cancel), &|done, total| bar.show(done, total));
    bar.end();
    let done = done?;
    if args.json {
        json(&done)?;
    } else {
        line(format!(
            "{} were free; {} of them were given back",
            size(done.bytes_free),
            size(done.bytes_treated)
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn dry_run(args: &Args) -> anyhow::Result<ExitCode> {
    let free = if args.free_space {
        let image: Arc<dyn Disk> = Arc::new(args.editing.open_to_read(&args.image)?);
        let mut sum = 0;
        find(&image)?.free_ranges(&mut |range| {
            sum += range.end - range.start;
            Ok(())
        })?;
        format!(", without {} that are free", size(sum))
    } else {
        String::new()
    };
    let how = if args.in_place { "would change" } else { "would write anew" };
    line(format!("{how} {}{free}", args.image.display()))?;
    Ok(ExitCode::SUCCESS)
}
