//! Where bytes are, seen through the whole chain.

use vmwright_disk::{Extent, ExtentKind, check_range};

use super::read::Place;
use super::{Blocks, Frame, State};
use crate::Result;

/// So many blocks are looked at for one answer.
const MAX_BLOCKS: usize = 4096;

impl<F: Frame> Blocks<F> {
    /// Where the bytes from `offset` on are.
    pub(crate) fn extent(&self, offset: u64) -> vmwright_disk::Result<Extent> {
        let state = self.read_state();
        check_range(offset, 1, state.map.size)?;
        Ok(self.extent_in(&state, offset)?)
    }

    fn extent_in(&self, state: &State, offset: u64) -> Result<Extent> {
        let rest = state.map.size - offset;
        let (place, mut len) = self.run(state, offset, rest)?;
        for _ in 0..MAX_BLOCKS {
            if len >= rest {
                break;
            }
            let (next, more) = self.run(state, offset + len, rest - len)?;
            let follows = match (place, next) {
                (Place::File(host), Place::File(next)) => host.checked_add(len) == Some(next),
                (place, next) => place == next,
            };
            if !follows {
                break;
            }
            len += more;
        }
        let extent = |kind, len| Extent { start: offset, len, kind, depth: 0 };
        match place {
            Place::Nowhere => self.backing_extent(offset, len),
            Place::Zero => Ok(extent(ExtentKind::Zero, len)),
            Place::File(host) => {
                let beneath = self.file.extent_at(host)?;
                let kind = match beneath.kind {
                    // A hole in the file: a block here, and zeros.
                    ExtentKind::Unallocated => ExtentKind::Zero,
                    kind => kind,
                };
                Ok(extent(kind, len.min(beneath.len)))
            }
        }
    }

    fn backing_extent(&self, offset: u64, len: u64) -> Result<Extent> {
        let nothing = Extent { start: offset, len, kind: ExtentKind::Unallocated, depth: 0 };
        let Some(backing) = self.backing()? else { return Ok(nothing) };
        if offset >= backing.len() {
            return Ok(nothing);
        }
        let beneath = backing.extent_at(offset)?;
        let depth = beneath.depth.saturating_add(1);
        Ok(Extent { start: offset, len: beneath.len.min(len), kind: beneath.kind, depth })
    }
}
