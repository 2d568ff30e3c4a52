//! The bytes of a LUKS2 header: LUKS2 On-Disk Format Specification 1.1,
//! <https://gitlab.com/cryptsetup/LUKS2-docs>, section 2.1.

use std::mem::offset_of;

use zerocopy::big_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub(crate) const MAGIC: [u8; 6] = *b"LUKS\xba\xbe";
/// Of the second copy, so that nobody takes it for a header of its own.
pub(crate) const SECOND_MAGIC: [u8; 6] = *b"SKUL\xba\xbe";
pub(crate) const VERSION: u16 = 2;

/// The lengths that a header with its JSON area may have; the second copy stands at its own length.
pub(crate) const SIZES: [u64; 9] = {
    let mut sizes = [0x4000; 9];
    let mut index = 1;
    while index < sizes.len() {
        sizes[index] = sizes[index - 1] * 2;
        index += 1;
    }
    sizes
};

/// The binary header (figure 2).
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(crate) struct RawHeader {
    pub(crate) magic: [u8; 6],
    pub(crate) version: U16,
    /// The length with the JSON area.
    pub(crate) hdr_size: U64,
    /// Grows with every change.
    pub(crate) seqid: U64,
    pub(crate) label: [u8; 48],
    pub(crate) csum_alg: [u8; 32],
    /// Makes both copies different.
    pub(crate) salt: [u8; 64],
    pub(crate) uuid: [u8; 40],
    pub(crate) subsystem: [u8; 48],
    /// Where this copy stands.
    pub(crate) hdr_offset: U64,
    pub(crate) padding: [u8; 184],
    /// Of the whole copy, with zeros here.
    pub(crate) csum: [u8; 64],
    pub(crate) padding4096: [u8; 7 * 512],
}

pub(crate) const HEADER_LEN: usize = size_of::<RawHeader>();
/// Where the checksum stands.
pub(crate) const CSUM_AT: usize = offset_of!(RawHeader, csum);
/// The place of the checksum.
pub(crate) const CSUM_LEN: usize = 64;

const _: () = assert!(HEADER_LEN == 4096 && CSUM_AT == 448);
const _: () = assert!(offset_of!(RawHeader, salt) == 104 && offset_of!(RawHeader, hdr_offset) == 256);
const _: () = assert!(SIZES[8] == 4 << 20);
