//! `vmwright disk map`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use vmwright_image::copy::{MapEntry, map};

use super::source::Reading;
use crate::output::{Table, json, size};

/// What `disk map` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The image
    image: PathBuf,
    #[command(flatten)]
    reading: Reading,
    /// Answer in JSON, as `qemu-img map` does
    #[arg(long)]
    json: bool,
}

/// Says which ranges the image holds, and where.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let attempt = || format!("cannot map {}", args.image.display());
    let entries = args.reading.open(&args.image).and_then(|image| Ok(map(&image)?)).with_context(attempt)?;
    if args.json {
        json(&entries)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(["START", "LENGTH", "DEPTH", "KIND", "OFFSET IN FILE"])
        .right(0)
        .right(1)
        .right(2)
        .right(4);
    for entry in &entries {
        let offset = entry.offset.map_or(String::new(), |offset| format!("{offset:#x}"));
        table.row([
            format!("{:#x}", entry.start),
            size(entry.length),
            entry.depth.to_string(),
            kind(entry).into(),
            offset,
        ]);
    }
    table.print()?;
    Ok(ExitCode::SUCCESS)
}

fn kind(entry: &MapEntry) -> &'static str {
    match (entry.present, entry.zero, entry.compressed) {
        (false, ..) => "nothing",
        (_, true, _) => "zeros",
        (.., true) => "compressed",
        _ => "data",
    }
}
