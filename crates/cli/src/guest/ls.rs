//! `vmwright guest ls`

use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::Context;
use vmwright_guest::ops::{self, Listed};

use super::source::Reading;
use crate::output::{json, line, time};

/// What `guest ls` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The disk image
    image: PathBuf,
    /// The directory in it
    #[arg(default_value = "/")]
    path: String,
    /// Show type, mode, owner, size and time
    #[arg(short)]
    long: bool,
    /// List everything beneath, too
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reading: Reading,
}

/// Lists a directory.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let attempt = || format!("cannot list {} in {}", args.path, args.image.display());
    let guest = args.reading.open(&args.image).with_context(attempt)?;
    let mut listed = Vec::new();
    let mut failed = None;
    let listing = ops::list(guest.root(), args.path.as_bytes(), args.recursive, &mut |file| {
        if args.json {
            listed.push(file);
            return ControlFlow::Continue(());
        }
        match line(describe(&file, args)) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        }
    });
    listing.with_context(attempt)?;
    if args.json {
        return json(&listed);
    }
    failed.map_or(Ok(()), Err)
}

fn describe(file: &Listed, args: &Args) -> String {
    let name = match args.recursive {
        true => file.path.as_str(),
        false => file.path.rsplit('/').next().unwrap_or(&file.path),
    };
    if !args.long {
        return name.to_owned();
    }
    let size = file.device.clone().unwrap_or_else(|| file.size.to_string());
    let arrow = file.target.as_ref().map_or_else(String::new, |target| format!(" -> {target}"));
    let (links, uid, gid) = (file.links, file.uid, file.gid);
    format!(
        "{} {links:>3} {uid:>5} {gid:>5} {size:>11} {} {name}{arrow}",
        mode_text(file),
        time(file.modified)
    )
}

/// Type and mode as `ls -l` shows them: `drwxr-xr-x`.
pub(super) fn mode_text(file: &Listed) -> String {
    let letter = match file.kind.as_str() {
        "directory" => 'd',
        "symlink" => 'l',
        "char" => 'c',
        "block" => 'b',
        "fifo" => 'p',
        "socket" => 's',
        _ => '-',
    };
    let mut text = String::from(letter);
    for (shift, special, set, unset) in [(6, 0o4000, 's', 'S'), (3, 0o2000, 's', 'S'), (0, 0o1000, 't', 'T')]
    {
        let bits = file.mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (file.mode & special != 0, bits & 1 != 0) {
            (true, true) => set,
            (true, false) => unset,
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}
