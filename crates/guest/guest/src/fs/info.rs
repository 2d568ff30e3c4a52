use serde::Serialize;
use vmwright_ext4::{Description, Ext4, Options, describe};

use super::{Format, Target};
use crate::{Result, Volume};

/// What is known of a filesystem.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Info {
    /// The volume that it is on.
    pub volume: Volume,
    /// What its superblock says.
    #[serde(flatten)]
    pub description: Description,
    /// Why it cannot be opened, where it cannot: the rest is then what the superblock alone says.
    pub problem: Option<String>,
    /// The fewest bytes that it can be shrunk to, where that can be told.
    pub minimum: Option<u64>,
}

impl Target {
    /// Says what is known of the filesystem, also where it cannot be opened.
    pub fn info(&self) -> Result<Info> {
        let Format::Ext = self.format()?;
        let (description, problem) = match Ext4::open(self.disk().clone(), Options::default()) {
            Ok(opened) => (opened.describe(), None),
            Err(error) => {
                let known = describe(&**self.disk()).map_err(|error| self.failed(error))?;
                (known, Some(error.to_string()))
            }
        };
        let minimum = if problem.is_none() { self.minimum().ok() } else { None };
        Ok(Info { volume: self.volume().clone(), description, problem, minimum })
    }
}
