//! `vmwright disk checksum`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::ValueEnum;
use vmwright_image::copy::{Digests, checksum};

use super::bar::Bar;
use super::source::Reading;
use crate::output::{json, line};

/// What `disk checksum` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The image
    image: PathBuf,
    /// Which checksum
    #[arg(short, long, value_enum, default_value = "sha256")]
    algorithm: Algorithm,
    /// How many threads read ahead
    #[arg(short = 'j', long, default_value_t = 2, value_name = "THREADS")]
    threads: usize,
    #[command(flatten)]
    reading: Reading,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// A checksum.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Algorithm {
    Sha256,
    Blake3,
    /// Both, of one reading
    Both,
}

/// Says the checksum of what the guest sees.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let attempt = || format!("cannot read {}", args.image.display());
    let image = args.reading.open(&args.image).with_context(attempt)?;
    let wanted =
        Digests { sha256: args.algorithm != Algorithm::Blake3, blake3: args.algorithm != Algorithm::Sha256 };
    let bar = Bar::new();
    let found = checksum(&image, wanted, args.threads.max(1), &|done, total| bar.show(done, total));
    bar.end();
    let found = found.with_context(attempt)?;
    if args.json {
        json(&found)?;
        return Ok(ExitCode::SUCCESS);
    }
    for digest in [found.sha256, found.blake3].into_iter().flatten() {
        let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        line(format!("{digits}  {}", args.image.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}
