//! `vmwright guest cat`

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context;
use vmwright_guest::ops;

use super::source::Reading;

/// What `guest cat` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The disk image
    image: PathBuf,
    /// The file in it
    #[arg(required = true)]
    paths: Vec<String>,
    #[command(flatten)]
    reading: Reading,
}

/// Prints files, one after the other.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let attempt = || format!("cannot read from {}", args.image.display());
    let guest = args.reading.open(&args.image).with_context(attempt)?;
    let mut out = io::stdout().lock();
    for path in &args.paths {
        ops::cat(guest.root(), path.as_bytes(), &mut out).with_context(attempt)?;
    }
    out.flush()?;
    Ok(())
}
