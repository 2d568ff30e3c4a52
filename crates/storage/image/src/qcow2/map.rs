//! From an offset in the disk to where its bytes are in the image.

use super::Qcow2;
use super::layout::{COMPRESSED, COPIED, INCOMPATIBLE_EXTENDED_L2, OFFSET_MASK, Version, ZERO};
use super::state::State;
use crate::cache::Table;
use crate::{Error, Result};

/// What a standard or compressed L2 entry says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum L2Entry {
    Unallocated,
    /// Reads as zeros; a cluster may be kept for it all the same.
    Zero {
        host: Option<u64>,
        copied: bool,
    },
    Data {
        host: u64,
        copied: bool,
    },
    Compressed(Packed),
}

/// Where a compressed cluster is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Packed {
    pub(super) host: u64,
    /// An upper bound of its length in bytes: the data ends somewhere in the last sector.
    pub(super) len: u64,
}

impl Packed {
    pub(super) fn parse(raw: u64, cluster_bits: u32) -> Self {
        let offset_bits = 62 - (cluster_bits - 8);
        let host = raw & ((1 << offset_bits) - 1);
        let sectors = (raw & !(COPIED | COMPRESSED)) >> offset_bits;
        Self { host, len: (sectors + 1) * 512 - host % 512 }
    }

    /// The L2 entry for `len` bytes at `host`.
    pub(super) fn encode(host: u64, len: u64, cluster_bits: u32) -> u64 {
        let offset_bits = 62 - (cluster_bits - 8);
        let sectors = (host + len - 1) / 512 - host / 512;
        COMPRESSED | sectors << offset_bits | host
    }
}

/// A run of bytes of the disk that are kept in the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) kind: RunKind,
    /// In bytes, never zero.
    pub(super) len: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RunKind {
    Unallocated,
    Zero,
    /// From this offset of the file on; `exclusive` where the refcount is known to be one.
    Data {
        host: u64,
        exclusive: bool,
    },
    /// `skip` bytes into the cluster that unpacks from here.
    Compressed {
        packed: Packed,
        skip: u64,
    },
}

impl RunKind {
    /// Whether `next`, which follows `len` bytes of this, continues it.
    fn continues(self, len: u64, next: Self) -> bool {
        match (self, next) {
            (Self::Data { host, exclusive }, Self::Data { host: next_host, exclusive: next_exclusive }) => {
                host.checked_add(len) == Some(next_host) && exclusive == next_exclusive
            }
            (Self::Compressed { .. }, _) => false,
            (a, b) => a == b,
        }
    }
}

impl Qcow2 {
    /// Where one L2 entry is, given a table; also which table maps `offset`.
    pub(super) fn l1_index(&self, offset: u64) -> usize {
        (offset / self.header.l2_coverage()) as usize
    }

    /// The offset of the L2 table that maps `offset`, if there is one.
    pub(super) fn l2_table(&self, state: &State, offset: u64) -> Result<Option<u64>> {
        let index = self.l1_index(offset);
        let entry = state.l1.get(index).copied().unwrap_or(0);
        let table = entry & OFFSET_MASK;
        if table == 0 {
            return Ok(None);
        }
        let at = state.header.l1_offset + index as u64 * 8;
        self.check_table(table, at)?;
        Ok(Some(table))
    }

    /// Checks where an entry at `at` of the L1 table points.
    pub(super) fn check_table(&self, table: u64, at: u64) -> Result<()> {
        let cluster_size = self.header.cluster_size();
        if !table.is_multiple_of(cluster_size) {
            return Err(Error::corrupt("an L1 entry", at, "a multiple of the cluster size", table));
        }
        if table.checked_add(cluster_size).is_none_or(|end| end > self.file.len()) {
            return Err(Error::corrupt("an L1 entry", at, "a table within the file", table));
        }
        Ok(())
    }

    pub(super) fn l2_entry_size(&self) -> u64 {
        if self.header.has(INCOMPATIBLE_EXTENDED_L2) { 16 } else { 8 }
    }

    /// Where in the file the L2 entry of `offset` is, within its table at `table`.
    pub(super) fn l2_entry_at(&self, table: u64, offset: u64) -> u64 {
        let index = (offset % self.header.l2_coverage()) >> self.header.cluster_bits;
        table + index * self.l2_entry_size()
    }

    /// Checks an L2 entry found at `at`.
    pub(super) fn parse_l2(&self, raw: u64, at: u64) -> Result<L2Entry> {
        if raw & COMPRESSED != 0 {
            let packed = Packed::parse(raw, self.header.cluster_bits);
            if packed.host >= self.file.len() || packed.host < self.header.cluster_size() {
                let expected = "compressed data within the file, after the header";
                return Err(Error::corrupt("an L2 entry", at, expected, packed.host));
            }
            return Ok(L2Entry::Compressed(packed));
        }
        let (host, copied) = (raw & OFFSET_MASK, raw & COPIED != 0);
        let zero = raw & ZERO != 0 && !self.header.has(INCOMPATIBLE_EXTENDED_L2);
        if zero && self.header.version == Version::V2 {
            return Err(Error::corrupt("an L2 entry", at, "no zero flag in version 2", raw));
        }
        if host % self.header.cluster_size() != 0 {
            return Err(Error::corrupt("an L2 entry", at, "a multiple of the cluster size", host));
        }
        if host >= self.file.len() && host != 0 {
            return Err(Error::corrupt("an L2 entry", at, "a cluster within the file", host));
        }
        Ok(match (zero, host) {
            (false, 0) => L2Entry::Unallocated,
            (false, _) => L2Entry::Data { host, copied },
            (true, 0) => L2Entry::Zero { host: None, copied },
            (true, _) => L2Entry::Zero { host: Some(host), copied },
        })
    }

    /// The entry of the cluster that holds `offset`; not for extended L2 entries.
    pub(super) fn entry(&self, state: &State, offset: u64) -> Result<L2Entry> {
        let Some(table) = self.l2_table(state, offset)? else { return Ok(L2Entry::Unallocated) };
        let at = self.l2_entry_at(table, offset);
        let slice_at = at - at % self.cache.slice_len();
        let slice = self.cache.get(&*self.file, Table::L2, slice_at)?;
        self.parse_l2(read_u64(&slice, (at - slice_at) as usize), at)
    }

    /// Where the bytes from `offset` on are, for as long as one answer holds but at most `max` bytes.
    ///
    /// `offset` lies within the disk and `max` does not reach past its end. Looks at one slice of one table.
    pub(super) fn run_at(&self, state: &State, offset: u64, max: u64) -> Result<Run> {
        let coverage = self.header.l2_coverage();
        let Some(table) = self.l2_table(state, offset)? else {
            return Ok(Run { kind: RunKind::Unallocated, len: self.unmapped_tables(state, offset, max)? });
        };
        let in_table = max.min(coverage - offset % coverage);
        let at = self.l2_entry_at(table, offset);
        let slice_at = at - at % self.cache.slice_len();
        let slice = self.cache.get(&*self.file, Table::L2, slice_at)?;

        let mut index = (at - slice_at) as usize;
        let mut run = self.unit(&slice, index, slice_at, offset)?;
        while run.len < in_table {
            let next = offset + run.len;
            if next.is_multiple_of(self.header.cluster_size()) {
                index += self.l2_entry_size() as usize;
            }
            if index >= slice.len() {
                break;
            }
            let following = self.unit(&slice, index, slice_at, next)?;
            if !run.kind.continues(run.len, following.kind) {
                break;
            }
            run.len += following.len;
        }
        run.len = run.len.min(in_table);
        Ok(run)
    }

    /// How far from `offset` on no L2 table exists.
    fn unmapped_tables(&self, state: &State, offset: u64, max: u64) -> Result<u64> {
        let coverage = self.header.l2_coverage();
        let mut len = coverage - offset % coverage;
        while len < max && self.l2_table(state, offset + len)?.is_none() {
            len += coverage;
        }
        Ok(len.min(max))
    }

    /// The rest of the cluster (or of the 32nd part of one) that holds `offset`, by its entry at `index`.
    fn unit(&self, slice: &[u8], index: usize, slice_at: u64, offset: u64) -> Result<Run> {
        let cluster_size = self.header.cluster_size();
        let skip = offset % cluster_size;
        let at = slice_at + index as u64;
        let entry = self.parse_l2(read_u64(slice, index), at)?;
        let whole = cluster_size - skip;
        if let L2Entry::Compressed(packed) = entry {
            return Ok(Run { kind: RunKind::Compressed { packed, skip }, len: whole });
        }
        if self.header.has(INCOMPATIBLE_EXTENDED_L2) {
            return self.subcluster(entry, read_u64(slice, index + 8), at, skip);
        }
        let kind = match entry {
            L2Entry::Unallocated => RunKind::Unallocated,
            L2Entry::Zero { .. } => RunKind::Zero,
            L2Entry::Data { host, copied } => RunKind::Data { host: host + skip, exclusive: copied },
            L2Entry::Compressed(packed) => RunKind::Compressed { packed, skip },
        };
        Ok(Run { kind, len: whole })
    }

    /// One of the 32 parts of a cluster with an extended entry.
    fn subcluster(&self, entry: L2Entry, bitmap: u64, at: u64, skip: u64) -> Result<Run> {
        let part_size = self.header.cluster_size() / 32;
        let part = skip / part_size;
        let allocated = bitmap >> part & 1 != 0;
        let zero = bitmap >> (32 + part) & 1 != 0;
        let kind = match (allocated, zero, entry) {
            (true, true, _) => {
                return Err(Error::corrupt(
                    "an extended L2 entry",
                    at + 8,
                    "no part both set and zero",
                    bitmap,
                ));
            }
            (false, true, _) => RunKind::Zero,
            (false, false, _) => RunKind::Unallocated,
            (true, false, L2Entry::Data { host, copied }) => {
                RunKind::Data { host: host + skip, exclusive: copied }
            }
            (true, false, _) => {
                return Err(Error::corrupt(
                    "an extended L2 entry",
                    at,
                    "a cluster for its allocated parts",
                    0,
                ));
            }
        };
        Ok(Run { kind, len: part_size - skip % part_size })
    }
}

/// The big-endian number at `index`, which the caller keeps within the slice.
pub(super) fn read_u64(bytes: &[u8], index: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[index..index + 8]);
    u64::from_be_bytes(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_place_of_a_compressed_cluster_encodes_and_parses_back(
            host in 65536u64..1 << 40, len in 1u64..65536, cluster_bits in 16u32..=21,
        ) {
            let packed = Packed::parse(Packed::encode(host, len, cluster_bits), cluster_bits);
            prop_assert_eq!(packed.host, host);
            prop_assert!(packed.len >= len && packed.len < len + 512);
        }
    }
}
