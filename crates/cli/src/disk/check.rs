//! `vmwright disk check`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::ValueEnum;
use vmwright_image::{CheckReport, Repair};

use super::source::Editing;
use crate::output::{json, line, note};

/// What `disk check` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The image
    image: PathBuf,
    /// Repair what was found: only give wasted space back, or everything that can be repaired
    #[arg(long, value_enum)]
    repair: Option<What>,
    #[command(flatten)]
    editing: Editing,
    /// Answer in JSON, as `qemu-img check` does
    #[arg(long)]
    json: bool,
}

/// What is repaired.
#[derive(Clone, Copy, ValueEnum)]
enum What {
    Leaks,
    All,
}

/// Checks the image's own tables; exit code 4 where they are damaged.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let attempt = || format!("cannot check {}", args.image.display());
    let repair = match args.repair {
        None => Repair::Nothing,
        Some(What::Leaks) => Repair::Leaks,
        Some(What::All) => Repair::All,
    };
    let report = args.editing.check(&args.image, repair);
    let report = report.with_context(attempt)?;
    if args.json {
        json(&report)?;
    } else {
        print(&report)?;
    }
    Ok(if report.is_safe() { ExitCode::SUCCESS } else { ExitCode::from(4) })
}

fn print(report: &CheckReport) -> anyhow::Result<()> {
    report.findings.iter().for_each(note);
    for (count, what) in [
        (report.corruptions_fixed, "damages were repaired"),
        (report.leaks_fixed, "leaked clusters were given back"),
        (
            report.corruptions,
            "damages are left: writing to the image could destroy data; --repair all repairs it",
        ),
        (report.leaks, "leaked clusters waste space, and do no other harm; --repair leaks gives them back"),
    ] {
        if count > 0 {
            line(format!("{count} {what}"))?;
        }
    }
    if report.is_clean() {
        line("nothing is wrong with the image")?;
    }
    if let (Some(total), Some(allocated)) = (report.total_clusters, report.allocated_clusters) {
        let percent = |part: u64| part as f64 * 100.0 / total.max(1) as f64;
        line(format!(
            "{allocated} of {total} clusters are allocated ({:.2} %), {} compressed, {} out of order",
            percent(allocated),
            report.compressed_clusters.unwrap_or(0),
            report.fragmented_clusters.unwrap_or(0),
        ))?;
    }
    Ok(())
}
