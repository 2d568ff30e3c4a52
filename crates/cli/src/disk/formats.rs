//! `vmwright disk formats`

use std::process::ExitCode;

use vmwright_image::Format;
use vmwright_image::matrix::{Operation, Support, support};

use crate::output::{Table, json, line};

/// What `disk formats` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// Says what each format can do, and why it cannot do the rest.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.json {
        let cell = |format, operation: Operation| (operation.name(), support(format, operation));
        let row = |format: Format| {
            (format.name(), Operation::ALL.map(|operation| cell(format, operation)).into_iter().collect())
        };
        let table: std::collections::BTreeMap<_, std::collections::BTreeMap<_, _>> =
            Format::ALL.map(row).into_iter().collect();
        json(&table)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut notes = Vec::new();
    let mut number = |reason: &'static str| {
        let known = notes.iter().position(|note| *note == reason);
        known.unwrap_or_else(|| {
            notes.push(reason);
            notes.len() - 1
        }) + 1
    };
    let mut grid = Table::new(std::iter::once("").chain(Format::ALL.map(Format::name)));
    for operation in Operation::ALL {
        let cell = |format| match support(format, operation) {
            Support::Done => "done".to_owned(),
            Support::Partly(what) => format!("done ({})", number(what)),
            Support::Refused(why) => format!("no ({})", number(why)),
        };
        grid.row(std::iter::once(operation.name().to_owned()).chain(Format::ALL.map(cell)));
    }
    grid.print()?;
    line("")?;
    for (index, note) in notes.iter().enumerate() {
        line(format!("({}) {note}", index + 1))?;
    }
    Ok(ExitCode::SUCCESS)
}
