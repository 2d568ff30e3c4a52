//! `vmwright disk checksum`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use vmwright_image::copy::sha256;

use super::bar::Bar;
use super::source::Reading;
use crate::output::{json, line};

/// What `disk checksum` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The image
    image: PathBuf,
    #[command(flatten)]
    reading: Reading,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// Says the checksum of what the guest sees.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let attempt = || format!("cannot read {}", args.image.display());
    let image = args.reading.open(&args.image).with_context(attempt)?;
    let bar = Bar::new();
    let digest = sha256(&image, &|done, total| bar.show(done, total));
    bar.end();
    let digest: String = digest.with_context(attempt)?.iter().map(|byte| format!("{byte:02x}")).collect();
    if args.json {
        json(&serde_json::json!({ "sha256": digest }))?;
    } else {
        line(format!("{digest}  {}", args.image.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}
