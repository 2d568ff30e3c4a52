//! Runs the tests and adds up what passed, failed and was skipped.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Mutex;

use anyhow::{Context, Result, ensure};

use crate::workspace::{cargo, root, run as run_command};

/// What the test harnesses' closing lines add up to.
#[derive(Default, Clone, Copy)]
struct Counts {
    passed: u64,
    failed: u64,
}

static COUNTS: Mutex<Counts> = Mutex::new(Counts { passed: 0, failed: 0 });

/// Where tests append what they skipped, and why.
fn skips_file() -> PathBuf {
    root().join("target/skipped.txt")
}

/// Runs every test of the workspace, examples in the documentation included.
pub(crate) fn run() -> Result<()> {
    let _ = fs::remove_file(skips_file());
    run_command(&mut cargo(["build", "--quiet", "--locked", "--bin", "vmwright"]))?;
    let mut command = cargo(["test", "--workspace", "--no-fail-fast", "--locked", "--quiet"]);
    let passed = count(command.env("VMWRIGHT_SKIPS", skips_file()))?;
    ensure!(passed, "some tests failed");
    Ok(())
}

/// Runs the tests of the named packages, or of all, with the large counts.
pub(crate) fn torture(packages: &[&str]) -> Result<()> {
    let mut command = cargo(["test", "--no-fail-fast"]);
    match packages {
        [] => command.arg("--workspace"),
        _ => command.args(packages.iter().flat_map(|package| ["--package", package])),
    };
    run_command(command.env("VMWRIGHT_TORTURE", "1"))
}

/// Runs a test command, shows its output, and adds its closing lines to the counts.
fn count(command: &mut Command) -> Result<bool> {
    let mut child = command.current_dir(root()).stdout(Stdio::piped()).spawn()?;
    let stdout = child.stdout.take().context("no standard output")?;
    let mut totals = Counts::default();
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line?;
        std::io::stdout().write_all(&[line.as_slice(), b"\n"].concat())?;
        let text = String::from_utf8_lossy(&line);
        // Under `--quiet` the last row of dots may stand before the closing line.
        if let Some(at) = text.find("test result: ") {
            totals.passed += number_before(&text[at..], " passed");
            totals.failed += number_before(&text[at..], " failed");
        }
    }
    let status = child.wait()?;
    let mut counts = COUNTS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    counts.passed += totals.passed;
    counts.failed += totals.failed;
    Ok(status.success())
}

/// The number that stands right before `label`, or zero.
fn number_before(text: &str, label: &str) -> u64 {
    let Some(end) = text.find(label) else { return 0 };
    let start = text[..end].rfind(|character: char| !character.is_ascii_digit()).map_or(0, |at| at + 1);
    text[start..end].parse().unwrap_or(0)
}

/// Prints what was skipped and why, then the closing line; a failed gate counts as a failure.
pub(crate) fn closing_line(failed_gates: &[&str]) -> Result<()> {
    let skipped = fs::read_to_string(skips_file()).unwrap_or_default();
    let mut skipped: Vec<_> = skipped.lines().collect();
    skipped.sort_unstable();
    for line in &skipped {
        println!("skipped: {line}");
    }
    let counts = *COUNTS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let other_gates = failed_gates.iter().filter(|gate| **gate != "tests").count() as u64;
    // A test that skips itself returns normally, so its harness counted it as passed.
    let passed = counts.passed.saturating_sub(skipped.len() as u64);
    println!("{passed} passed, {} failed, {} skipped", counts.failed + other_gates, skipped.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::number_before;

    #[test]
    fn the_closing_line_of_a_harness_is_read() {
        let line = "test result: ok. 12 passed; 3 failed; 0 ignored; 0 measured";
        assert_eq!((number_before(line, " passed"), number_before(line, " failed")), (12, 3));
    }
}
