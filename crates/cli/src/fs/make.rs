//! `vmwright fs make`

use anyhow::Context;
use serde::Serialize;
use vmwright_ext4::make::{Generation, Made, MakeOptions};
use vmwright_guest::fs::{Purpose, Target};
use vmwright_image::CreateOptions;

use super::check::Kind;
use super::source::{Editing, Place};
use super::uuid::New;
use crate::disk::{FormatName, options, or_force};
use crate::failure::Failure;
use crate::output::{json, line, parse_size, size};

/// What `fs make` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    place: Place,
    /// Which filesystem
    #[arg(short = 't', long = "type", value_enum, default_value = "ext4")]
    kind: Kind,
    /// Its label
    #[arg(short = 'L', long)]
    label: Option<String>,
    /// Its UUID, or how one is made: random, time
    #[arg(long, default_value = "random", value_parser = New::parse)]
    uuid: New,
    /// The size of a block: 1K to 64K
    #[arg(short, long, value_parser = parse_size)]
    block_size: Option<u64>,
    /// Any other option of mke2fs, such as features=^has_journal, inode_ratio=65536; a wrong one is answered with the list
    #[arg(short, long = "option", value_name = "KEY=VALUE")]
    options: Vec<String>,
    /// How long the new filesystem is; where there is no image, one of this size is made
    #[arg(long, value_parser = parse_size)]
    size: Option<u64>,
    /// The format of an image that is made
    #[arg(short = 'O', long, value_enum, default_value = "raw")]
    output_format: FormatName,
    /// Make it even though something is there, which is lost
    #[arg(long)]
    replace: bool,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    editing: Editing,
}

#[derive(Serialize)]
struct Answer {
    #[serde(rename = "type")]
    kind: &'static str,
    uuid: String,
    size: u64,
    free: u64,
    block_size: u32,
    blocks: u64,
    groups: u32,
    inodes: u32,
    inode_size: u16,
    journal_blocks: Option<u64>,
    features: Vec<&'static str>,
}

/// Makes the filesystem.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let attempt = || format!("cannot make a filesystem on {}", args.place.shown());
    let mut wishes = wishes(args).with_context(attempt)?;
    let fresh = !args.place.image.exists();
    if fresh {
        let bytes = args.size.ok_or_else(|| Failure::usage("there is no such image: --size makes one"));
        let bytes = bytes.with_context(attempt)?;
        if args.place.part.is_some() {
            return Err(Failure::usage("a new image has no partitions")).with_context(attempt);
        }
        if args.editing.is_dry_run() {
            return line(format!("would create {} ({})", args.place.image.display(), size(bytes)));
        }
        let layout = options::layout(args.output_format.into(), &[]).with_context(attempt)?;
        let mut wanted = CreateOptions::laid_out(layout, bytes);
        if wanted.layout.is_encrypted() {
            let secret = args.editing.opening().new_secret(&args.place.image);
            wanted.secret = Some(secret.with_context(attempt)?);
        }
        or_force(vmwright_image::create(&args.place.image, &wanted, false)).with_context(attempt)?;
        (wishes.assume_zeroed, wishes.length) = (true, None);
    }
    let made = make(args, wishes);
    if made.is_err() && fresh {
        // What is there is no more than what was made just now.
        std::fs::remove_file(&args.place.image).with_context(attempt)?;
    }
    print(made.with_context(attempt)?, args)
}

fn make(args: &Args, mut options: MakeOptions) -> anyhow::Result<Made> {
    args.editing.edit(&args.place, Purpose::Space, args.json, |target: &Target| {
        let there = target.volume().content.as_ref().filter(|_| !args.replace);
        if let Some(content) = there {
            let volume = target.volume();
            let place = if volume.partition.is_some() { volume.device.as_str() } else { "the disk" };
            return Err(Failure::refused(format!(
                "{place} holds {} already, which would be lost: --replace makes it anyway",
                content.kind
            )));
        }
        options.now = target.now();
        Ok(target.make_ext(&options)?)
    })
}

fn wishes(args: &Args) -> anyhow::Result<MakeOptions> {
    let mut options = MakeOptions {
        generation: match args.kind {
            Kind::Ext2 => Generation::Ext2,
            Kind::Ext3 => Generation::Ext3,
            Kind::Ext4 => Generation::Ext4,
        },
        label: args.label.clone().unwrap_or_default().into_bytes(),
        uuid: args.uuid.make()?,
        hash_seed: New::Random.make()?,
        length: args.size,
        ..MakeOptions::default()
    };
    if let Some(bytes) = args.block_size {
        options.block_size =
            Some(u32::try_from(bytes).map_err(|_| Failure::usage("the block size is too large"))?);
    }
    for option in &args.options {
        let Some((key, value)) = option.split_once('=') else {
            return Err(Failure::usage(format!("the option {option:?} is not of the form key=value")));
        };
        options.set(key, value).map_err(|error| {
            let known: Vec<String> =
                MakeOptions::keys().map(|(key, what): (&str, &str)| format!("  {key}: {what}")).collect();
            Failure::usage(format!("{error}; the options are:\n{}", known.join("\n")))
        })?;
    }
    Ok(options)
}

fn print(made: Made, args: &Args) -> anyhow::Result<()> {
    let bytes = |blocks: u64| blocks.saturating_mul(made.block_size.into());
    let answer = Answer {
        kind: made.generation,
        uuid: made.uuid.to_string(),
        size: bytes(made.blocks),
        free: bytes(made.free_blocks),
        block_size: made.block_size,
        blocks: made.blocks,
        groups: made.groups,
        inodes: made.inodes,
        inode_size: made.inode_size,
        journal_blocks: made.journal_blocks,
        features: made.features.clone(),
    };
    if args.json {
        return json(&answer);
    }
    let journal = made
        .journal_blocks
        .map_or("no journal".to_owned(), |blocks| format!("a journal of {}", size(bytes(blocks))));
    let verb = if args.editing.is_dry_run() { "would be made" } else { "was made" };
    line(format!(
        "{} of {} {verb}: {} blocks of {}, {} inodes, {journal}, {} free",
        made.generation,
        size(answer.size),
        made.blocks,
        size(made.block_size.into()),
        made.inodes,
        size(answer.free)
    ))?;
    line(format!("UUID {}", made.uuid))
}
