//! `vmwright fs info`

use anyhow::Context;
use vmwright_ext4::{Description, Incident};
use vmwright_guest::fs::Info;

use super::source::{Place, Reading};
use crate::output::{json, properties, size, time};

/// What `fs info` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    place: Place,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reading: Reading,
}

/// Says what the filesystem is.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let attempt = || format!("cannot describe the filesystem on {}", args.place.shown());
    let target = args.reading.open(&args.place).with_context(attempt)?;
    let info = target.info().with_context(attempt)?;
    match args.json {
        true => json(&info),
        false => print(&info),
    }
}

fn print(info: &Info) -> anyhow::Result<()> {
    let known = &info.description;
    let label = String::from_utf8_lossy(&known.label).into_owned();
    properties(&[
        ("type", Some(known.kind.to_owned())),
        ("label", Some(label).filter(|label| !label.is_empty())),
        ("uuid", Some(known.uuid.clone())),
        ("problem", info.problem.as_ref().map(|problem| format!("it cannot be opened: {problem}"))),
        ("state", Some(state(known))),
        ("first error", known.state.first_error.as_ref().map(incident)),
        ("last error", known.state.last_error.as_ref().map(incident)),
        ("size", Some(usage(info))),
        ("minimum", info.minimum.map(|bytes| format!("{} ({bytes} bytes)", size(bytes)))),
        ("inodes", Some(inodes(known))),
        ("features", Some(wrapped(&known.features))),
        ("layout", Some(layout(known))),
        ("journal", journal(known)),
        ("sealed by", sealed(known)),
        ("names", Some(names(known))),
        ("quotas", quotas(known)),
        ("mounted with", Some(mounting(known)).filter(|text| !text.is_empty())),
        ("on errors", Some(known.defaults.on_errors.to_owned())),
        ("created", Some(format!("{} by {}", time(known.history.created), known.internals.made_by))),
        ("mounted", mounted(known)),
        ("written", known.history.written.map(|at| written(known, at))),
        ("checked", checked(known)),
    ])
}

fn state(known: &Description) -> String {
    let state = &known.state;
    let mut words = vec![if state.clean { "clean" } else { "not unmounted cleanly" }.to_owned()];
    if state.errors {
        words.push("a kernel has met damage".to_owned());
    }
    if state.error_count > 0 {
        words.push(format!("damage was met {} times", state.error_count));
    }
    if state.needs_recovery {
        words.push("the journal holds changes".to_owned());
    }
    if state.orphans {
        words.push("files without names are to be removed".to_owned());
    }
    words.join("; ")
}

fn incident(incident: &Incident) -> String {
    format!("{} at {}, inode {}, block {}", time(incident.time), incident.at, incident.inode, incident.block)
}

fn usage(info: &Info) -> String {
    let usage = &info.description.usage;
    let room = info.volume.size;
    let rest = match room.checked_sub(usage.size) {
        Some(rest) if rest >= 1 << 20 => format!("; {} of its partition are beyond it", size(rest)),
        _ => String::new(),
    };
    format!(
        "{} ({} bytes): {} free, {} reserved for user {}, {} for itself{rest}",
        size(usage.size),
        usage.size,
        size(usage.free),
        size(usage.reserved),
        usage.reserved_for.0,
        size(usage.overhead)
    )
}

fn inodes(known: &Description) -> String {
    let (usage, geometry) = (&known.usage, &known.geometry);
    format!("{} of {} free, {} bytes each", usage.free_inodes, usage.inodes, geometry.inode_size)
}

/// Words in lines of some length.
fn wrapped(words: &[&str]) -> String {
    let mut lines = vec![String::new()];
    for word in words {
        let full = lines.last().is_some_and(|line| line.len() + word.len() > 80);
        if full {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            *line += if line.is_empty() { "" } else { " " };
            *line += word;
        }
    }
    lines.join("\n")
}

fn layout(known: &Description) -> String {
    let geometry = &known.geometry;
    let mut text = format!(
        "{} blocks of {}, {} groups of {} blocks and {} inodes",
        geometry.blocks,
        size(geometry.block_size.into()),
        geometry.groups,
        geometry.blocks_per_group,
        geometry.inodes_per_group
    );
    if geometry.cluster_size > geometry.block_size.into() {
        text += &format!(", clusters of {}", size(geometry.cluster_size));
    }
    if geometry.flex_groups > 1 {
        text += &format!(", tables of {} groups together", geometry.flex_groups);
    }
    if geometry.stride > 0 || geometry.stripe_width > 0 {
        text += &format!(", stride {}, stripe {}", geometry.stride, geometry.stripe_width);
    }
    text
}

fn journal(known: &Description) -> Option<String> {
    let journal = known.journal.as_ref()?;
    Some(match (&journal.device, journal.size) {
        (Some(device), _) => format!("on the device with the UUID {device}"),
        (None, Some(bytes)) => format!("{} in inode {}", size(bytes), journal.inode),
        (None, None) => format!("in inode {}", journal.inode),
    })
}

fn sealed(known: &Description) -> Option<String> {
    let kind = known.internals.checksum?;
    Some(match known.internals.checksum_seed {
        Some(seed) => format!("{kind}, seed {seed:#010x}"),
        None => format!("{kind}, seeded by the UUID"),
    })
}

fn names(known: &Description) -> String {
    let inner = &known.internals;
    let encoding =
        inner.encoding.map_or(String::new(), |encoding| format!(", {encoding}, case may be folded"));
    format!("hashed with {}, seed {}{encoding}", inner.name_hash, inner.name_hash_seed)
}

fn quotas(known: &Description) -> Option<String> {
    let kinds = ["users", "groups", "projects"].into_iter().zip(known.internals.quota_inodes);
    let kept: Vec<_> = kinds.filter(|(_, inode)| *inode != 0).map(|(kind, _)| kind).collect();
    (!kept.is_empty()).then(|| format!("of {}", kept.join(", ")))
}

fn mounting(known: &Description) -> String {
    let more = &known.defaults.more_mount_options;
    let options = known.defaults.mount_options.iter().copied();
    options.chain(Some(more.as_str()).filter(|more| !more.is_empty())).collect::<Vec<_>>().join(",")
}

fn mounted(known: &Description) -> Option<String> {
    let history = &known.history;
    let at = history.mounted?;
    let on = history.mounted_on.as_ref().map_or(String::new(), |path| format!(" on {path}"));
    Some(format!("{}{on}, {} times since the last check", time(at), history.mounts))
}

fn written(known: &Description, at: i64) -> String {
    let total = known.history.kibibytes_written;
    format!("{}, {} in its life", time(at), size(total.saturating_mul(1024)))
}

fn checked(known: &Description) -> Option<String> {
    let history = &known.history;
    let mounts = history.mounts_until_check.map(|count| format!("due after {count} mounts"));
    let seconds = history.seconds_until_check.map(|seconds| format!("due after {} days", seconds / 86_400));
    let words: Vec<_> = history.checked.map(time).into_iter().chain(mounts).chain(seconds).collect();
    (!words.is_empty()).then(|| words.join(", "))
}
