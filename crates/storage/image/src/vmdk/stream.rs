//! Writing a stream: compressed grains in rising order, each grain table behind its grains, the directory at the end.
//!
//! ```text
//! header ─ descriptor ─ grain ─ grain … ─ table ─ grain … ─ table ─ directory ─ footer ─ end of stream
//!                       └ sector, length, zlib stream, padding  └ each behind a marker of one sector
//! ```

use super::layout::{
    MARKER_DIRECTORY, MARKER_END, MARKER_FOOTER, MARKER_TABLE, SECTOR, SparseHeader, marker,
};
use super::packed::compressor;
use super::sparse::{Sparse, State};
use crate::error::Reason;
use crate::{Error, Result};

/// The file is made longer by so much ahead of need.
const AHEAD: u64 = if cfg!(test) { 128 << 10 } else { 8 << 20 };

/// A stream in the making.
pub(super) struct Stream {
    /// Where the next grain goes.
    end: u64,
    /// The first offset in the disk that was not passed yet.
    passed: u64,
    /// The table whose grains are being written.
    open: Option<(usize, Vec<u32>)>,
    /// Whether something was stored since the tail was written.
    dirty: bool,
    /// A checksum of all that was stored.
    sum: u32,
}

impl Stream {
    /// A stream without any grain, whose grains begin at `end`.
    pub(super) fn new(end: u64) -> Self {
        Self { end, passed: 0, open: None, dirty: false, sum: 0 }
    }

    /// The table of this index, if it is being filled.
    pub(super) fn table(&self, index: usize) -> Option<Vec<u8>> {
        let (_, table) = self.open.as_ref().filter(|(open, _)| *open == index)?;
        Some(encode(table))
    }

    /// The index of the table that is being filled.
    pub(super) fn open_index(&self) -> Option<usize> {
        self.open.as_ref().map(|(index, _)| *index)
    }

    /// The checksum of all that was stored.
    pub(super) fn sum(&self) -> u32 {
        self.sum
    }
}

fn encode(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A marker, and what it announces in whole sectors.
fn marked(kind: u32, mut content: Vec<u8>) -> Vec<u8> {
    content.resize(content.len().next_multiple_of(SECTOR as usize), 0);
    let mut bytes = marker(content.len() as u64 / SECTOR, kind).to_vec();
    bytes.append(&mut content);
    bytes
}

impl Sparse {
    /// Appends a grain that was never written before.
    pub(super) fn store_packed(&self, offset: u64, data: &[u8], packed: Option<&[u8]>) -> Result<()> {
        let mut made = Vec::new();
        let packed = match packed {
            Some(packed) => packed,
            None => {
                compressor(self.grain as usize, None)?.pack(data, &mut made)?;
                &made
            }
        };
        let (coverage, entries) = (self.coverage(), self.entries as usize);
        let mut state = self.write_state();
        let state = &mut *state;
        let Some(stream) = &mut state.stream else { return Err(not_in_place()) };
        if offset < stream.passed || !offset.is_multiple_of(self.grain) || offset >= state.len {
            return Err(Error::invalid("a stream", "grains are stored whole and in rising order"));
        }
        let index = (offset / coverage) as usize;
        if stream.open_index().is_some_and(|open| open != index) {
            self.close_table(state)?;
        }
        let Some(stream) = &mut state.stream else { return Err(not_in_place()) };
        let mut bytes = (offset / SECTOR).to_le_bytes().to_vec();
        bytes.extend_from_slice(&(packed.len() as u32).to_le_bytes());
        bytes.extend_from_slice(packed);
        bytes.resize(bytes.len().next_multiple_of(SECTOR as usize), 0);
        let sector = self.append(stream.end, &bytes)?;
        let (_, table) = stream.open.get_or_insert_with(|| (index, vec![0; entries]));
        if let Some(entry) = table.get_mut((offset % coverage / self.grain) as usize) {
            *entry = sector;
        }
        stream.end += bytes.len() as u64;
        stream.passed = offset + self.grain;
        stream.dirty = true;
        stream.sum = crc32c::crc32c_append(stream.sum, &bytes);
        Ok(())
    }

    /// Writes the table that is being filled behind its grains.
    fn close_table(&self, state: &mut State) -> Result<()> {
        let Some(stream) = &mut state.stream else { return Ok(()) };
        let Some((index, table)) = stream.open.take() else { return Ok(()) };
        let bytes = marked(MARKER_TABLE, encode(&table));
        let sector = self.append(stream.end, &bytes)?;
        stream.end += bytes.len() as u64;
        set(&mut state.gd, index, sector + 1)
    }

    /// Writes bytes at a place past all that is in use; answers its sector.
    fn append(&self, at: u64, bytes: &[u8]) -> Result<u32> {
        // A damaged header may say any place.
        let sector = u32::try_from(at / SECTOR).map_err(|_| Error::from(Reason::Full))?;
        let end = at + bytes.len() as u64;
        if end > self.file.len() {
            self.file.set_len(end + AHEAD).or_else(|_| self.file.set_len(end))?;
        }
        self.file.write_at(bytes, at)?;
        Ok(sector)
    }

    /// Writes what ends the stream; answers whether anything was stored since it was written last. Grains may
    /// follow in its place.
    pub(super) fn finish_stream(&self) -> Result<bool> {
        let mut state = self.write_state();
        let state = &mut *state;
        let (Some(stream), Some(header)) = (&mut state.stream, &state.header) else { return Ok(false) };
        if !std::mem::take(&mut stream.dirty) {
            return Ok(false);
        }
        let mut end = stream.end;
        if let Some((index, table)) = &stream.open {
            let bytes = marked(MARKER_TABLE, encode(table));
            let sector = self.append(end, &bytes)?;
            set(&mut state.gd, *index, sector + 1)?;
            end += bytes.len() as u64;
        }
        let tail = tail(&state.gd, end / SECTOR, header);
        self.append(end, &tail)?;
        state.gd_at = end + SECTOR;
        self.file.set_len(end + tail.len() as u64)?;
        Ok(true)
    }
}

fn set(gd: &mut [u32], index: usize, sector: u32) -> Result<()> {
    let entry =
        gd.get_mut(index).ok_or_else(|| Error::invalid("a stream", "a grain is past the end of the disk"))?;
    *entry = sector;
    Ok(())
}

/// What a change of a compressed image is refused with.
pub(super) fn not_in_place() -> Error {
    Error::unsupported(
        "changing a stream-optimized VMDK, which is written once from its beginning to its end,",
    )
}

/// The end of a stream from this sector on: the directory, the footer and the marker of the end.
pub(super) fn tail(gd: &[u32], sector: u64, header: &SparseHeader) -> Vec<u8> {
    let mut bytes = marked(MARKER_DIRECTORY, encode(gd));
    let footer = SparseHeader { gd: sector + 1, ..*header };
    bytes.extend_from_slice(&marked(MARKER_FOOTER, footer.encode().to_vec()));
    bytes.extend_from_slice(&marker(0, MARKER_END));
    bytes
}
