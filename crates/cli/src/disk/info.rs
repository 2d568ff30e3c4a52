//! `vmwright disk info`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use vmwright_disk::{Access, Sharing, Transaction, TransactionOptions};
use vmwright_image::{FormatInfo, ImageInfo, describe};

use super::{FormatName, choice};
use crate::output::{json, properties, size};

/// What `disk info` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The image
    image: PathBuf,
    /// Its format, instead of looking at its first bytes
    #[arg(short, long, value_enum)]
    format: Option<FormatName>,
    /// Look even though somebody is writing to it; what is shown may be torn
    #[arg(short = 'U', long)]
    force_share: bool,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// Says what the image is.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let info = read(args).with_context(|| format!("cannot read {}", args.image.display()))?;
    if args.json {
        json(&info)?;
    } else {
        print(&args.image, &info)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn read(args: &Args) -> anyhow::Result<ImageInfo> {
    let sharing = if args.force_share { Sharing::Forced } else { Sharing::Locked };
    // Through a transaction, a change shows that a crash broke off after it became durable.
    let transaction = Transaction::begin(TransactionOptions::default().sharing(sharing));
    Ok(describe(&*transaction.open(&args.image, Access::Read)?, choice(args.format))?)
}

fn print(image: &Path, info: &ImageInfo) -> anyhow::Result<()> {
    let exact = |bytes| format!("{} ({bytes} bytes)", size(bytes));
    let mut rows = vec![
        ("image", Some(image.display().to_string())),
        ("format", Some(info.format.to_string())),
        ("virtual size", Some(exact(info.virtual_size))),
        ("on the host", Some(size(info.actual_size))),
        ("cluster size", info.cluster_size.map(size)),
        ("backing file", info.backing_filename.clone()),
        ("backing format", info.backing_filename_format.clone()),
        ("encrypted", info.encrypted.then(|| "yes".into())),
        ("dirty", info.dirty_flag.then(|| "yes: not closed cleanly".into())),
    ];
    if let Some(FormatInfo::Qcow2(qcow2)) = &info.format_specific {
        rows.extend([
            ("compat", Some(qcow2.compat.into())),
            ("compression", qcow2.compression_type.map(Into::into)),
            ("refcount bits", Some(qcow2.refcount_bits.to_string())),
            ("lazy refcounts", qcow2.lazy_refcounts.filter(|on| *on).map(|_| "yes".into())),
            ("extended L2", qcow2.extended_l2.filter(|on| *on).map(|_| "yes".into())),
            ("data file", qcow2.data_file.clone()),
            ("corrupt", qcow2.corrupt.filter(|on| *on).map(|_| "yes: repair it before writing".into())),
        ]);
        let bitmaps: Vec<_> = qcow2.bitmaps.iter().map(|bitmap| bitmap.name.clone()).collect();
        rows.push(("bitmaps", (!bitmaps.is_empty()).then(|| bitmaps.join(", "))));
    }
    let snapshots: Vec<_> = info.snapshots.iter().map(|one| format!("{} {}", one.id, one.name)).collect();
    rows.push(("snapshots", (!snapshots.is_empty()).then(|| snapshots.join("\n"))));
    properties(&rows)
}
