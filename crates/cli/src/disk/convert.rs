//! `vmwright disk convert`

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::ValueEnum;
use vmwright_disk::Disk;
use vmwright_image::chain::{backing_name, list};
use vmwright_image::copy::{Base, ConvertOptions, SourceIdentity, convert};
use vmwright_image::{BackingFile, Format, Image, ParentId};

use super::bar::Bar;
use super::source::Reading;
use super::{FormatName, options, or_force};
use crate::failure::Failure;
use crate::output::{json, line, note, parse_size, size};
use crate::{secret, signals};

/// What `disk convert` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The image to copy
    source: PathBuf,
    /// The image to make
    target: PathBuf,
    /// The format to make
    #[arg(short = 'O', long, value_enum)]
    output_format: FormatName,
    #[command(flatten)]
    how: How,
    /// Copy this internal snapshot, by its id or name, instead of what the disk holds now
    #[arg(short = 'l', long, value_name = "SNAPSHOT")]
    snapshot: Option<String>,
    /// Only store what differs from this image, which the new one is based on, as it is to name it
    #[arg(short = 'B', long, value_name = "BASE")]
    base: Option<PathBuf>,
    /// The format of the base, instead of looking at its first bytes
    #[arg(short = 'F', long, value_enum, value_name = "FORMAT", requires = "base")]
    base_format: Option<FormatName>,
    /// The file of the passphrase for the new image, where that is encrypted; otherwise the terminal is asked
    #[arg(long, value_name = "FILE")]
    target_passphrase_file: Option<PathBuf>,
    #[command(flatten)]
    reading: Reading,
}

/// How an image is copied.
#[derive(clap::Args)]
pub(crate) struct How {
    /// Compress
    #[arg(short, long)]
    compress: bool,
    /// How to compress, of a qcow2 image
    #[arg(long, value_enum, requires = "compress")]
    compression: Option<Compression>,
    /// How hard to compress: 1 to 9 for deflate, 1 to 22 for zstd
    #[arg(long, requires = "compress")]
    level: Option<i32>,
    /// An option of the format, by the name that qemu-img has for it; a wrong one is answered with the list
    #[arg(short, long = "option", value_name = "KEY=VALUE")]
    options: Vec<String>,
    /// How many threads work; as many as there are processors where none is given
    #[arg(short = 'j', long, value_name = "THREADS")]
    threads: Option<usize>,
    /// Read the new image again at the end and compare it with what was read
    #[arg(long)]
    verify: bool,
    /// Keep what was copied if the copy ends early, and go on from there the next time
    #[arg(long)]
    resume: bool,
    /// Copy so many bytes in a second at most, such as 50M
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    rate_limit: Option<u64>,
    /// Replace an image that exists, or overwrite a block device
    #[arg(long)]
    force: bool,
    /// Say what would be made, and make nothing
    #[arg(long)]
    dry_run: bool,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// How a qcow2 image is compressed.
#[derive(Clone, Copy, ValueEnum)]
enum Compression {
    #[value(alias = "zlib")]
    Deflate,
    Zstd,
}

/// Copies the image.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let attempt = || format!("cannot convert {} to {}", args.source.display(), args.target.display());
    let mut wanted = args.how.options(args.output_format.into()).with_context(attempt)?;
    let source = match &args.snapshot {
        Some(snapshot) => args.reading.open_snapshot(&args.source, snapshot),
        None => args.reading.open(&args.source),
    };
    let source = source.with_context(attempt)?;
    wanted.base = args.base.as_ref().map(|base| open_base(args, base)).transpose().with_context(attempt)?;
    if args.how.resume {
        wanted.resume = Some(identity(args).with_context(attempt)?);
    }
    if wanted.layout.is_encrypted() && !args.how.dry_run {
        let what = format!("passphrase for {}", args.target.display());
        let given = args.target_passphrase_file.as_deref();
        wanted.secret = Some(secret::for_new(given, &what).with_context(attempt)?);
    }
    args.how.copy(&source, &args.target, wanted).with_context(attempt)?;
    Ok(ExitCode::SUCCESS)
}

impl How {
    /// The options of a copy to `format`.
    pub(crate) fn options(&self, format: Format) -> anyhow::Result<ConvertOptions> {
        let mut wanted =
            ConvertOptions { layout: options::layout(format, &self.options)?, ..ConvertOptions::new(format) };
        wanted.compress = self.compress;
        wanted.level = self.level;
        wanted.force = self.force;
        wanted.verify = self.verify;
        wanted.rate_limit = self.rate_limit.filter(|rate| *rate > 0);
        wanted.threads = self.threads.unwrap_or(wanted.threads).max(1);
        if let Some(compression) = self.compression {
            if format != Format::Qcow2 {
                return Err(Failure::usage(format!(
                    "how the {format} format is compressed cannot be chosen"
                )));
            }
            let name = if matches!(compression, Compression::Zstd) { "zstd" } else { "zlib" };
            wanted.layout.set("compression_type", name)?;
        }
        Ok(wanted)
    }

    /// Copies `source`, or says what would be made.
    pub(crate) fn copy(
        &self,
        source: &Image,
        target: &Path,
        mut wanted: ConvertOptions,
    ) -> anyhow::Result<()> {
        if self.dry_run {
            let format = wanted.layout.format();
            return line(format!("would write {} ({format}, {})", target.display(), size(source.len())));
        }
        wanted.cancel = Some(signals::flag()?);
        let bar = Bar::new();
        let made = convert(source, target, &wanted, &|done, total| bar.show(done, total));
        bar.end();
        let made = or_force(made)?;
        if made.resumed_from > 0 {
            note(format!("went on where an earlier copy ended, at {}", size(made.resumed_from)));
        }
        if !made.atomic {
            note(format!("{} was written in place, which is not all or nothing", target.display()));
        }
        if self.json { json(&made) } else { Ok(()) }
    }
}

fn open_base(args: &Args, base: &Path) -> anyhow::Result<Base> {
    let image = args.reading.with_format(args.base_format).open(&beside_target(args, base))?;
    let format = Some(image.format().qemu_name().to_owned());
    let parent = ParentId::of(&image)?;
    Ok(Base { name: BackingFile { name: backing_name(base)?, format }, disk: Arc::new(image), parent })
}

/// What is copied: the files of the whole chain, how they are read, which snapshot, and the same of the base.
fn identity(args: &Args) -> anyhow::Result<SourceIdentity> {
    let how = format!("{:?} {:?}", args.reading.opening().choice(), args.snapshot);
    let identity = identity_of(&args.reading, &args.source)?.with(how.as_bytes());
    let Some(base) = &args.base else { return Ok(identity) };
    let base = identity_of(&args.reading.with_format(args.base_format), &beside_target(args, base))?;
    Ok(identity.with(&base.to_bytes()))
}

fn identity_of(reading: &Reading, path: &Path) -> anyhow::Result<SourceIdentity> {
    let opening = reading.opening();
    let links = list(&reading.transaction(), path, opening.choice(), &opening.gate(path)?)?;
    Ok(SourceIdentity::of_files(
        links.iter().flat_map(|link| std::iter::once(&link.path).chain(&link.parts)),
    )?)
}

/// Where a base lies that the target is to name.
fn beside_target(args: &Args, base: &Path) -> PathBuf {
    args.target.parent().unwrap_or(Path::new("")).join(base)
}
