//! `vmwright guest chmod`

use std::path::PathBuf;

use anyhow::Context;
use vmwright_guest::ops;

use super::source::Editing;

/// What `guest chmod` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The disk image
    image: PathBuf,
    /// The mode: octal, or clauses such as u+x,go-w
    #[arg(allow_hyphen_values = true)]
    mode: String,
    /// The files in it
    #[arg(required = true)]
    paths: Vec<String>,
    /// Change everything beneath, too
    #[arg(short = 'R', long)]
    recursive: bool,
    #[command(flatten)]
    editing: Editing,
}

/// Changes modes, all or none.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let edited = args.editing.edit(&args.image, |root| {
        for path in &args.paths {
            ops::chmod(root, path.as_bytes(), &args.mode, args.recursive)?;
        }
        Ok(())
    });
    edited.with_context(|| format!("cannot change a mode in {}", args.image.display()))
}
