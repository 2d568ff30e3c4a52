//! `vmwright guest edit`

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use vmwright_guest::ops::{self, Substitution};

use super::source::Editing;
use crate::failure::Failure;
use crate::output::line;

/// What `guest edit` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The disk image
    image: PathBuf,
    /// The file in it
    path: String,
    /// A substitution as sed writes it, s/EXPRESSION/REPLACEMENT/ with flags g and i; an editor is opened where none is given
    #[arg(short, long = "expression", value_name = "SUBSTITUTION")]
    expressions: Vec<String>,
    #[command(flatten)]
    editing: Editing,
}

/// Changes the file.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let attempt = || format!("cannot edit {} in {}", args.path, args.image.display());
    let parsed: Result<Vec<_>, _> = args.expressions.iter().map(|text| Substitution::parse(text)).collect();
    let substitutions = parsed.map_err(|error| Failure::usage(error.to_string()))?;
    let path = args.path.as_bytes();
    let edited = args.editing.edit(&args.image, |root| match substitutions.as_slice() {
        [] => {
            let mut interrupted = None;
            let changed = ops::edit(root, path, |text| {
                Ok(in_editor(path, text).unwrap_or_else(|error| {
                    interrupted = Some(error);
                    text.to_vec()
                }))
            })?;
            interrupted.map_or(Ok(changed), Err)
        }
        substitutions => Ok(ops::substitute(root, path, substitutions)?),
    });
    if !edited.with_context(attempt)? && !args.editing.is_dry_run() {
        let why = if args.expressions.is_empty() { "the editor left it so" } else { "nothing matched" };
        line(format!("{} is as it was: {why}", args.path))?;
    }
    Ok(())
}

/// Lets the user change a text in their editor.
fn in_editor(path: &[u8], text: &[u8]) -> anyhow::Result<Vec<u8>> {
    let editor = ["VISUAL", "EDITOR"].into_iter().find_map(std::env::var_os).unwrap_or_else(|| "vi".into());
    let folder = tempfile::Builder::new().prefix("vmwright-edit-").tempdir()?;
    let name = String::from_utf8_lossy(path).into_owned();
    let file = folder.path().join(Path::new(&name).file_name().unwrap_or("text".as_ref()));
    fs::write(&file, text)?;
    // The shell splits an editor that is set with arguments, as git and crontab let it be.
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "exec $VMWRIGHT_EDITOR \"$1\"", "sh"]).arg(&file).env("VMWRIGHT_EDITOR", &editor);
    let status = command.status().with_context(|| format!("cannot start the editor {}", editor.display()))?;
    ensure!(status.success(), "the editor {} ended with {status}; nothing was changed", editor.display());
    Ok(fs::read(&file)?)
}
