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

/// An L2 entry as it stands in its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RawEntry {
    pub(super) word: u64,
    /// The second word, where entries are extended; else zero.
    pub(super) bitmap: u64,
}

/// A cluster by its entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cluster {
    Plain(Parts),
    Compressed(Packed),
}

/// A cluster that is not compressed. It has 32 parts where L2 entries are extended, else one; bit 0 is the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Parts {
    /// Where it is, or is kept a place for.
    pub(super) host: Option<u64>,
    /// Whether that place is known to have no other reference.
    pub(super) copied: bool,
    /// The parts whose bytes are there.
    pub(super) allocated: u32,
    /// The parts that read as zeros. What is neither is not recorded.
    pub(super) zero: u32,
}

impl Parts {
    /// The place, if it may be written.
    pub(super) fn own_host(self) -> Option<u64> {
        self.host.filter(|_| self.copied)
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
        if self.is_extended() { 16 } else { 8 }
    }

    /// Whether L2 entries have a second word, with two bits for each of 32 parts of a cluster.
    pub(super) fn is_extended(&self) -> bool {
        self.header.has(INCOMPATIBLE_EXTENDED_L2)
    }

    /// The length of a part of a cluster in bytes: what is allocated, copied and zeroed on its own.
    pub(super) fn part_size(&self) -> u64 {
        if self.is_extended() { self.header.cluster_size() / 32 } else { self.header.cluster_size() }
    }

    /// The bits of all parts of a cluster.
    pub(super) fn all_parts(&self) -> u32 {
        if self.is_extended() { u32::MAX } else { 1 }
    }

    /// The bits of the parts that `len` bytes, `skip` bytes into a cluster, touch.
    pub(super) fn touched_parts(&self, skip: u64, len: u64) -> u32 {
        let (first, end) = (skip / self.part_size(), (skip + len).div_ceil(self.part_size()));
        (u64::from(u32::MAX) >> (32 - (end - first)) << first) as u32
    }

    /// The entry of a cluster that is not compressed.
    pub(super) fn encode(&self, parts: Parts) -> RawEntry {
        let Parts { host, copied, allocated, zero } = parts;
        let word = host.unwrap_or(0) | if copied && host.is_some() { COPIED } else { 0 };
        match self.is_extended() {
            true => RawEntry { word, bitmap: u64::from(zero) << 32 | u64::from(allocated) },
            false => RawEntry { word: word | if zero != 0 { ZERO } else { 0 }, bitmap: 0 },
        }
    }

    /// The entry of a cluster whose every byte is at `host`, which nothing else references.
    pub(super) fn encode_data(&self, host: u64) -> RawEntry {
        let allocated = self.all_parts();
        self.encode(Parts { host: Some(host), copied: true, allocated, zero: 0 })
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
            if self.has_data_file() {
                return Err(Error::corrupt("an L2 entry", at, "nothing compressed beside a data file", raw));
            }
            if self.is_encrypted() {
                return Err(Error::unsupported("a compressed cluster in an encrypted image"));
            }
            return Ok(L2Entry::Compressed(packed));
        }
        let (host, copied) = (raw & OFFSET_MASK, raw & COPIED != 0);
        let zero = raw & ZERO != 0 && !self.is_extended();
        if zero && self.header.version == Version::V2 {
            return Err(Error::corrupt("an L2 entry", at, "no zero flag in version 2", raw));
        }
        if host % self.header.cluster_size() != 0 {
            return Err(Error::corrupt("an L2 entry", at, "a multiple of the cluster size", host));
        }
        if host >= self.file.len() && host != 0 && !self.has_data_file() {
            return Err(Error::corrupt("an L2 entry", at, "a cluster within the file", host));
        }
        // An external data file has a cluster at offset 0, and the flag says whether it is meant.
        let there = host != 0 || (self.has_data_file() && copied);
        Ok(match (zero, there) {
            (false, false) => L2Entry::Unallocated,
            (false, true) => L2Entry::Data { host, copied },
            (true, false) => L2Entry::Zero { host: None, copied },
            (true, true) => L2Entry::Zero { host: Some(host), copied },
        })
    }

    /// The cluster that holds `offset`, by its entry at `index` of a slice.
    fn parse_cluster(&self, slice: &[u8], index: usize, slice_at: u64, offset: u64) -> Result<Cluster> {
        let at = slice_at + index as u64;
        let (host, copied, data) = match self.parse_l2(read_u64(slice, index), at)? {
            L2Entry::Compressed(packed) => return Ok(Cluster::Compressed(packed)),
            L2Entry::Unallocated => (None, false, 0),
            L2Entry::Data { host, copied } => (Some(host), copied, self.all_parts()),
            L2Entry::Zero { host, copied } => {
                return self.placed(Parts { host, copied, allocated: 0, zero: 1 }, at, offset);
            }
        };
        if !self.is_extended() {
            return self.placed(Parts { host, copied, allocated: data, zero: 0 }, at, offset);
        }
        let bitmap = read_u64(slice, index + 8);
        let (allocated, zero) = (bitmap as u32, (bitmap >> 32) as u32);
        let expected = match () {
            () if allocated & zero != 0 => "no part both set and zero",
            () if allocated != 0 && host.is_none() => "a cluster for its allocated parts",
            () => return self.placed(Parts { host, copied, allocated, zero }, at, offset),
        };
        Err(Error::corrupt("an extended L2 entry", at + 8, expected, bitmap))
    }

    /// Checks that what is in an external data file is where it is on the disk.
    ///
    /// QEMU never puts it elsewhere. Else a place could be taken twice, as nothing counts references there.
    fn placed(&self, parts: Parts, at: u64, offset: u64) -> Result<Cluster> {
        let expected = offset - offset % self.header.cluster_size();
        match parts.host {
            Some(host) if self.has_data_file() && host != expected => match self.is_raw_data() {
                true => {
                    Err(Error::corrupt("an L2 entry of a raw data file", at, "the offset on the disk", host))
                }
                false => Err(Error::unsupported("an external data file whose order is not that of the disk")),
            },
            _ => Ok(Cluster::Plain(parts)),
        }
    }

    /// The cluster that holds `offset`.
    pub(super) fn cluster_at(&self, state: &State, offset: u64) -> Result<Cluster> {
        let Some(table) = self.l2_table(state, offset)? else {
            return Ok(Cluster::Plain(Parts { host: None, copied: false, allocated: 0, zero: 0 }));
        };
        let at = self.l2_entry_at(table, offset);
        let slice_at = at - at % self.cache.slice_len();
        let slice = self.cache.get(&*self.file, Table::L2, slice_at)?;
        self.parse_cluster(&slice, (at - slice_at) as usize, slice_at, offset)
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

    /// What follows from `offset` on within its cluster, by the entry at `index`.
    fn unit(&self, slice: &[u8], index: usize, slice_at: u64, offset: u64) -> Result<Run> {
        let skip = offset % self.header.cluster_size();
        let Parts { host, copied, allocated, zero } =
            match self.parse_cluster(slice, index, slice_at, offset)? {
                Cluster::Plain(parts) => parts,
                Cluster::Compressed(packed) => {
                    let kind = RunKind::Compressed { packed, skip };
                    return Ok(Run { kind, len: self.header.cluster_size() - skip });
                }
            };
        let part = (skip / self.part_size()) as u32;
        let has = |bits: u32| bits >> part & 1 != 0;
        let (kind, alike) = match host {
            Some(host) if has(allocated) => {
                (RunKind::Data { host: host + skip, exclusive: copied }, allocated)
            }
            _ if has(zero) => (RunKind::Zero, zero),
            _ => (RunKind::Unallocated, !(allocated | zero) & self.all_parts()),
        };
        let parts = u64::from((alike >> part).trailing_ones());
        Ok(Run { kind, len: parts * self.part_size() - skip % self.part_size() })
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
