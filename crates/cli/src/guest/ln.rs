//! `vmwright guest ln`

use std::path::PathBuf;

use anyhow::Context;
use vmwright_guest::ops;

use super::source::Editing;

/// What `guest ln` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The disk image
    image: PathBuf,
    /// What the link leads to
    target: String,
    /// The link in the disk
    link: String,
    /// Make a symbolic link
    #[arg(short, long)]
    symbolic: bool,
    #[command(flatten)]
    editing: Editing,
}

/// Makes a link.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let edited = args.editing.edit(&args.image, |root| {
        match args.symbolic {
            true => ops::symlink(root, args.target.as_bytes(), args.link.as_bytes())?,
            false => ops::hard_link(root, args.target.as_bytes(), args.link.as_bytes())?,
        }
        Ok(())
    });
    edited.with_context(|| format!("cannot make a link in {}", args.image.display()))
}
