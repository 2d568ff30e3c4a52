//! `vmwright disk convert`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use vmwright_disk::{Disk, Sharing, Transaction, TransactionOptions};
use vmwright_image::Format;
use vmwright_image::chain::{ChainOptions, open_in};
use vmwright_image::copy::{ConvertOptions, convert};

use super::bar::Bar;
use super::{FormatName, choice, options, or_force};
use crate::gate::Backing;
use crate::output::{line, size};

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
    /// The format of the source, instead of looking at its first bytes
    #[arg(short, long, value_enum)]
    format: Option<FormatName>,
    /// Compress
    #[arg(short, long)]
    compress: bool,
    /// An option of the format: cluster_size, compat, refcount_bits, lazy_refcounts, preallocation
    #[arg(short, long = "option", value_name = "KEY=VALUE")]
    options: Vec<String>,
    /// How many threads work
    #[arg(short = 'j', long, value_name = "THREADS")]
    threads: Option<usize>,
    /// Replace an image that exists
    #[arg(long)]
    force: bool,
    /// Read even though somebody is writing to the source; what is read may be torn
    #[arg(short = 'U', long, help_heading = "Opening the disk")]
    force_share: bool,
    #[command(flatten)]
    backing: Backing,
    /// Say what would be made, and make nothing
    #[arg(long)]
    dry_run: bool,
}

/// Copies the image.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let attempt = || format!("cannot convert {} to {}", args.source.display(), args.target.display());
    let format: Format = args.output_format.into();
    let mut wanted = ConvertOptions::new(format);
    wanted.compress = args.compress;
    wanted.force = args.force;
    wanted.threads = args.threads.unwrap_or(wanted.threads).max(1);
    for option in &args.options {
        options::apply(&mut wanted.layout, option).with_context(attempt)?;
    }
    let source = open(args).with_context(attempt)?;
    if args.dry_run {
        line(format!("would write {} ({format}, {})", args.target.display(), size(source.len())))?;
        return Ok(ExitCode::SUCCESS);
    }
    let bar = Bar::new();
    let made = convert(&*source, &args.target, &wanted, &|done, total| bar.show(done, total));
    or_force(made).with_context(attempt)?;
    bar.end();
    Ok(ExitCode::SUCCESS)
}

/// Opens the source for reading, with a change showing that a crash broke off after it became durable.
fn open(args: &Args) -> anyhow::Result<Box<dyn Disk>> {
    let sharing = if args.force_share { Sharing::Forced } else { Sharing::Locked };
    let transaction = Transaction::begin(TransactionOptions::default().sharing(sharing));
    let how = ChainOptions::read_only();
    let gate = args.backing.gate(&args.source, args.format.is_some())?;
    Ok(Box::new(open_in(&transaction, &args.source, choice(args.format), &gate, how)?))
}
