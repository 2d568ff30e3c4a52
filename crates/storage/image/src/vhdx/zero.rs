//! Zeros, and giving space back.

use vmwright_disk::{Disk, check_range};

use super::Vhdx;
use super::layout::{MIB, state as bat};
use super::map::{Block, RunKind};
use super::region::Place;
use super::state::State;
use crate::error::Reason;
use crate::{Error, Result};

/// At most so many zeros are written at a time where a parent would show.
const MAX_STEP: u64 = 1 << 20;

/// What is wanted of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Clear {
    /// That it reads as zeros.
    Zero,
    /// Its space, where that is to be had.
    Discard,
}

impl Vhdx {
    /// Clears a range of the disk.
    pub(super) fn clear(&self, offset: u64, len: u64, clear: Clear) -> Result<()> {
        self.check_writable()?;
        if len == 0 {
            return Ok(());
        }
        self.prepare()?;
        let mut done = 0;
        while done < len {
            let mut state = self.write_state();
            if state.writer.broken {
                return Err(Reason::FlushFailed.into());
            }
            let (at, rest) = (offset + done, len - done);
            check_range(at, rest, state.params.size)?;
            self.relieve(&mut state)?;
            let run = self.run_at(&state, at, rest)?;
            done += match run.kind {
                RunKind::Unallocated | RunKind::Zero => run.len,
                RunKind::Parent if clear == Clear::Discard => run.len,
                _ => self.clear_in_block(&mut state, at, rest, clear)?,
            };
        }
        Ok(())
    }

    /// Clears as much as lies within one block; answers how much that was.
    fn clear_in_block(&self, state: &mut State, offset: u64, max: u64, clear: Clear) -> Result<u64> {
        let block_size = state.params.block_size;
        let (block, skip) = (offset / block_size, offset % block_size);
        let len = max.min(block_size - skip);
        let whole = skip == 0 && len == state.params.used_in(block);
        let fixed = state.params.fixed;
        let old = self.block(state, block)?;
        match (old, clear) {
            (Block::Full(_) | Block::Partial(_), _) if whole && !fixed => {
                let what = if clear == Clear::Zero { bat::ZERO } else { bat::UNMAPPED };
                self.unlink(state, block, old, what)?;
            }
            (Block::Absent, Clear::Zero) if whole => self.unlink(state, block, old, bat::ZERO)?,
            (Block::Full(host), Clear::Zero) => self.view.zero_at(host + skip, len)?,
            (Block::Full(host), Clear::Discard) if !fixed => self.view.discard(host + skip, len)?,
            (Block::Partial(_) | Block::Absent, Clear::Zero) => {
                let len = len.min(MAX_STEP);
                self.write_sectors(state, block, skip, &vec![0; len as usize])?;
                return Ok(len);
            }
            (Block::Zero, _) | (_, Clear::Discard) => {}
        }
        Ok(len)
    }

    /// Drops all blocks, so that the parent shows everywhere.
    pub(super) fn drop_all(&self) -> Result<()> {
        self.prepare()?;
        let mut state = self.write_state();
        if state.params.parent.is_none() {
            return Err(Error::unsupported("emptying an image that has no parent"));
        }
        let (blocks, ratio) = (state.params.blocks(), state.params.chunk_ratio());
        for block in 0..blocks {
            self.relieve(&mut state)?;
            let old = self.block(&state, block)?;
            if old != Block::Absent {
                self.unlink(&mut state, block, old, bat::NOT_PRESENT)?;
            }
            // The bits go after the last block that they are about.
            let is_last = (block + 1).is_multiple_of(ratio) || block + 1 == blocks;
            if is_last && let Some(offset) = self.bitmap(&state, block)? {
                self.set_entry(&state, state.params.bitmap_entry_of(block), 0, bat::NOT_PRESENT)?;
                state.writer.freed.push(Place { offset, len: MIB });
            }
        }
        Ok(())
    }
}
