//! `vmwright guest stat`

use std::path::PathBuf;

use anyhow::Context;
use vmwright_guest::ops;

use super::ls::mode_text;
use super::source::Reading;
use crate::output::{json, properties, size, time};

/// What `guest stat` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The disk image
    image: PathBuf,
    /// The file in it
    path: String,
    /// Follow a symbolic link
    #[arg(short = 'L', long)]
    follow: bool,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reading: Reading,
}

/// Says what is known of a file.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let attempt = || format!("cannot look at {} in {}", args.path, args.image.display());
    let guest = args.reading.open(&args.image).with_context(attempt)?;
    let file = ops::stat(guest.root(), args.path.as_bytes(), args.follow).with_context(attempt)?;
    if args.json {
        return json(&file);
    }
    properties(&[
        ("path", Some(file.path.clone())),
        ("type", Some(file.kind.clone())),
        ("target", file.target.clone()),
        ("device", file.device.clone()),
        ("mode", Some(format!("{:04o} {}", file.mode, mode_text(&file)))),
        ("owner", Some(format!("{}:{}", file.uid, file.gid))),
        ("size", Some(format!("{} bytes, {} allocated", file.size, size(file.allocated)))),
        ("links", Some(file.links.to_string())),
        ("inode", Some(file.inode.to_string())),
        ("accessed", Some(time(file.accessed))),
        ("modified", Some(time(file.modified))),
        ("changed", Some(time(file.changed))),
        ("created", file.created.map(time)),
    ])
}
