//! `vmwright disk key …`

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Subcommand;
use vmwright_crypt::Header;
use vmwright_crypt::luks2::Stretch;
use vmwright_disk::{Access, Disk, Transaction, WriteMode};
use vmwright_image::{LuksInfo, describe, key_area};

use super::source::{Editing, Reading};
use crate::failure::Failure;
use crate::output::{Table, json, line, size};
use crate::secret;

/// The verbs of `disk key`.
#[derive(Subcommand)]
pub(crate) enum Verb {
    /// List the key slots of an encrypted image
    List {
        /// The image
        image: PathBuf,
        #[command(flatten)]
        reading: Reading,
        /// Answer in JSON
        #[arg(long)]
        json: bool,
    },
    /// Add a passphrase beside one that is known
    Add {
        #[command(flatten)]
        one: One,
        #[command(flatten)]
        new: New,
    },
    /// Replace a passphrase by another
    Change {
        #[command(flatten)]
        one: One,
        #[command(flatten)]
        new: New,
    },
    /// Remove a passphrase, which then opens the image no more
    Remove {
        #[command(flatten)]
        one: One,
        /// Remove the passphrase of this slot, without knowing it
        #[arg(long)]
        slot: Option<u32>,
        /// Remove the last one too: the content is lost then
        #[arg(long)]
        even_last: bool,
    },
}

/// One encrypted image.
#[derive(clap::Args)]
pub(crate) struct One {
    /// The image
    image: PathBuf,
    #[command(flatten)]
    editing: Editing,
}

/// A new passphrase.
#[derive(clap::Args)]
pub(crate) struct New {
    /// The file of the new passphrase, without the newline at its end; otherwise the terminal is asked
    #[arg(long, value_name = "FILE")]
    new_passphrase_file: Option<PathBuf>,
    /// How long one try of the new passphrase is to take on this machine, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 2000)]
    iter_time: u64,
}

impl New {
    fn ask(&self, one: &One) -> anyhow::Result<vmwright_crypt::Passphrase> {
        let what = format!("new passphrase for {}", one.image.display());
        secret::for_new(self.new_passphrase_file.as_deref(), &what)
    }

    fn stretch(&self) -> Stretch {
        Stretch::Argon2id { time: Duration::from_millis(self.iter_time), memory_kib: 1 << 20, lanes: 4 }
    }
}

/// Runs a verb.
pub(crate) fn run(verb: &Verb) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::List { image, reading, json: as_json } => {
            let attempt = || format!("cannot list the keys of {}", image.display());
            let file = reading.transaction().open(image, Access::Read).with_context(attempt)?;
            let info = describe(&*file, reading.opening().choice()).with_context(attempt)?;
            let luks = info.luks().ok_or_else(|| Failure::refused("it is not encrypted by LUKS"));
            print(luks.with_context(attempt)?, *as_json)?;
        }
        Verb::Add { one, new } => {
            let slot = one.change("add a key to", |header, area, known| {
                Ok(header.add_passphrase(area, known, &new.ask(one)?, new.stretch())?)
            })?;
            line(format!("the new passphrase is in slot {slot}"))?;
        }
        Verb::Change { one, new } => {
            let slot = one.change("change a key of", |header, area, known| {
                Ok(header.change_passphrase(area, known, &new.ask(one)?, new.stretch())?)
            })?;
            line(format!("the new passphrase is in slot {slot}"))?;
        }
        Verb::Remove { one, slot: Some(slot), even_last } => {
            one.open("remove a key of", |header, area| Ok(header.remove_slot(area, *slot, *even_last)?))?;
        }
        Verb::Remove { one, slot: None, even_last } => {
            let slot = one.change("remove a key of", |header, area, known| {
                Ok(header.remove_passphrase(area, known, *even_last)?)
            })?;
            line(format!("slot {slot} is empty now"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl One {
    /// Lets `change` change the header, with a passphrase that is known.
    fn change<T>(
        &self,
        what: &str,
        change: impl FnOnce(&mut Header, &dyn Disk, &vmwright_crypt::Passphrase) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        self.open(what, |header, area| {
            let known = self.editing.opening().secret(&self.image)?;
            let known = known.ok_or_else(|| Failure::refused("it is not encrypted"))?;
            change(header, area, &known)
        })
    }

    /// Lets `change` change the header, in place: each step is durable before the next, and no copy of a key stays in
    /// another file.
    fn open<T>(
        &self,
        what: &str,
        change: impl FnOnce(&mut Header, &dyn Disk) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let attempt = || format!("cannot {what} {}", self.image.display());
        let open = || {
            self.editing.allow(&self.image)?;
            if self.editing.is_dry_run() {
                return Err(Failure::usage("keys are changed at once, so there is no dry run"));
            }
            let how = self.editing.opening().transaction().mode(WriteMode::Ordered);
            let file = Transaction::begin(how).open(&self.image, Access::Write)?;
            let area: Arc<dyn Disk> = key_area(file, self.editing.opening().choice())?;
            let mut header = Header::read(&*area)?;
            change(&mut header, &*area)
        };
        open().with_context(attempt)
    }
}

fn print(info: &LuksInfo, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        return json(&info.slots);
    }
    let mut table = Table::new(["SLOT", "IN USE", "STRETCHED BY", "MEMORY"]).right(0).right(3);
    for (index, slot) in info.slots.iter().enumerate() {
        let number = slot.number.unwrap_or(index as u32);
        let kdf = if slot.active { slot.kdf.unwrap_or("pbkdf2") } else { "" };
        let memory = slot.memory.map_or_else(String::new, |kib| size(u64::from(kib) << 10));
        table.row([number.to_string(), if slot.active { "yes" } else { "no" }.into(), kdf.into(), memory]);
    }
    table.print()
}
