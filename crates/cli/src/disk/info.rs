//! `vmwright disk info`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use vmwright_disk::Access;
use vmwright_image::chain::{ChainLink, list};
use vmwright_image::{
    FormatChoice, FormatInfo, ImageInfo, LuksInfo, Qcow2Info, VmdkExtentInfo, VmdkInfo, describe,
};

use super::source::Reading;
use crate::output::{json, line, properties, size};

/// What `disk info` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The image
    image: PathBuf,
    /// Also describe what lies beneath it, down to the last
    #[arg(long)]
    chain: bool,
    #[command(flatten)]
    reading: Reading,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// One image of a chain.
#[derive(serde::Serialize)]
struct Described {
    filename: PathBuf,
    #[serde(flatten)]
    info: ImageInfo,
}

/// Says what the image is.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let attempt = || format!("cannot read {}", args.image.display());
    let infos = if args.chain { chain(args) } else { single(args).map(|one| vec![one]) };
    let infos = infos.with_context(attempt)?;
    match (args.json, args.chain) {
        (true, true) => json(&infos)?,
        (true, false) => infos.iter().try_for_each(json)?,
        (false, _) => {
            for (index, described) in infos.iter().enumerate() {
                if index > 0 {
                    line("")?;
                }
                print(&described.filename, &described.info)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn single(args: &Args) -> anyhow::Result<Described> {
    // Through a transaction, a change shows that a crash broke off after it became durable.
    let transaction = args.reading.transaction();
    let file = transaction.open(&args.image, Access::Read)?;
    let info = describe(&*file, args.reading.opening().choice())?;
    Ok(Described { filename: args.image.clone(), info })
}

fn chain(args: &Args) -> anyhow::Result<Vec<Described>> {
    let opening = args.reading.opening();
    let (transaction, gate) = (args.reading.transaction(), opening.gate(&args.image)?);
    let links = list(&transaction, &args.image, opening.choice(), &gate)?;
    let describe = |link: ChainLink| {
        let file = transaction.open(&link.path, Access::Read)?;
        let info = describe(&*file, FormatChoice::Exact(link.format))?;
        Ok(Described { filename: link.path, info })
    };
    links.into_iter().map(describe).collect()
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
    match &info.format_specific {
        Some(FormatInfo::Qcow2(qcow2)) => rows.extend(of_qcow2(qcow2)),
        Some(FormatInfo::Vmdk(vmdk)) => rows.extend(of_vmdk(vmdk)),
        Some(FormatInfo::Vpc(vhd)) => rows.extend([
            ("kind", Some(vhd.subformat.into())),
            ("made by", Some(vhd.creator.clone())),
            ("size by", Some(vhd.size_by.into())),
            ("id", Some(vhd.unique_id.clone())),
            ("footer", vhd.footer_lost.then(|| "damaged: its copy is used".into())),
        ]),
        Some(FormatInfo::Vdi(vdi)) => rows.extend([
            ("kind", Some(vdi.subformat.into())),
            ("blocks", Some(format!("{} of {} allocated", vdi.blocks_allocated, vdi.blocks))),
            ("id", Some(vdi.uuid.clone())),
        ]),
        _ => {}
    }
    if let Some(luks) = info.luks() {
        rows.extend(of_luks(luks));
    }
    let snapshots: Vec<_> = info.snapshots.iter().map(|one| format!("{} {}", one.id, one.name)).collect();
    rows.push(("snapshots", (!snapshots.is_empty()).then(|| snapshots.join("\n"))));
    properties(&rows)
}

/// A line of the answer, left out where it has no value.
type Row = (&'static str, Option<String>);

fn of_qcow2(qcow2: &Qcow2Info) -> Vec<Row> {
    let bitmaps: Vec<_> = qcow2.bitmaps.iter().map(|bitmap| bitmap.name.clone()).collect();
    vec![
        ("compat", Some(qcow2.compat.into())),
        ("compression", qcow2.compression_type.map(Into::into)),
        ("refcount bits", Some(qcow2.refcount_bits.to_string())),
        ("lazy refcounts", qcow2.lazy_refcounts.filter(|on| *on).map(|_| "yes".into())),
        ("extended L2", qcow2.extended_l2.filter(|on| *on).map(|_| "yes".into())),
        ("data file", qcow2.data_file.clone()),
        ("corrupt", qcow2.corrupt.filter(|on| *on).map(|_| "yes: repair it before writing".into())),
        ("bitmaps", (!bitmaps.is_empty()).then(|| bitmaps.join(", "))),
    ]
}

fn of_vmdk(vmdk: &VmdkInfo) -> Vec<Row> {
    let extent = |one: &VmdkExtentInfo| {
        let kind = if one.format.is_empty() { String::new() } else { format!(" {}", one.format) };
        format!("{}{kind} {}", size(one.virtual_size), one.filename).trim_end().to_owned()
    };
    let extents: Vec<_> = vmdk.extents.iter().map(extent).collect();
    vec![
        ("kind", Some(vmdk.create_type.clone())),
        ("CID", Some(format!("{:08x}", vmdk.cid))),
        ("parent CID", (vmdk.parent_cid != u32::MAX).then(|| format!("{:08x}", vmdk.parent_cid))),
        ("extents", Some(extents.join("\n"))),
    ]
}

fn of_luks(luks: &LuksInfo) -> Vec<Row> {
    let version = luks.luks2.as_ref().map_or(1, |luks2| luks2.version);
    let used = luks.slots.iter().filter(|slot| slot.active).count();
    let cipher = format!("{}-{}-{}", luks.cipher_alg, luks.cipher_mode, luks.ivgen_alg);
    vec![
        ("LUKS version", Some(version.to_string())),
        ("cipher", Some(cipher)),
        ("key slots", Some(format!("{used} in use"))),
    ]
}
