//! `vmwright fs tune`

use anyhow::Context;
use serde::Serialize;
use uuid::Uuid;
use vmwright_ext4::tune::{Changes, HashAlgorithm, OnErrors, Reserved};
use vmwright_guest::fs::{Purpose, Target};

use super::source::{Editing, Place};
use super::uuid::New;
use crate::failure::Failure;
use crate::output::{json, line};

/// What `fs tune` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    place: Place,
    /// Features to set, or after ^ to clear: ^has_journal,metadata_csum
    #[arg(short = 'O', long, value_delimiter = ',', value_name = "NAME", allow_hyphen_values = true)]
    features: Vec<String>,
    /// What only root may take: a number of blocks, or a part of all such as 1%
    #[arg(short = 'r', long, value_parser = reserved)]
    reserved: Option<Reserved>,
    /// The user who may take it too
    #[arg(long, value_name = "UID")]
    reserved_uid: Option<u16>,
    /// The group that may take it too
    #[arg(long, value_name = "GID")]
    reserved_gid: Option<u16>,
    /// Default mount options to set, or after ^ to clear: acl,^user_xattr
    #[arg(short = 'o', long, value_delimiter = ',', value_name = "NAME")]
    mount_options: Vec<String>,
    /// What a kernel does where it meets damage
    #[arg(short = 'e', long, value_enum)]
    on_errors: Option<Errors>,
    /// After how many mounts a check is due; 0 for never
    #[arg(short = 'c', long, value_name = "N")]
    max_mounts: Option<u16>,
    /// After how many days a check is due; 0 for never
    #[arg(short = 'i', long, value_name = "DAYS")]
    check_interval: Option<u32>,
    /// How the names of directories that will be indexed are hashed
    #[arg(long, value_enum)]
    name_hash: Option<Hash>,
    /// The seed of those hashes
    #[arg(long, value_name = "UUID")]
    hash_seed: Option<Uuid>,
    /// The blocks on one disk of an array before the next one
    #[arg(long, value_name = "BLOCKS")]
    stride: Option<u16>,
    /// The blocks on all disks of an array
    #[arg(long, value_name = "BLOCKS")]
    stripe_width: Option<u32>,
    /// How many blocks a journal has that -O has_journal adds
    #[arg(short = 'J', long, value_name = "BLOCKS")]
    journal_blocks: Option<u32>,
    /// The size of inodes in bytes, larger than the present one
    #[arg(short = 'I', long, value_name = "BYTES")]
    inode_size: Option<u16>,
    /// The label
    #[arg(short = 'L', long)]
    label: Option<String>,
    /// The UUID, or how it is made: random, time, clear
    #[arg(short = 'U', long, value_parser = New::parse)]
    uuid: Option<New>,
    /// More default mount options, in the kernel's words, such as nodelalloc
    #[arg(long, value_name = "TEXT")]
    extended_mount_options: Option<String>,
    /// How many mounts there were since the last check
    #[arg(short = 'C', long, value_name = "N")]
    mount_count: Option<u16>,
    /// When it was checked last, in seconds since 1970
    #[arg(short = 'T', long, value_name = "SECONDS")]
    last_checked: Option<i64>,
    /// Where it was mounted last
    #[arg(short = 'M', long, value_name = "FOLDER")]
    last_mounted: Option<String>,
    /// Clear the mark of multiple mount protection that somebody has it open; only where nobody has any more
    #[arg(long)]
    clear_mmp: bool,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    editing: Editing,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Errors {
    Continue,
    RemountRo,
    Panic,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
enum Hash {
    Legacy,
    #[value(name = "half_md4")]
    HalfMd4,
    Tea,
}

fn reserved(text: &str) -> Result<Reserved, String> {
    let parsed = match text.strip_suffix('%') {
        Some(percent) => percent.parse().ok().map(Reserved::Percent),
        None => text.parse().ok().map(Reserved::Blocks),
    };
    parsed.ok_or_else(|| "it is neither a number of blocks nor a percentage such as 1%".to_owned())
}

#[derive(Serialize)]
struct Answer {
    features: Vec<&'static str>,
}

/// Changes the filesystem's settings.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let attempt = || format!("cannot tune the filesystem on {}", args.place.shown());
    let changes = changes(args).with_context(attempt)?;
    if changes == Changes::default() {
        return Err(Failure::usage("nothing is asked for; --help lists what can be changed"))
            .with_context(attempt);
    }
    let tune = |target: &Target| Ok(target.tune(&changes)?);
    let purpose = (Purpose::Filesystem, args.clear_mmp);
    let features = args.editing.edit_guarded(&args.place, purpose, args.json, tune);
    let features = features.with_context(attempt)?;
    match args.json {
        true => json(&Answer { features }),
        false if args.features.is_empty() => Ok(()),
        false => line(features.join(" ")),
    }
}

fn changes(args: &Args) -> anyhow::Result<Changes> {
    const DAY: u32 = 86_400;
    let seconds = args.check_interval.map(|days| days.checked_mul(DAY));
    let check_interval = match seconds {
        Some(None) => return Err(Failure::usage("the interval of checks is too long")),
        seconds => seconds.flatten(),
    };
    Ok(Changes {
        features: args.features.clone(),
        reserved: args.reserved,
        reserved_uid: args.reserved_uid,
        reserved_gid: args.reserved_gid,
        mount_options: args.mount_options.clone(),
        on_errors: args.on_errors.map(|errors| match errors {
            Errors::Continue => OnErrors::Continue,
            Errors::RemountRo => OnErrors::ReadOnly,
            Errors::Panic => OnErrors::Panic,
        }),
        max_mount_count: args.max_mounts,
        check_interval,
        hash_algorithm: args.name_hash.map(|hash| match hash {
            Hash::Legacy => HashAlgorithm::Legacy,
            Hash::HalfMd4 => HashAlgorithm::HalfMd4,
            Hash::Tea => HashAlgorithm::Tea,
        }),
        hash_seed: args.hash_seed,
        stride: args.stride,
        stripe_width: args.stripe_width,
        journal_blocks: args.journal_blocks,
        inode_size: args.inode_size,
        label: args.label.clone().map(String::into_bytes),
        uuid: args.uuid.map(New::make).transpose()?,
        extended_mount_options: args.extended_mount_options.clone().map(String::into_bytes),
        mount_count: args.mount_count,
        last_checked: args.last_checked,
        last_mounted: args.last_mounted.clone().map(String::into_bytes),
        clear_mmp: args.clear_mmp,
        now: None,
    })
}
