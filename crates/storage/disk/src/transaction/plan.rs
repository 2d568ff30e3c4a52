use std::path::PathBuf;

use super::Member;
use super::changes::Changes;
use crate::redo::RecordKind;
use crate::{Disk, Result};

/// What a transaction changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// The files that change, sorted by path.
    pub files: Vec<FilePlan>,
}

/// What a transaction changes in one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilePlan {
    /// The canonical path.
    pub path: PathBuf,
    /// The length before, in bytes.
    pub old_len: u64,
    /// The length afterwards, in bytes.
    pub new_len: u64,
    /// How many bytes are written, in whole sectors of 512; what would be overwritten by the same is left out.
    pub written: u64,
    /// How many bytes that held something become zeros.
    pub zeroed: u64,
    /// In how many pieces.
    pub records: u64,
}

impl FilePlan {
    pub(super) fn new(path: PathBuf, old_len: u64, new_len: u64) -> Self {
        Self { path, old_len, new_len, written: 0, zeroed: 0, records: 0 }
    }

    pub(super) fn add(&mut self, record: &crate::redo::Record) {
        self.records += 1;
        match record.kind {
            RecordKind::Write => self.written += record.len,
            RecordKind::Zero if !record.old_zero => self.zeroed += record.len,
            RecordKind::Zero | RecordKind::Cut => {}
        }
    }

    pub(super) fn changes_something(&self) -> bool {
        self.records > 0 || self.old_len != self.new_len
    }
}

pub(super) fn plan(members: &[Member]) -> Result<Plan> {
    let mut files = Vec::new();
    for member in members {
        let Some(overlay) = &member.overlay else { continue };
        let file = &member.file;
        let mut plan = FilePlan::new(file.path().to_owned(), file.len(), overlay.len());
        Changes::new(file, overlay).walk(&mut |piece| {
            plan.add(&piece.record);
            Ok(())
        })?;
        if plan.changes_something() {
            files.push(plan);
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(Plan { files })
}
