//! Zeroing and discarding: grains are let go where that reads as zeros.

use super::read::Below;
use super::sparse::{Entry, RunKind, Sparse};
use super::{Store, Vmdk};
use crate::Result;

/// Zeros are written in pieces of this length where there is no other way.
const PIECE: u64 = 1 << 20;

/// What shall happen to a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// It reads as zeros afterwards.
    Zero,
    /// Its space is given back where that makes it zeros; else it stays.
    Discard,
}

impl Vmdk {
    /// Zeroes or discards a range that lies within the disk.
    pub(super) fn zero(&self, offset: u64, len: u64, mode: Mode) -> Result<()> {
        self.each_extent(offset, len, |extent, inside, part| {
            if matches!(extent.store, Store::Zero) {
                return Ok(());
            }
            self.check_extent(extent)?;
            self.prepare()?;
            let len = part.end - part.start;
            match &extent.store {
                Store::Flat { file, offset } if mode == Mode::Zero => Ok(file.zero_at(offset + inside, len)?),
                Store::Flat { file, offset } => Ok(file.discard(offset + inside, len)?),
                Store::Sparse(sparse) => sparse.zero(inside, len, mode, self.below(extent)),
                _ => Ok(()),
            }
        })
    }
}

impl Sparse {
    pub(super) fn zero(&self, offset: u64, len: u64, mode: Mode, below: Below<'_>) -> Result<()> {
        self.prepare()?;
        let mut done = 0;
        while done < len {
            done += self.zero_some(offset + done, len - done, mode, below)?;
        }
        Ok(())
    }

    /// Does one step; answers how many bytes that was.
    fn zero_some(&self, offset: u64, len: u64, mode: Mode, below: Below<'_>) -> Result<u64> {
        let mut state = self.write_state();
        state.check_sound()?;
        self.relieve(&mut state)?;
        let run = self.run_at(&state, offset, len)?;
        let skip = offset % self.grain;
        let grain_start = offset - skip;
        let part = (self.grain - skip).min(len);
        let is_whole = skip == 0 && (part == self.grain || offset + part == state.len);
        // Where that cannot be told, zeros are written in place.
        let shows_zeros = |run_len| below.zeros(offset, run_len).is_ok_and(|zeros| zeros >= run_len);
        match run.kind {
            RunKind::Zero => return Ok(run.len),
            RunKind::Unallocated => {
                let zeros = below.zeros(offset, run.len)?;
                if zeros > 0 {
                    return Ok(zeros);
                }
                if mode == Mode::Discard {
                    // What shows from beneath cannot be given back here.
                    return Ok(part.min(run.len));
                }
            }
            RunKind::Data { .. } | RunKind::Packed { .. } => {}
        }
        if is_whole && self.zeroed {
            self.link(&mut state, grain_start, Entry::Zero)?;
        } else if is_whole && matches!(run.kind, RunKind::Data { .. }) && shows_zeros(part) {
            self.link(&mut state, grain_start, Entry::Unallocated)?;
        } else if let RunKind::Data { host } = run.kind {
            // A grain that is used in part or hides something keeps its place.
            if mode == Mode::Zero {
                state.writer.check_not_metadata(host, part)?;
                self.reach(&mut state, host + part)?;
                self.file.zero_at(host, part)?;
            }
        } else {
            let part = part.min(PIECE);
            self.write_part(&mut state, &vec![0; part as usize], offset, below)?;
            return Ok(part);
        }
        Ok(part)
    }
}
