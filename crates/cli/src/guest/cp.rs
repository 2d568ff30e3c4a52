//! `vmwright guest cp`

use std::path::Path;

use anyhow::Context;
use vmwright_guest::ops::{self, CopyOptions, CopySummary};

use super::source::Editing;
use crate::failure::Failure;
use crate::output::{note, parse_size};

/// What `guest cp` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to copy: LOCAL or IMAGE:PATH
    source: String,
    /// Where to: IMAGE:PATH or LOCAL
    target: String,
    /// Copy devices, fifos and set-id bits, too
    #[arg(long)]
    special: bool,
    /// Keep owners; otherwise files belong to you here, and to root in the guest
    #[arg(long)]
    owners: bool,
    /// Refuse to copy more than this
    #[arg(long, value_parser = parse_size, default_value = "1T")]
    max_size: u64,
    /// Read even though somebody is writing to the disk; what is read may be torn
    #[arg(short = 'U', long)]
    force_share: bool,
    #[command(flatten)]
    editing: Editing,
}

/// Copies.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let attempt = || format!("cannot copy {} to {}", args.source, args.target);
    let options = CopyOptions {
        special: args.special,
        owners: args.owners,
        max_bytes: args.max_size,
        ..CopyOptions::default()
    };
    let summary = match (in_image(&args.source), in_image(&args.target)) {
        (None, Some((image, path))) => {
            let source = Path::new(&args.source);
            args.editing.edit(image, |root| Ok(ops::copy_in(root, source, path, &options)?))
        }
        (Some((image, path)), None) => {
            let guest = args.editing.open_for_reading(image, args.force_share);
            guest.and_then(|guest| Ok(ops::copy_out(guest.root(), path, Path::new(&args.target), &options)?))
        }
        _ => Err(Failure::usage("one side is a file here, the other IMAGE:PATH in a disk")),
    };
    report(&summary.with_context(attempt)?);
    Ok(())
}

/// Takes `IMAGE:PATH`, with an absolute path, as a file in a disk and everything else as one here.
fn in_image(text: &str) -> Option<(&Path, &[u8])> {
    let at = text.find(":/")?;
    Some((Path::new(&text[..at]), &text.as_bytes()[at + 1..]))
}

fn report(summary: &CopySummary) {
    for path in &summary.skipped {
        note(format!("left out, it is special (--special copies it): {path}"));
    }
    let more = summary.skipped_count.saturating_sub(summary.skipped.len() as u64);
    if more > 0 {
        note(format!("left out {more} more"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_and_a_path_are_told_apart_at_the_colon() {
        assert_eq!(in_image("a:b.qcow2:/etc"), Some((Path::new("a:b.qcow2"), b"/etc".as_slice())));
        assert_eq!(in_image("/tmp/file"), None);
        assert_eq!(in_image("file"), None);
    }
}
