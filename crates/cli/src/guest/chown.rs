//! `vmwright guest chown`

use std::path::PathBuf;

use anyhow::Context;
use vmwright_guest::ops;

use super::source::Editing;

/// What `guest chown` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The disk image
    image: PathBuf,
    /// USER, USER:GROUP, USER: or :GROUP, as numbers or as the guest's own names
    owner: String,
    /// The files in it
    #[arg(required = true)]
    paths: Vec<String>,
    /// Change everything beneath, too
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Change a symbolic link itself
    #[arg(short = 'P', long)]
    no_dereference: bool,
    #[command(flatten)]
    editing: Editing,
}

/// Changes owners, all or none.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let edited = args.editing.edit(&args.image, |root| {
        let owner = ops::Owner::parse(root, &args.owner)?;
        for path in &args.paths {
            ops::chown(root, path.as_bytes(), owner, !args.no_dereference, args.recursive)?;
        }
        Ok(())
    });
    edited.with_context(|| format!("cannot change an owner in {}", args.image.display()))
}
