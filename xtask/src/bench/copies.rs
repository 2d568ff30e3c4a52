//! What is measured of copying, comparing and mapping whole disks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::timing::{Pair, ms, pair, peak_memory, repeat, time};
use super::{Bench, Row};
use crate::workspace::run as run_command;

/// How many runs a measurement that takes long has.
const RUNS: usize = 5;

/// The Debian as a raw file and as a qcow2, its data in memory.
struct Disks {
    raw: PathBuf,
    qcow2: PathBuf,
    ours: PathBuf,
    peer: PathBuf,
}

impl Disks {
    fn prepare(bench: &Bench) -> Result<Self> {
        let [raw, qcow2, ours, peer] =
            ["copy.raw", "copy.qcow2", "ours", "peer"].map(|name| bench.work.join(name));
        if !raw.exists() {
            run_command(Command::new("qemu-img").args(["convert", "-O", "raw"]).arg(&bench.disk).arg(&raw))?;
            run_command(Command::new("qemu-img").args(["convert", "-O", "qcow2"]).arg(&raw).arg(&qcow2))?;
        }
        Ok(Self { raw, qcow2, ours, peer })
    }
}

/// One conversion against `qemu-img convert`.
struct Case {
    job: &'static str,
    from_raw: bool,
    ours: &'static [&'static str],
    peer: &'static [&'static str],
    /// The ratio at most.
    limit: f64,
    target: &'static str,
    /// What the files' sizes are compared as, where they are.
    size: Option<&'static str>,
}

const fn plain(
    job: &'static str,
    from_raw: bool,
    ours: &'static [&'static str],
    peer: &'static [&'static str],
) -> Case {
    Case { job, from_raw, ours, peer, limit: 1.0, target: "≤ 1.0", size: None }
}

const STREAM: &str = "subformat=streamOptimized";
const ZSTD: &str = "compression_type=zstd";

const CASES: [Case; 12] = [
    plain("convert a Debian, raw to qcow2", true, &["-O", "qcow2"], &["-O", "qcow2"]),
    plain("convert a Debian, qcow2 to raw", false, &["-O", "raw"], &["-O", "raw"]),
    plain("convert a Debian, qcow2 to VHDX", false, &["-O", "vhdx"], &["-O", "vhdx"]),
    plain("convert a Debian, qcow2 to VDI", false, &["-O", "vdi"], &["-O", "vdi"]),
    plain("convert a Debian, qcow2 to VMDK", false, &["-O", "vmdk"], &["-O", "vmdk"]),
    plain("convert a Debian, qcow2 to VHD", false, &["-O", "vhd"], &["-O", "vpc"]),
    Case {
        job: "compress a Debian to qcow2, deflate",
        from_raw: true,
        ours: &["-c", "-O", "qcow2"],
        peer: &["-c", "-O", "qcow2"],
        limit: 1.0 / 4.0,
        target: "≤ 1/4",
        size: Some("its size"),
    },
    Case {
        job: "the same; peer: `-m 16 -W`",
        from_raw: true,
        ours: &["-c", "-O", "qcow2"],
        peer: &["-c", "-m", "16", "-W", "-O", "qcow2"],
        limit: 1.0 / 2.0,
        target: "≤ 1/2",
        size: None,
    },
    Case {
        job: "compress a Debian to qcow2, zstd level 3",
        from_raw: true,
        ours: &["-c", "-O", "qcow2", "-o", ZSTD],
        peer: &["-c", "-O", "qcow2", "-o", ZSTD],
        limit: 1.0 / 2.3,
        target: "≤ 1/2.3",
        size: Some("its size"),
    },
    Case {
        job: "the same; peer: `-m 16 -W`",
        from_raw: true,
        ours: &["-c", "-O", "qcow2", "-o", ZSTD],
        peer: &["-c", "-m", "16", "-W", "-O", "qcow2", "-o", ZSTD],
        limit: 1.0 / 1.2,
        target: "≤ 1/1.2",
        size: None,
    },
    Case {
        job: "compress a Debian to VMDK, streamOptimized",
        from_raw: true,
        ours: &["-c", "-O", "vmdk", "-o", STREAM],
        peer: &["-c", "-O", "vmdk", "-o", STREAM],
        limit: 1.0 / 4.0,
        target: "≤ 1/4",
        size: Some("its size"),
    },
    Case {
        job: "the same; peer: `-m 16`",
        from_raw: true,
        ours: &["-c", "-O", "vmdk", "-o", STREAM],
        peer: &["-c", "-m", "16", "-O", "vmdk", "-o", STREAM],
        limit: 1.0 / 2.0,
        target: "≤ 1/2",
        size: None,
    },
];

/// Conversions of a Debian, durable on both sides, and of a sparse disk.
pub(super) fn convert(bench: &Bench) -> Result<Vec<Row>> {
    let disks = Disks::prepare(bench)?;
    let mut rows = Vec::new();
    for case in &CASES {
        rows.extend(one(bench, &disks, case)?);
    }
    rows.push(sparse(bench, &disks)?);
    rows.push(memory(bench, &disks)?);
    Ok(rows)
}

fn one(bench: &Bench, disks: &Disks, case: &Case) -> Result<Vec<Row>> {
    let source = if case.from_raw { &disks.raw } else { &disks.qcow2 };
    let ours = || {
        remove(&disks.ours)?;
        time(bench.vmwright(["disk", "convert"]).arg(source).arg(&disks.ours).args(case.ours))
    };
    let peer = || {
        remove(&disks.peer)?;
        let mut convert = Command::new("qemu-img");
        let convert = time(convert.arg("convert").args(case.peer).arg(source).arg(&disks.peer))?;
        // Ours is durable when it ends.
        Ok(convert + time(Command::new("sync").arg("-f").arg(&disks.peer))?)
    };
    let pair = pair(RUNS, ours, peer)?;
    let mut rows = vec![Row {
        job: case.job,
        ours: ms(pair.ours),
        peer: ms(pair.peer),
        ratio: Some(pair.ratio),
        target: case.target,
        met: pair.ratio <= case.limit,
    }];
    if let Some(job) = case.size {
        let (ours, peer) = (fs::metadata(&disks.ours)?.len(), fs::metadata(&disks.peer)?.len());
        let ratio = ours as f64 / peer as f64;
        let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
        let (ours, peer) = (mib(ours), mib(peer));
        rows.push(Row { job, ours, peer, ratio: Some(ratio), target: "≤ 1.02", met: ratio <= 1.02 });
    }
    ensure!(same(&disks.ours, source)?, "{}: the copy differs", case.job);
    Ok(rows)
}

/// Whether qemu-img finds the same content in two images.
fn same(a: &Path, b: &Path) -> Result<bool> {
    Ok(Command::new("qemu-img").args(["compare", "-q"]).arg(a).arg(b).status()?.success())
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// 16 GiB with 64 MiB in it.
fn sparse(bench: &Bench, disks: &Disks) -> Result<Row> {
    let path = bench.work.join("sparse.raw");
    let script = "truncate -s 16G \"$0\" && for at in $(seq 0 63); do \
                  dd if=/dev/urandom of=\"$0\" bs=1M count=1 seek=$((at * 250)) conv=notrunc status=none; done";
    run_command(Command::new("sh").arg("-c").arg(script).arg(&path))?;
    let case = plain(
        "convert 16 GiB with 64 MiB of data in it, raw to qcow2",
        true,
        &["-O", "qcow2"],
        &["-O", "qcow2"],
    );
    let disks = Disks { raw: path, ..disks_again(disks) };
    one(bench, &disks, &case)?.pop().context("no row")
}

fn disks_again(disks: &Disks) -> Disks {
    let Disks { raw, qcow2, ours, peer } = disks;
    Disks { raw: raw.clone(), qcow2: qcow2.clone(), ours: ours.clone(), peer: peer.clone() }
}

fn memory(bench: &Bench, disks: &Disks) -> Result<Row> {
    remove(&disks.ours)?;
    let mut command = bench.vmwright(["disk", "convert", "-c", "-O", "qcow2"]);
    command.arg(&disks.raw).arg(&disks.ours);
    let memory = peak_memory(&command)?;
    Ok(Row {
        job: "peak memory of a conversion with compression",
        ours: format!("{:.1} MiB", memory as f64 / f64::from(1 << 20)),
        peer: String::new(),
        ratio: None,
        target: "< 64 MB",
        met: memory < 64_000_000,
    })
}

/// Comparing, and digests.
pub(super) fn compare(bench: &Bench) -> Result<Vec<Row>> {
    let disks = Disks::prepare(bench)?;
    let both = [&disks.raw, &disks.qcow2];
    let compared = pair(
        RUNS,
        || time(bench.vmwright(["disk", "compare"]).args(both)),
        || time(Command::new("qemu-img").args(["compare", "-q"]).args(both)),
    )?;
    let summed = pair(
        RUNS,
        || time(bench.vmwright(["disk", "checksum"]).arg(&disks.raw)),
        || time(Command::new("sha256sum").arg(&disks.raw)),
    )?;
    Ok(vec![
        at_most_as_long("compare a raw Debian with its qcow2", &compared),
        at_most_as_long("SHA-256 of a raw Debian, 4 GiB; peer: `sha256sum`", &summed),
    ])
}

fn at_most_as_long(job: &'static str, pair: &Pair) -> Row {
    Row {
        job,
        ours: ms(pair.ours),
        peer: ms(pair.peer),
        ratio: Some(pair.ratio),
        target: "≤ 1.0",
        met: pair.ratio <= 1.0,
    }
}

/// What must not grow with the size of a disk.
pub(super) fn sparse_disk(bench: &Bench) -> Result<Vec<Row>> {
    let (raw, copy) = (bench.work.join("tebibyte.raw"), bench.work.join("tebibyte.qcow2"));
    fs::File::create(&raw)?.set_len(1 << 40)?;
    let row = |job, median: Duration, limit_ms: u64, target| Row {
        job,
        ours: ms(median),
        peer: String::new(),
        ratio: None,
        target,
        met: median < Duration::from_millis(limit_ms),
    };
    let convert = repeat(RUNS, || {
        remove(&copy)?;
        time(bench.vmwright(["disk", "convert", "-O", "qcow2"]).arg(&raw).arg(&copy))
    })?;
    let map = repeat(21, || time(bench.vmwright(["disk", "map"]).arg(&copy)))?;
    let info = repeat(21, || time(bench.vmwright(["disk", "info"]).arg(&copy)))?;
    let disk = &bench.disk;
    let open = repeat(21, || time(bench.vmwright(["disk", "info"]).arg(disk)))?;
    Ok(vec![
        row("convert an empty disk of 1 TiB to qcow2", convert, 50, "< 50 ms"),
        row("map it", map, 50, "< 50 ms"),
        row("describe it", info, 50, "< 50 ms"),
        row("open a Debian and describe it", open, 3, "< 3 ms"),
    ])
}

/// Opening a Debian in each format and reading more than 1 MiB out of its filesystem.
pub(super) fn open_formats(bench: &Bench) -> Result<Vec<Row>> {
    const FILE: &str = "/usr/bin/bash";
    let formats: [(&str, &[&str]); 7] = [
        ("open raw and read a file of 1.2 MiB", &["raw"]),
        ("open qcow2 and read it", &["qcow2"]),
        ("open VMDK and read it", &["vmdk"]),
        ("open VMDK, streamOptimized, and read it", &["vmdk", "-o", STREAM]),
        ("open VHD and read it", &["vhd"]),
        ("open VHDX and read it", &["vhdx"]),
        ("open VDI and read it", &["vdi"]),
    ];
    let image = bench.work.join("opened");
    let mut rows = Vec::new();
    for (job, layout) in formats {
        remove(&image)?;
        run_command(bench.vmwright(["disk", "convert", "-O"]).args(layout).arg(&bench.disk).arg(&image))?;
        let median = repeat(21, || time(bench.vmwright(["guest", "cat"]).arg(&image).arg(FILE)))?;
        let met = median < Duration::from_millis(3);
        rows.push(Row { job, ours: ms(median), peer: String::new(), ratio: None, target: "< 3 ms", met });
    }
    Ok(rows)
}
