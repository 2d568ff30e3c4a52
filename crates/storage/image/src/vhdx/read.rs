//! Reading.

use std::sync::Arc;

use vmwright_disk::{Disk, Extent, ExtentKind};

use super::map::RunKind;
use super::state::State;
use super::{Backing, Vhdx};
use crate::Result;
use crate::error::Reason;

impl Vhdx {
    /// Fills `buf` from `offset` on; the range lies within the disk.
    pub(super) fn read(&self, state: &State, buf: &mut [u8], offset: u64) -> Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let run = self.run_at(state, at, (buf.len() - done) as u64)?;
            let part = &mut buf[done..done + run.len as usize];
            match run.kind {
                RunKind::Unallocated | RunKind::Zero => part.fill(0),
                RunKind::Parent => self.read_parent(part, at)?,
                RunKind::Data { host } => self.view.read_at(part, host)?,
            }
            done += run.len as usize;
        }
        Ok(())
    }

    /// Reads what the parent has, which may be shorter.
    pub(super) fn read_parent(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let parent = self.parent()?;
        let there = parent.len().saturating_sub(offset).min(buf.len() as u64) as usize;
        let (present, missing) = buf.split_at_mut(there);
        missing.fill(0);
        if !present.is_empty() {
            parent.read_at(present, offset)?;
        }
        Ok(())
    }

    /// The parent, which the image has.
    pub(super) fn parent(&self) -> Result<&Arc<dyn Disk>> {
        match &self.backing {
            Backing::Open(disk) => Ok(disk),
            Backing::None => Err(Reason::BackingNotOpened { name: String::new() }.into()),
            Backing::NotOpened { name } => Err(Reason::BackingNotOpened { name: name.clone() }.into()),
        }
    }

    /// Where the bytes from `offset` on are, seen through the whole chain.
    pub(super) fn extent(&self, state: &State, offset: u64) -> Result<Extent> {
        let run = self.run_at(state, offset, state.params.size - offset)?;
        let here = |kind, len| Extent { start: offset, len, kind, depth: 0 };
        match run.kind {
            RunKind::Unallocated => Ok(here(ExtentKind::Unallocated, run.len)),
            RunKind::Zero => Ok(here(ExtentKind::Zero, run.len)),
            RunKind::Data { host } => {
                let beneath = self.view.extent_at(host)?;
                let kind = match beneath.kind {
                    // A hole in the file: allocated here, and zeros.
                    ExtentKind::Unallocated => ExtentKind::Zero,
                    kind => kind,
                };
                Ok(here(kind, run.len.min(beneath.len)))
            }
            RunKind::Parent => {
                let parent = self.parent()?;
                if offset >= parent.len() {
                    return Ok(here(ExtentKind::Unallocated, run.len));
                }
                let beneath = parent.extent_at(offset)?;
                let depth = beneath.depth.saturating_add(1);
                Ok(Extent { start: offset, len: beneath.len.min(run.len), kind: beneath.kind, depth })
            }
        }
    }
}
