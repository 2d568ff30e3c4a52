//! `vmwright guest write`

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use anyhow::Context;
use vmwright_guest::ops;

use super::source::Editing;

/// What `guest write` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The disk image
    image: PathBuf,
    /// The file in it
    path: String,
    /// Take the content from this file, instead of standard input
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Take this as the content; a new line is appended unless it ends with one
    #[arg(long, conflicts_with = "from")]
    text: Option<String>,
    #[command(flatten)]
    editing: Editing,
}

/// Replaces the file's content.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let mut input: Box<dyn Read> = match (&args.text, &args.from) {
        (Some(text), _) => {
            let end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
            Box::new(io::Cursor::new(format!("{text}{end}")))
        }
        (None, Some(from)) => {
            Box::new(File::open(from).with_context(|| format!("cannot open {}", from.display()))?)
        }
        (None, None) => Box::new(io::stdin().lock()),
    };
    let path = args.path.as_bytes();
    let edited = args.editing.edit(&args.image, |root| Ok(ops::write(root, path, &mut input)?));
    edited.with_context(|| format!("cannot write {} in {}", args.path, args.image.display()))?;
    Ok(())
}
