//! What is measured of the disk engine.

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use super::timing::{ms, pair, peak_memory, repeat, time};
use super::{Bench, Row};
use crate::workspace::run as run_command;

/// How many runs a quick measurement has.
const RUNS: usize = 21;

/// One file out of a 4 GiB qcow2, against debugfs on the bare partition and guestfish on the qcow2.
pub(super) fn read_one_file(bench: &Bench) -> Result<Vec<Row>> {
    let partition = bare_root_partition(bench)?;
    let disk = text(&bench.disk)?;
    let ours = || time(&mut bench.vmwright(["guest", "cat", disk, "/etc/debian_version"]));
    let peer = || time(Command::new("debugfs").args(["-R", "cat /etc/debian_version"]).arg(&partition));
    let pair = pair(RUNS, ours, peer)?;
    let mut rows = vec![Row {
        job: "open a 4 GiB qcow2 and read one file; peer: debugfs on the bare partition",
        ours: ms(pair.ours),
        peer: ms(pair.peer),
        ratio: Some(pair.ratio),
        target: "≤ 1.0",
        met: pair.ratio <= 1.0,
    }];
    rows.extend(against_guestfish(disk, pair.ours)?);
    Ok(rows)
}

fn against_guestfish(disk: &str, ours: Duration) -> Result<Option<Row>> {
    if Command::new("guestfish").arg("--version").output().is_err() {
        println!("guestfish is not installed (package libguestfs-tools): not compared");
        return Ok(None);
    }
    let mut guestfish = Command::new("guestfish");
    guestfish.args(["--ro", "-a", disk, "-i", "cat", "/etc/debian_version"]);
    guestfish.env("LIBGUESTFS_BACKEND", "direct").env("LIBGUESTFS_BACKEND_SETTINGS", "force_tcg");
    let peer = time(&mut guestfish)?;
    let ratio = ours.as_secs_f64() / peer.as_secs_f64();
    Ok(Some(Row {
        job: "the same; peer: `guestfish --ro -i cat` (TCG, one run, its appliance cached)",
        ours: ms(ours),
        peer: ms(peer),
        ratio: Some(ratio),
        target: "≤ 1/5000",
        met: ratio <= 1.0 / 5000.0,
    }))
}

/// The whole inspection of a Debian.
pub(super) fn inspect(bench: &Bench) -> Result<Vec<Row>> {
    let disk = text(&bench.disk)?;
    let mut command = bench.vmwright(["guest", "inspect", disk, "--json"]);
    let median = repeat(RUNS, || time(&mut command))?;
    let memory = peak_memory(&command)?;
    Ok(vec![
        Row {
            job: "inspect a Debian, all of it",
            ours: ms(median),
            peer: String::new(),
            ratio: None,
            target: "< 30 ms",
            met: median < Duration::from_millis(30),
        },
        Row {
            job: "its peak memory",
            ours: format!("{:.1} MiB", memory as f64 / f64::from(1 << 20)),
            peer: String::new(),
            ratio: None,
            target: "< 16 MB",
            met: memory < 16_000_000,
        },
    ])
}

/// Three edits, each a process and a transaction of its own.
pub(super) fn three_edits(bench: &Bench) -> Result<Vec<Row>> {
    let disk = bench.copy_of_disk("edits.qcow2")?;
    let disk = text(&disk)?;
    let mut counter = 0;
    let median = repeat(RUNS, || {
        counter += 1;
        let value = format!("host{counter}");
        let mut sum = Duration::ZERO;
        for path in ["/etc/hostname", "/etc/motd", "/etc/issue"] {
            sum += time(&mut bench.vmwright(["guest", "write", disk, path, "--text", &value]))?;
        }
        Ok(sum)
    })?;
    let allowed = Duration::from_millis(60) + 15 * fsync_latency(&bench.work)?;
    Ok(vec![Row {
        job: "three edits, each its own process and durable transaction",
        ours: ms(median),
        peer: String::new(),
        ratio: None,
        target: "< 60 ms and 15 fsyncs",
        met: median < allowed,
    }])
}

/// A thousand files into a guest, in one durable transaction: empty ones, and ones with a line in each.
pub(super) fn thousand_files(bench: &Bench) -> Result<Vec<Row>> {
    let empty = "create 1,000 empty files in one durable transaction";
    let filled = "create 1,000 files with a line in each, read from 1,000 files here";
    Ok(vec![thousand(bench, empty, false)?, thousand(bench, filled, true)?])
}

fn thousand(bench: &Bench, job: &'static str, filled: bool) -> Result<Row> {
    let folder = bench.work.join(format!("files-{filled}"));
    fs::create_dir(&folder)?;
    for number in 0..1000 {
        let content = if filled { format!("content {number}\n") } else { String::new() };
        fs::write(folder.join(format!("file-{number:04}")), content)?;
    }
    let source = bench.copy_of_disk(&format!("files-{filled}.qcow2"))?;
    let (folder, disk) = (text(&folder)?, text(&source)?);
    let mut round = 0;
    let median = repeat(9, || {
        round += 1;
        time(&mut bench.vmwright(["guest", "cp", folder, &format!("{disk}:/srv/round-{round}")]))
    })?;
    let met = median < Duration::from_millis(40);
    Ok(Row { job, ours: ms(median), peer: String::new(), ratio: None, target: "< 40 ms", met })
}

/// How long a durable write of 4 KiB takes in a folder, as the median of many.
pub(super) fn fsync_latency(folder: &Path) -> Result<Duration> {
    let path = folder.join("fsync-probe");
    let mut file = fs::File::create(&path)?;
    file.write_all(&[0; 1 << 20])?;
    file.sync_all()?;
    let mut round = 0;
    let latency = repeat(51, || {
        round += 1;
        let start = Instant::now();
        file.write_all_at(&[round as u8; 4096], (round % 256) * 4096)?;
        file.sync_data()?;
        Ok(start.elapsed())
    });
    fs::remove_file(path)?;
    latency
}

/// The Debian's root partition as a file of its own.
pub(super) fn bare_root_partition(bench: &Bench) -> Result<PathBuf> {
    let raw = bench.work.join("whole.raw");
    let partition = bench.work.join("root.raw");
    run_command(Command::new("qemu-img").args(["convert", "-O", "raw"]).arg(&bench.disk).arg(&raw))?;
    let table = Command::new("sfdisk").arg("--json").arg(&raw).output()?;
    let table: Value = serde_json::from_slice(&table.stdout).context("sfdisk --json")?;
    let root = &table["partitiontable"]["partitions"][1];
    let field = |name: &str| root[name].as_u64().with_context(|| format!("the partition has no {name}"));
    let mut carve = Command::new("dd");
    carve.args(["status=none", "conv=sparse", "bs=1M"]);
    carve.arg(format!("if={}", raw.display())).arg(format!("of={}", partition.display()));
    carve.arg(format!("skip={}", field("start")? / 2048)).arg(format!("count={}", field("size")? / 2048));
    run_command(&mut carve)?;
    fs::remove_file(raw)?;
    Ok(partition)
}

pub(super) fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the path is not UTF-8")
}
