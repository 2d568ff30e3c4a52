//! `vmwright guest rm`

use std::path::PathBuf;

use anyhow::Context;
use vmwright_guest::ops;

use super::source::Editing;

/// What `guest rm` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The disk image
    image: PathBuf,
    /// The files in it
    #[arg(required = true)]
    paths: Vec<String>,
    /// Remove directories with everything in them
    #[arg(short, long)]
    recursive: bool,
    #[command(flatten)]
    editing: Editing,
}

/// Removes files, all or none.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let edited = args.editing.edit(&args.image, |root| {
        for path in &args.paths {
            ops::remove(root, path.as_bytes(), args.recursive)?;
        }
        Ok(())
    });
    edited.with_context(|| format!("cannot remove in {}", args.image.display()))
}
