//! `vmwright disk commit`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use vmwright_disk::Access;
use vmwright_image::chain::{CommitOptions, commit, list};

use super::bar::Bar;
use super::source::Editing;
use crate::failure::Failure;
use crate::output::{line, size};

/// What `disk commit` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The overlay
    image: PathBuf,
    /// The image of the chain that takes the content, instead of the one right beneath
    #[arg(short, long, value_name = "BASE")]
    base: Option<PathBuf>,
    /// Leave in the overlay what it holds
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    editing: Editing,
}

/// Writes what an overlay holds into the image beneath.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let attempt = || format!("cannot commit {}", args.image.display());
    let opening = args.editing.opening();
    let gate = opening.gate(&args.image).with_context(attempt)?;
    args.editing.allow(&args.image).with_context(attempt)?;
    let base = match &args.base {
        Some(base) => base.clone(),
        None => {
            let transaction = vmwright_disk::Transaction::begin(opening.transaction());
            let chain = list(&transaction, &args.image, opening.choice(), &gate).with_context(attempt)?;
            let beneath =
                chain.into_iter().nth(1).ok_or_else(|| Failure::usage("the image has no backing file"));
            beneath.with_context(attempt)?.path
        }
    };
    args.editing.allow(&base).with_context(attempt)?;
    if args.editing.is_dry_run() {
        // Whether both could be opened as a commit opens them.
        vmwright_disk::Transaction::begin(opening.transaction())
            .open(&base, Access::Write)
            .with_context(attempt)?;
        line(format!("would write what {} holds into {}", args.image.display(), base.display()))?;
        return Ok(ExitCode::SUCCESS);
    }
    let how = opening.chain(&args.image).with_context(attempt)?;
    let options =
        CommitOptions { base: args.base.clone(), keep: args.keep, secret: how.secret, lenient: how.lenient };
    let bar = Bar::new();
    let done = commit(&args.image, opening.choice(), &gate, &options, &|done, total| bar.show(done, total));
    bar.end();
    let done = done.with_context(attempt)?;
    let emptied =
        if done.emptied { "; the overlay is empty now" } else { "; the overlay still holds it too" };
    line(format!("wrote {} into {}{emptied}", size(done.bytes), done.base.display()))?;
    Ok(ExitCode::SUCCESS)
}
