//! What is measured of filesystems as wholes.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use super::disks::{bare_root_partition, text};
use super::timing::{Pair, ms, pair, peak_memory, repeat, time};
use super::{Bench, Row};
use crate::corpus;
use crate::workspace::run as run_command;

/// How many runs a measurement of seconds has.
const RUNS: usize = 5;

/// How many runs a quick measurement has.
const QUICK: usize = 21;

fn ratio(job: &'static str, pair: &Pair, limit: f64, target: &'static str) -> Row {
    Row {
        job,
        ours: ms(pair.ours),
        peer: ms(pair.peer),
        ratio: Some(pair.ratio),
        target,
        met: pair.ratio <= limit,
    }
}

fn alone(job: &'static str, median: Duration, limit: u64, target: &'static str) -> Row {
    let met = median < Duration::from_millis(limit);
    Row { job, ours: ms(median), peer: String::new(), ratio: None, target, met }
}

fn fresh(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

fn shell(script: &str, args: &[&Path]) -> Command {
    let mut command = Command::new("sh");
    command.args(["-ec", script]).args(args);
    command
}

/// Filling a filesystem from a Debian root, making a large one, growing one.
pub(super) fn make(bench: &Bench) -> Result<Vec<Row>> {
    let (tree, image, peer) =
        (bench.work.join("tree"), bench.work.join("ours.img"), bench.work.join("peer.img"));
    fs::create_dir_all(&tree)?;
    run_command(Command::new("tar").arg("-xf").arg(corpus::debian_tar()).arg("-C").arg(&tree))?;
    let ours = || {
        let mut command = bench.vmwright(["fs", "make", "--size", "2G", "--from"]);
        command.arg(&tree).arg(&image);
        command
    };
    let filled = pair(
        RUNS,
        || {
            fresh(&image)?;
            time(&mut ours())
        },
        || {
            fresh(&peer)?;
            // Ours is durable when it ends.
            let script = "truncate -s 2G \"$1\"; mke2fs -q -F -t ext4 -d \"$0\" \"$1\"; sync -f \"$1\"";
            time(&mut shell(script, &[&tree, &peer]))
        },
    )?;
    run_command(Command::new("e2fsck").arg("-fn").arg(&image))?;
    fresh(&image)?;
    let memory = peak_memory(&ours())?;
    let mut rows = vec![ratio("fill ext4 with a Debian root; peer: `mke2fs -d`", &filled, 0.5, "≤ 1/2")];
    rows.push(Row {
        job: "its peak memory",
        ours: format!("{:.1} MiB", memory as f64 / f64::from(1 << 20)),
        peer: String::new(),
        ratio: None,
        target: "< 48 MB",
        met: memory < 48_000_000,
    });
    let large = repeat(QUICK, || {
        fresh(&image)?;
        time(bench.vmwright(["fs", "make", "--size", "1T"]).arg(&image))
    })?;
    rows.push(alone("make ext4 of 1 TiB", large, 30, "< 30 ms"));
    rows.push(grow(bench, &image)?);
    Ok(rows)
}

fn grow(bench: &Bench, image: &Path) -> Result<Row> {
    let small = bench.work.join("small.img");
    fresh(&small)?;
    run_command(bench.vmwright(["fs", "make", "--size", "4G"]).arg(&small))?;
    fs::File::options().write(true).open(&small)?.set_len(40 << 30)?;
    let grown = repeat(QUICK, || {
        fresh(image)?;
        run_command(Command::new("cp").args(["--sparse=always", "--reflink=auto"]).arg(&small).arg(image))?;
        time(bench.vmwright(["fs", "resize", "--size", "max"]).arg(image))
    })?;
    run_command(Command::new("e2fsck").arg("-fn").arg(image))?;
    Ok(alone("grow ext4 from 4 to 40 GiB", grown, 20, "< 20 ms"))
}

/// 100,000 small files out of an archive, against the kernel through a loop mount.
pub(super) fn files(bench: &Bench) -> Result<Vec<Row>> {
    let (archive, mount) = (bench.work.join("files.tar"), bench.work.join("mount"));
    let (image, peer) = (bench.work.join("ours.img"), bench.work.join("peer.img"));
    let script = "mkdir -p \"$0/many\"; cd \"$0/many\"; head -c 4096 /dev/urandom > ../bytes; \
                  for d in $(seq 100); do mkdir $d; for f in $(seq 1000); do \
                  head -c $((f * 4)) ../bytes > $d/$f; done; done; tar -cf \"$1\" .";
    run_command(&mut shell(script, &[&bench.work, &archive]))?;
    fs::create_dir_all(&mount)?;
    let created = pair(
        3,
        || {
            fresh(&image)?;
            time(bench.vmwright(["fs", "make", "--size", "2G", "--from"]).arg(&archive).arg(&image))
        },
        || {
            fresh(&peer)?;
            run_command(&mut shell(
                "truncate -s 2G \"$0\"; mke2fs -q -F -t ext4 \"$0\"; sync -f \"$0\"",
                &[&peer],
            ))?;
            let script =
                "mount -o loop \"$0\" \"$1\"; tar -xf \"$2\" -C \"$1\"; umount \"$1\"; sync -f \"$0\"";
            time(&mut shell(script, &[&peer, &mount, &archive]))
        },
    )?;
    run_command(Command::new("e2fsck").arg("-fn").arg(&image))?;
    let job = "create 100,000 files of 0 to 4 KiB out of an archive; peer: the kernel, loop mount to sync";
    Ok(vec![ratio(job, &created, 0.5, "≤ 1/2")])
}

/// Reading a whole filesystem: its check, and a walk over all names.
pub(super) fn check(bench: &Bench) -> Result<Vec<Row>> {
    let partition = bare_root_partition(bench)?;
    let volume = text(&partition)?;
    let checked = pair(
        QUICK,
        || time(&mut bench.vmwright(["fs", "check", volume])),
        || time(Command::new("e2fsck").args(["-fn", volume])),
    )?;
    let mount = bench.work.join("mount");
    fs::create_dir_all(&mount)?;
    run_command(Command::new("mount").args(["-o", "loop,ro,noload"]).arg(&partition).arg(&mount))?;
    let walked = pair(
        QUICK,
        || time(&mut bench.vmwright(["guest", "ls", "-R", volume, "/"])),
        || time(Command::new("find").arg(&mount)),
    );
    run_command(Command::new("umount").arg(&mount))?;
    Ok(vec![
        ratio("check a Debian's ext4; peer: `e2fsck -fn`", &checked, 1.0, "≤ 1.0"),
        ratio("list every name of it; peer: `find` on a kernel's mount", &walked?, 1.0, "≤ 1.0"),
    ])
}
