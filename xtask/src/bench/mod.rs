//! Measures against the named peers and rewrites `docs/benchmarks.md`.
//!
//! Both sides of a ratio run in turn, within the same minute; figures are medians.

mod copies;
mod disks;
mod filesystems;
mod machines;
mod report;
mod timing;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use crate::corpus;
use crate::workspace::{root, run as run_command};

pub(crate) use timing::peak_memory_of;

/// What was measured of one job.
pub(crate) struct Row {
    job: &'static str,
    ours: String,
    peer: String,
    ratio: Option<f64>,
    target: &'static str,
    met: bool,
}

/// What the measurements run on.
pub(crate) struct Bench {
    vmwright: PathBuf,
    /// A Debian in a partitioned qcow2, not to be changed.
    disk: PathBuf,
    work: PathBuf,
}

impl Bench {
    fn prepare() -> Result<Self> {
        corpus::run()?;
        let disk = root().join("target/cache/debian.qcow2");
        if !disk.is_file() {
            let script = "scripts/build-debian-disk.sh";
            run_command(Command::new(script).arg(corpus::debian_tar()).arg(&disk))?;
        }
        let vmwright = root().join("target/release/vmwright");
        ensure!(vmwright.is_file(), "build it first: cargo build --release --bin vmwright");
        let work = root().join("target/bench");
        let _ = fs::remove_dir_all(&work);
        fs::create_dir_all(&work)?;
        Ok(Self { vmwright, disk, work })
    }

    /// A command of ours, with a state folder of its own.
    fn vmwright<const N: usize>(&self, args: [&str; N]) -> Command {
        let mut command = Command::new(&self.vmwright);
        command.args(args).env("VMWRIGHT_HOME", self.home());
        command
    }

    fn home(&self) -> PathBuf {
        self.work.join("home")
    }

    /// A fresh copy of the Debian disk.
    fn copy_of_disk(&self, name: &str) -> Result<PathBuf> {
        let copy = self.work.join(name);
        run_command(
            Command::new("cp").args(["--sparse=always", "--reflink=auto"]).arg(&self.disk).arg(&copy),
        )?;
        Ok(copy)
    }
}

type Job = fn(&Bench) -> Result<Vec<Row>>;

/// Measures everything, or only the jobs whose name contains `filter`, and writes the table when it was all.
pub(crate) fn run(filter: Option<&str>) -> Result<()> {
    let bench = Bench::prepare()?;
    let jobs: [(&str, Job); 13] = [
        ("read", disks::read_one_file),
        ("inspect", disks::inspect),
        ("edit", disks::three_edits),
        ("create", disks::thousand_files),
        ("convert", copies::convert),
        ("compare", copies::compare),
        ("sparse", copies::sparse_disk),
        ("open", copies::open_formats),
        ("fs-make", filesystems::make),
        ("fs-files", filesystems::files),
        ("fs-check", filesystems::check),
        ("run", machines::run_against_qemu),
        ("exec", machines::exec_and_shim),
    ];
    let mut rows = Vec::new();
    for (name, job) in jobs.iter().filter(|(name, _)| filter.is_none_or(|filter| name.contains(filter))) {
        println!("== {name}");
        let measured = job(&bench)?;
        measured.iter().for_each(report::print);
        rows.extend(measured);
    }
    if filter.is_none() {
        report::write(Path::new("docs/benchmarks.md"), &rows, &disks::fsync_latency(&bench.work)?)?;
    }
    let _ = fs::remove_dir_all(&bench.work);
    Ok(())
}
