//! `vmwright disk encrypt` and `vmwright disk decrypt`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use vmwright_image::{Format, Layout};

use super::FormatName;
use super::convert::How;
use super::source::Reading;
use crate::failure::Failure;
use crate::output::note;
use crate::secret;

/// What `disk encrypt` takes.
#[derive(clap::Args)]
pub(crate) struct Encrypt {
    /// The image to copy
    source: PathBuf,
    /// The encrypted image to make
    target: PathBuf,
    /// The format to make: luks, or qcow2 with LUKS inside
    #[arg(short = 'O', long, value_enum, default_value = "luks")]
    output_format: FormatName,
    /// The file of the new passphrase, without the newline at its end; otherwise the terminal is asked
    #[arg(long, value_name = "FILE")]
    new_passphrase_file: Option<PathBuf>,
    #[command(flatten)]
    how: How,
    #[command(flatten)]
    reading: Reading,
}

/// What `disk decrypt` takes.
#[derive(clap::Args)]
pub(crate) struct Decrypt {
    /// The encrypted image to copy
    source: PathBuf,
    /// The plain image to make
    target: PathBuf,
    /// The format to make
    #[arg(short = 'O', long, value_enum, default_value = "qcow2")]
    output_format: FormatName,
    #[command(flatten)]
    how: How,
    #[command(flatten)]
    reading: Reading,
}

/// Copies the image in encrypted form.
pub(crate) fn encrypt(args: &Encrypt) -> anyhow::Result<ExitCode> {
    let attempt = || format!("cannot encrypt {} as {}", args.source.display(), args.target.display());
    let format: Format = args.output_format.into();
    let mut wanted = args.how.options(format).with_context(attempt)?;
    match &mut wanted.layout {
        Layout::Luks(_) => {}
        Layout::Qcow2(_) => wanted.layout.set("encrypt.format", "luks").with_context(attempt)?,
        _ => {
            let text = format!("the {format} format has no encryption; luks and qcow2 have");
            return Err(Failure::usage(text)).with_context(attempt);
        }
    }
    let source = args.reading.open(&args.source).with_context(attempt)?;
    let what = format!("new passphrase for {}", args.target.display());
    wanted.secret = Some(secret::for_new(args.new_passphrase_file.as_deref(), &what).with_context(attempt)?);
    args.how.copy(&source, &args.target, wanted).with_context(attempt)?;
    note(format!(
        "{} is still there and still plain; `vmwright disk wipe {} --delete` removes it",
        args.source.display(),
        args.source.display()
    ));
    Ok(ExitCode::SUCCESS)
}

/// Copies the image in plain form.
pub(crate) fn decrypt(args: &Decrypt) -> anyhow::Result<ExitCode> {
    let attempt = || format!("cannot decrypt {} as {}", args.source.display(), args.target.display());
    let wanted = args.how.options(args.output_format.into()).with_context(attempt)?;
    if wanted.layout.is_encrypted() {
        let text = "the target would be encrypted too; `vmwright disk convert` changes one into the other";
        return Err(Failure::usage(text)).with_context(attempt);
    }
    let source = args.reading.open(&args.source).with_context(attempt)?;
    if !source.info().with_context(attempt)?.encrypted {
        return Err(Failure::usage("it is not encrypted")).with_context(attempt);
    }
    args.how.copy(&source, &args.target, wanted).with_context(attempt)?;
    Ok(ExitCode::SUCCESS)
}
