//! The table in the documentation.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::Result;

use super::Row;
use super::timing::ms;
use crate::workspace::root;

pub(super) fn print(row: &Row) {
    println!("{}", line(row));
}

fn line(row: &Row) -> String {
    let ratio = row.ratio.map_or_else(String::new, |ratio| match ratio {
        ratio if ratio < 0.01 => format!("1/{:.0}", 1.0 / ratio),
        ratio => format!("{ratio:.2}"),
    });
    let met = if row.met { "yes" } else { "**no**" };
    format!("| {} | {} | {} | {ratio} | {} | {met} |", row.job, row.ours, row.peer, row.target)
}

/// Writes the page.
pub(super) fn write(page: &Path, rows: &[Row], fsync: &Duration) -> Result<()> {
    let mut text = String::from(
        "# Benchmarks\n\n\
         Measured by `cargo xtask bench` (or `make bench`). Times are of whole processes, medians of several runs; a \
         ratio is the median of pairs run in turn, ours over the peer's. Edits are durable on both sides.\n\n",
    );
    writeln!(text, "- machine: {}", machine())?;
    writeln!(text, "- a durable 4 KiB write (`write` + `fdatasync`) takes {} here (median)", ms(*fsync))?;
    writeln!(text, "- peers: {}", peers())?;
    writeln!(text, "- date: {}\n", date())?;
    text += "| job | vmwright | peer | ratio | target | met |\n|---|---|---|---|---|---|\n";
    for row in rows {
        writeln!(text, "{}", line(row))?;
    }
    fs::write(root().join(page), text)?;
    Ok(())
}

fn machine() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown processor", |(_, model)| model);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = memory.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{cores} cores of {model}, {} GiB, Linux {}", kib >> 20, kernel.trim())
}

fn peers() -> String {
    let versions = [("qemu-system-x86_64", "--version"), ("debugfs", "-V"), ("guestfish", "--version")];
    let known = versions.iter().filter_map(|(program, flag)| {
        let output = Command::new(program).arg(flag).output().ok()?;
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        let first = text.lines().next()?.to_owned();
        Some(first)
    });
    known.collect::<Vec<_>>().join("; ")
}

fn date() -> String {
    let days = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs() / 86_400);
    let (mut year, mut day) = (1970, days);
    loop {
        let length = if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) { 366 } else { 365 };
        if day < length {
            break;
        }
        day -= length;
        year += 1;
    }
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let months = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while day >= months[month] {
        day -= months[month];
        month += 1;
    }
    format!("{year}-{:02}-{:02}", month + 1, day + 1)
}
