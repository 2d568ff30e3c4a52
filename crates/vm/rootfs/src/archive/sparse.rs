//! Files with holes: the forms that GNU tar has used.

use super::header::{BLOCK, number, text};
use super::pax::{self, Records};
use crate::{Error, Result};

/// The most pieces a file may have: each of them takes 16 bytes here.
const MOST: usize = 1 << 20;

/// Where the stored bytes of a file belong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Map {
    /// The length of the file, holes included.
    pub(super) size: u64,
    /// Offset and length of each stored piece, in order.
    pub(super) pieces: Vec<(u64, u64)>,
}

impl Map {
    /// Checks that pieces are in order, within the file, and together as long as what is stored.
    pub(super) fn checked(self, stored: u64, at: u64) -> Result<Self> {
        let mut end = 0_u64;
        let mut sum = 0_u64;
        for (offset, len) in &self.pieces {
            let piece_end =
                offset.checked_add(*len).filter(|piece_end| *offset >= end && *piece_end <= self.size);
            end = piece_end
                .ok_or_else(|| Error::damaged(at, "the pieces of a sparse file are out of order"))?;
            sum += len;
        }
        if sum != stored {
            return Err(Error::damaged(at, "the pieces of a sparse file are not what is stored of it"));
        }
        Ok(self)
    }

    /// Adds the pieces of an old GNU header or of a block behind it; answers whether another block follows.
    pub(super) fn add_old(&mut self, fields: &[u8], at: u64) -> Result<bool> {
        let (pieces, more) = fields.split_at(fields.len() / 24 * 24);
        for piece in pieces.chunks_exact(24) {
            if text(piece).is_empty() {
                break;
            }
            let field = |bytes| number(bytes).and_then(|n| u64::try_from(n).ok());
            let wrong = || Error::damaged(at, "a piece of a sparse file is no number");
            self.push(field(&piece[..12]).ok_or_else(wrong)?, field(&piece[12..]).ok_or_else(wrong)?, at)?;
        }
        Ok(more.first().is_some_and(|more| *more != 0))
    }

    fn push(&mut self, offset: u64, len: u64, at: u64) -> Result<()> {
        if self.pieces.len() >= MOST {
            return Err(Error::unsupported(at, "a sparse file of more than 2^20 pieces"));
        }
        self.pieces.push((offset, len));
        Ok(())
    }

    /// The map that extended headers of the forms 0.0 and 0.1 hold: `offset,length,…`.
    pub(super) fn of_records(records: &Records, at: u64) -> Result<Option<Self>> {
        let (Some(size), Some(list)) =
            (records.get(&b"GNU.sparse.size"[..]), records.get(&b"GNU.sparse.map"[..]))
        else {
            return Ok(None);
        };
        let wrong = || Error::damaged(at, "the map of a sparse file is damaged");
        let mut map = Self { size: pax::number(size).ok_or_else(wrong)?, pieces: Vec::new() };
        let mut numbers = list.split(|byte| *byte == b',');
        while let Some(offset) = numbers.next() {
            let offset = pax::number(offset).ok_or_else(wrong)?;
            map.push(offset, numbers.next().and_then(pax::number).ok_or_else(wrong)?, at)?;
        }
        Ok(Some(map))
    }

    /// The map of the form 1.0, which stands before the content: decimal numbers on lines, filled up to a block. `block`
    /// answers the next one. Also answers how many bytes that took.
    pub(super) fn before_content(
        size: u64,
        at: u64,
        block: &mut dyn FnMut() -> Result<[u8; BLOCK]>,
    ) -> Result<(Self, u64)> {
        let (mut taken, mut digits, mut wanted) = (0, Vec::new(), None);
        let mut numbers = Vec::new();
        loop {
            let bytes = block()?;
            taken += BLOCK as u64;
            for byte in bytes {
                if byte != b'\n' {
                    digits.push(byte);
                    if digits.len() > 20 {
                        return Err(Error::damaged(at, "the map of a sparse file is damaged"));
                    }
                    continue;
                }
                let value = pax::number(&digits);
                let value = value.ok_or_else(|| Error::damaged(at, "the map of a sparse file is damaged"))?;
                digits.clear();
                match wanted {
                    None if value > MOST as u64 => {
                        return Err(Error::unsupported(at, "a sparse file of more than 2^20 pieces"));
                    }
                    None => wanted = Some(value as usize * 2),
                    Some(_) => numbers.push(value),
                }
                if wanted == Some(numbers.len()) {
                    let pieces = numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
                    return Ok((Self { size, pieces }, taken));
                }
            }
        }
    }
}
