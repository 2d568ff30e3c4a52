//! `vmwright fs uuid`

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, anyhow};
use serde::Serialize;
use uuid::{Builder, Uuid};
use vmwright_guest::fs::{Purpose, Target};

use super::source::{Editing, Place};
use crate::output::{json, line};

/// What `fs uuid` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    place: Place,
    /// The new UUID, or how one is made: random, time, or clear for none. Otherwise the UUID is printed
    #[arg(value_parser = New::parse)]
    uuid: Option<New>,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    editing: Editing,
}

/// A new UUID.
#[derive(Clone, Copy)]
pub(super) enum New {
    Random,
    Time,
    This(Uuid),
}

impl New {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match text {
            "random" => Ok(Self::Random),
            "time" => Ok(Self::Time),
            "clear" | "null" => Ok(Self::This(Uuid::nil())),
            _ => match Uuid::try_parse(text) {
                Ok(uuid) => Ok(Self::This(uuid)),
                Err(_) => Err("it is neither a UUID nor random, time or clear".to_owned()),
            },
        }
    }

    pub(super) fn make(self) -> anyhow::Result<Uuid> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(|_| anyhow!("the host has no random numbers"))?;
        match self {
            Self::This(uuid) => Ok(uuid),
            Self::Random => Ok(Builder::from_random_bytes(bytes).into_uuid()),
            Self::Time => {
                // Steps of 100 ns since the Gregorian calendar began, in 1582.
                const BEGIN: u64 = 0x01b2_1dd2_1381_4000;
                let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                let ticks = u64::try_from(since.as_nanos() / 100).unwrap_or(0).saturating_add(BEGIN);
                let counter = u16::from_le_bytes([bytes[0], bytes[1]]);
                // A node that no network card has: the bit of groups is set.
                let node = [bytes[2] | 1, bytes[3], bytes[4], bytes[5], bytes[6], bytes[7]];
                Ok(Builder::from_gregorian_timestamp(ticks, counter, &node).into_uuid())
            }
        }
    }
}

#[derive(Serialize)]
struct Answer {
    uuid: Option<String>,
}

/// Prints or changes the UUID.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let uuid = match args.uuid {
        None => {
            let read = || Ok(args.editing.read(&args.place)?.filesystem_to_read()?.identity().uuid);
            let read: anyhow::Result<_> = read();
            read.with_context(|| format!("cannot read the UUID of {}", args.place.shown()))?
        }
        Some(new) => {
            let uuid = new.make()?.to_string();
            let change = |target: &Target| {
                let mut filesystem = target.filesystem()?;
                filesystem.set_uuid(&uuid)?;
                filesystem.sync()?;
                Ok(())
            };
            let changed = args.editing.edit(&args.place, Purpose::Filesystem, args.json, change);
            changed.with_context(|| format!("cannot change the UUID of {}", args.place.shown()))?;
            Some(uuid)
        }
    };
    match args.json {
        true => json(&Answer { uuid }),
        false => line(uuid.unwrap_or_default()),
    }
}
