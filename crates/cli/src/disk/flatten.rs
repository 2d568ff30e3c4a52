//! `vmwright disk flatten`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use vmwright_image::chain::{FlattenOptions, flatten};

use super::bar::Bar;
use super::source::Editing;
use crate::output::line;

/// What `disk flatten` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The overlay
    image: PathBuf,
    /// How many threads work
    #[arg(short = 'j', long, default_value_t = 4, value_name = "THREADS")]
    threads: usize,
    #[command(flatten)]
    editing: Editing,
}

/// Makes an image hold all that it shows.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let attempt = || format!("cannot flatten {}", args.image.display());
    args.editing.allow(&args.image).with_context(attempt)?;
    if args.editing.is_dry_run() {
        line(format!("would write {} anew, with all that it shows", args.image.display()))?;
        return Ok(ExitCode::SUCCESS);
    }
    let opening = args.editing.opening();
    let how = opening.chain(&args.image).with_context(attempt)?;
    let options = FlattenOptions { threads: args.threads.max(1), secret: how.secret, lenient: how.lenient };
    let gate = opening.gate(&args.image).with_context(attempt)?;
    let bar = Bar::new();
    let done = flatten(&args.image, opening.choice(), &gate, &options, &|done, total| bar.show(done, total));
    bar.end();
    done.with_context(attempt)?;
    line(format!("{} needs no other image now", args.image.display()))?;
    Ok(ExitCode::SUCCESS)
}
