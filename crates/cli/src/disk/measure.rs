//! `vmwright disk measure`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use vmwright_image::copy::{measure, measure_empty};
use vmwright_image::{CreateOptions, Format};

use super::source::Reading;
use super::{FormatName, options};
use crate::failure::Failure;
use crate::output::{json, parse_size, properties, size};

/// What `disk measure` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The image that would be converted
    #[arg(required_unless_present = "size")]
    image: Option<PathBuf>,
    /// The size of a new disk, instead of an image
    #[arg(long, value_parser = parse_size, conflicts_with = "image")]
    size: Option<u64>,
    /// The format that would be made
    #[arg(short = 'O', long, value_enum)]
    output_format: FormatName,
    /// An option of the format, by the name that qemu-img has for it
    #[arg(short, long = "option", value_name = "KEY=VALUE")]
    options: Vec<String>,
    #[command(flatten)]
    reading: Reading,
    /// Answer in JSON, as `qemu-img measure` does
    #[arg(long)]
    json: bool,
}

/// Says how large a file a conversion would make.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let attempt = || "cannot measure".to_owned();
    let format: Format = args.output_format.into();
    let layout = options::layout(format, &args.options).with_context(attempt)?;
    let target = CreateOptions::laid_out(layout, args.size.unwrap_or(0));
    let measured = match (&args.image, args.size) {
        (Some(image), _) => measure(&args.reading.open(image).with_context(attempt)?, &target),
        (None, Some(_)) => measure_empty(&target),
        (None, None) => return Err(Failure::usage("an image or a size is needed")),
    };
    let measured = measured.with_context(attempt)?;
    if args.json {
        json(&measured)?;
    } else {
        let exact = |bytes| format!("{} ({bytes} bytes)", size(bytes));
        properties(&[
            ("required", Some(exact(measured.required))),
            ("fully allocated", Some(exact(measured.fully_allocated))),
        ])?;
    }
    Ok(ExitCode::SUCCESS)
}
