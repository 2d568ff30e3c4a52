//! Every gate in one command.

use std::time::Instant;

use anyhow::{Result, bail};

use crate::workspace::{cargo, run as run_command};
use crate::{layers, licences, rules, suite};

type Gate = (&'static str, fn() -> Result<()>);

const GATES: [Gate; 7] = [
    ("fmt", || run_command(&mut cargo(["fmt", "--all", "--check"]))),
    ("layers", layers::check),
    ("rules", rules::check),
    ("licences", licences::check),
    ("clippy", || {
        run_command(&mut cargo([
            "clippy",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--locked",
            "--",
            "-Dwarnings",
        ]))
    }),
    ("docs", || {
        let mut doc =
            cargo(["doc", "--quiet", "--workspace", "--no-deps", "--locked", "--document-private-items"]);
        run_command(doc.env("RUSTDOCFLAGS", "-Dwarnings"))
    }),
    ("tests", suite::run),
];

/// Passes every gate, or says which failed; the tests run even when an earlier gate failed.
pub(crate) fn run() -> Result<()> {
    let mut failed = Vec::new();
    for (name, gate) in GATES {
        let start = Instant::now();
        println!("== {name}");
        match gate() {
            Ok(()) => println!("== {name}: passed in {:.1} s", start.elapsed().as_secs_f32()),
            Err(error) => {
                println!("== {name}: FAILED: {error:#}");
                failed.push(name);
            }
        }
    }
    suite::closing_line(&failed)?;
    if !failed.is_empty() {
        bail!("gates failed: {}", failed.join(", "));
    }
    Ok(())
}

/// Passes one gate.
pub(crate) fn run_one(name: &str) -> Result<()> {
    match GATES.iter().find(|(gate, _)| *gate == name) {
        Some((_, gate)) => gate(),
        None => bail!("no gate {name}; there are {}", GATES.map(|(gate, _)| gate).join(", ")),
    }
}
