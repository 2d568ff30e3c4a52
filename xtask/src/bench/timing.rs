//! Times whole processes.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// Runs a command that must succeed, its output thrown away, and answers how long it took.
pub(super) fn time(command: &mut Command) -> Result<Duration> {
    let start = Instant::now();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?;
    let elapsed = start.elapsed();
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(elapsed)
}

/// The medians of both sides and of the ratios, pair by pair.
pub(super) struct Pair {
    pub(super) ours: Duration,
    pub(super) peer: Duration,
    pub(super) ratio: f64,
}

/// Runs two measurements in turn, after one of each that is not counted.
pub(super) fn pair(
    runs: usize,
    mut ours: impl FnMut() -> Result<Duration>,
    mut peer: impl FnMut() -> Result<Duration>,
) -> Result<Pair> {
    ours()?;
    peer()?;
    let mut pairs = Vec::with_capacity(runs);
    for _ in 0..runs {
        pairs.push((ours()?, peer()?));
    }
    let ratios = pairs.iter().map(|(ours, peer)| ours.as_secs_f64() / peer.as_secs_f64());
    Ok(Pair {
        ours: median(pairs.iter().map(|(ours, _)| *ours)),
        peer: median(pairs.iter().map(|(_, peer)| *peer)),
        ratio: median(ratios.map(Duration::from_secs_f64)).as_secs_f64(),
    })
}

/// The median of several runs of one measurement, after one that is not counted.
pub(super) fn repeat(runs: usize, mut measure: impl FnMut() -> Result<Duration>) -> Result<Duration> {
    measure()?;
    let times: Result<Vec<_>> = (0..runs).map(|_| measure()).collect();
    Ok(median(times?.into_iter()))
}

fn median(times: impl Iterator<Item = Duration>) -> Duration {
    let mut times: Vec<_> = times.collect();
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// Milliseconds as people read them.
pub(super) fn ms(duration: Duration) -> String {
    let value = duration.as_secs_f64() * 1000.0;
    if value < 100.0 { format!("{value:.2} ms") } else { format!("{value:.0} ms") }
}

/// The peak resident memory of a command, in bytes: asks a fresh process, because the kernel counts the largest
/// child a process ever had.
pub(super) fn peak_memory(command: &Command) -> Result<u64> {
    let mut asking = Command::new(std::env::current_exe()?);
    asking.arg("peak-memory").arg(command.get_program()).args(command.get_args());
    for (key, value) in command.get_envs() {
        value.map(|value| asking.env(key, value));
    }
    let output = asking.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).trim().parse()?)
}

/// Runs a command and prints its peak resident memory in bytes; what [`peak_memory`] starts.
pub(crate) fn peak_memory_of(args: &[&str]) -> Result<()> {
    let (program, args) = args.split_first().context("which command?")?;
    time(Command::new(program).args(args))?;
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_CHILDREN)?;
    println!("{}", usage.max_rss() * 1024);
    Ok(())
}
