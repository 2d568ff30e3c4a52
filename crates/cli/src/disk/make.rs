//! `vmwright disk make`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::ValueEnum;
use serde::Serialize;
use vmwright_disk::Disk;
use vmwright_image::{CreateOptions, create_filled};
use vmwright_rootfs::{DiskOptions, build, fitted};
use vmwright_volume::Scheme;

use super::{FormatName, options, or_force};
use crate::failure::Failure;
use crate::filling::{Filling, Size, stamp};
use crate::fs::make::Making;
use crate::output::{json, line, size};

/// What `disk make` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The image to make
    image: PathBuf,
    #[command(flatten)]
    filling: Filling,
    /// The format of the image
    #[arg(short = 'O', long, value_enum, default_value = "qcow2")]
    output_format: FormatName,
    /// How large the disk is: auto for as small as its content allows, or a size such as 20G
    #[arg(long, default_value = "auto", value_parser = Size::parse)]
    size: Size,
    /// The partition table
    #[arg(long, value_enum, default_value = "gpt")]
    partition: Table,
    #[command(flatten)]
    making: Making,
    /// An option of the image format, by the name that qemu-img has for it; a wrong one is answered with the list
    #[arg(long = "image-option", value_name = "KEY=VALUE")]
    image_options: Vec<String>,
    /// Replace an image that exists
    #[arg(long)]
    force: bool,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Table {
    Gpt,
    Mbr,
    None,
}

#[derive(Serialize)]
struct Answer {
    image: PathBuf,
    format: String,
    size: u64,
    filesystem: &'static str,
    uuid: String,
    volume: Volume,
    files: u64,
    directories: u64,
    hard_links: u64,
    symlinks: u64,
    specials: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct Volume {
    start: u64,
    length: u64,
}

/// Makes the disk.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let attempt = || format!("cannot make {}", args.image.display());
    let mut sources = args.filling.sources(&args.image).with_context(attempt)?;
    if sources.is_empty() {
        return Err(Failure::usage("--from says what the disk is made of")).with_context(attempt);
    }
    let mut filesystem = args.making.options(None).with_context(attempt)?;
    filesystem.now = stamp()?;
    filesystem.assume_zeroed = true;
    let mut wanted = DiskOptions {
        scheme: match args.partition {
            Table::Gpt => Some(Scheme::Gpt),
            Table::Mbr => Some(Scheme::Mbr),
            Table::None => None,
        },
        // One UUID that is given makes all of them the same each time.
        disk_id: args.making.derived(filesystem.uuid, 1)?,
        partition_id: args.making.derived(filesystem.uuid, 2)?,
        filesystem,
        populate: args.filling.options().with_context(attempt)?,
    };
    let bytes = match args.size {
        Size::Bytes(bytes) => bytes,
        Size::Auto => {
            let fits = fitted(&mut sources, &wanted.filesystem, args.filling.slack).with_context(attempt)?;
            let len = wanted.disk_len(fits.length.unwrap_or(0));
            wanted.filesystem = fits;
            len
        }
    };
    wanted.filesystem.length = None;
    let layout = options::layout(args.output_format.into(), &args.image_options).with_context(attempt)?;
    let create = CreateOptions::laid_out(layout, bytes);
    let mut built = None;
    let made = create_filled::<anyhow::Error>(&args.image, &create, args.force, |image| {
        let disk: std::sync::Arc<dyn Disk> = image;
        built = Some(build(&disk, &mut sources, &wanted)?);
        Ok(())
    });
    or_force(made).with_context(attempt)?;
    let Some(built) = built else { return Ok(ExitCode::FAILURE) };
    let answer = Answer {
        image: args.image.clone(),
        format: create.layout.format().to_string(),
        size: bytes,
        filesystem: built.made.generation,
        uuid: built.made.uuid.to_string(),
        volume: Volume { start: built.volume.start, length: built.volume.end - built.volume.start },
        files: built.populated.files,
        directories: built.populated.directories,
        hard_links: built.populated.hard_links,
        symlinks: built.populated.symlinks,
        specials: built.populated.specials,
        bytes: built.populated.bytes,
    };
    if args.json {
        json(&answer)?;
        return Ok(ExitCode::SUCCESS);
    }
    line(format!(
        "{} was made: {} of {}, {} in {} with files: {}, directories: {}, links: {} ({})",
        args.image.display(),
        answer.format,
        size(bytes),
        answer.filesystem,
        size(answer.volume.length),
        answer.files,
        answer.directories,
        answer.symlinks + answer.hard_links,
        size(answer.bytes)
    ))?;
    Ok(ExitCode::SUCCESS)
}
