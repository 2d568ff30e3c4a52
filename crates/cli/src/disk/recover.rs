//! `vmwright disk recover`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use vmwright_disk::{Recovered, Recovery, TransactionOptions, pending, recover};

use crate::output::line;

/// What `disk recover` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The image
    image: PathBuf,
    /// Finish the edit, even though the image has changed since: what it changes is written over
    #[arg(long, conflicts_with = "discard")]
    apply: bool,
    /// Drop the edit; where it was half written, the image stays half written
    #[arg(long)]
    discard: bool,
    /// The folder that the redo file was told to be in
    #[arg(long, value_name = "FOLDER")]
    redo_dir: Option<PathBuf>,
    /// Say what is pending, and change nothing
    #[arg(long)]
    dry_run: bool,
}

/// Finishes or drops a pending edit.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let attempt = || format!("cannot recover {}", args.image.display());
    let mut options = TransactionOptions::default();
    if let Some(folder) = &args.redo_dir {
        options = options.redo_dir(folder);
    }
    if args.dry_run {
        match pending(&args.image, &options).with_context(attempt)? {
            None => line("nothing is pending")?,
            Some(pending) => {
                line(format!("an edit is pending in {}, of", pending.redo.display()))?;
                pending.files.iter().try_for_each(|file| line(format!("  {}", file.display())))?;
            }
        }
        return Ok(ExitCode::SUCCESS);
    }
    let recovery = match (args.apply, args.discard) {
        (true, _) => Recovery::Apply,
        (_, true) => Recovery::Discard,
        _ => Recovery::Auto,
    };
    line(match recover(&args.image, recovery, &options).with_context(attempt)? {
        Recovered::Nothing => "nothing was pending",
        Recovered::Applied => "the pending edit is finished",
        Recovered::Discarded => "the pending edit is dropped",
    })?;
    Ok(ExitCode::SUCCESS)
}
