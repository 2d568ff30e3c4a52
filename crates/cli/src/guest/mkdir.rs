//! `vmwright guest mkdir`

use std::path::PathBuf;

use anyhow::Context;
use vmwright_guest::ops;

use super::source::Editing;

/// What `guest mkdir` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The disk image
    image: PathBuf,
    /// The directories in it
    #[arg(required = true)]
    paths: Vec<String>,
    /// Make those above it, too; one that exists is no error
    #[arg(short, long)]
    parents: bool,
    /// The mode, in octal
    #[arg(short, long, default_value = "755", value_parser = parse_octal)]
    mode: u16,
    #[command(flatten)]
    editing: Editing,
}

/// Makes directories, all or none.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let edited = args.editing.edit(&args.image, |root| {
        for path in &args.paths {
            ops::mkdir(root, path.as_bytes(), args.mode, args.parents)?;
        }
        Ok(())
    });
    edited.with_context(|| format!("cannot make a directory in {}", args.image.display()))
}

fn parse_octal(text: &str) -> Result<u16, String> {
    let mode = u16::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777);
    mode.ok_or_else(|| format!("{text:?} is not a mode such as 755"))
}
