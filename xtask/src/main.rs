//! Gates, benchmarks and test images of this repository.
//!
//! ```text
//! cargo xtask check      every gate: format, lints, layers, rules, licences, docs, tests
//! cargo xtask corpus     builds the test systems under target/cache
//! cargo xtask bench      measures against the named peers and rewrites docs/benchmarks.md
//! cargo xtask torture    the tests, with the large counts
//! ```
#![forbid(unsafe_code)]
// This program exists to print.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod bench;
mod check;
mod corpus;
mod layers;
mod licences;
mod rules;
mod suite;
mod workspace;

use std::process::ExitCode;

use anyhow::{Result, bail};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["check"] => check::run(),
        ["check", gate] => check::run_one(gate),
        ["corpus"] => corpus::run(),
        ["bench"] => bench::run(None),
        ["bench", filter] => bench::run(Some(filter)),
        ["peak-memory", command @ ..] => bench::peak_memory_of(command),
        ["torture", rest @ ..] => suite::torture(rest),
        _ => bail!("usage: cargo xtask check [GATE] | corpus | bench [JOB] | torture [PACKAGE…]"),
    }
}
