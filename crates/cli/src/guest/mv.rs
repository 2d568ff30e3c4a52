//! `vmwright guest mv`

use std::path::PathBuf;

use anyhow::Context;
use vmwright_guest::ops;

use super::source::Editing;

/// What `guest mv` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The disk image
    image: PathBuf,
    /// The file or directory in it
    from: String,
    /// Its new name, or a directory to move it into
    to: String,
    /// Refuse to replace a file
    #[arg(short = 'n', long)]
    no_clobber: bool,
    #[command(flatten)]
    editing: Editing,
}

/// Moves a file.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let edited = args.editing.edit(&args.image, |root| {
        ops::rename(root, args.from.as_bytes(), args.to.as_bytes(), !args.no_clobber)?;
        Ok(())
    });
    edited.with_context(|| format!("cannot move a file in {}", args.image.display()))
}
