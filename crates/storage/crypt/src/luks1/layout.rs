//! The bytes of a LUKS1 header: LUKS1 On-Disk Format Specification 1.2.3,
//! <https://gitlab.com/cryptsetup/cryptsetup/-/wikis/LUKS-standard/on-disk-format.pdf>, section 5.

use zerocopy::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub(crate) const MAGIC: [u8; 6] = *b"LUKS\xba\xbe";
pub(crate) const VERSION: u16 = 1;
pub(crate) const SLOTS: usize = 8;
pub(crate) const SALT: usize = 32;
pub(crate) const DIGEST: usize = 20;
pub(crate) const ENABLED: u32 = 0x00ac_71f3;
pub(crate) const DISABLED: u32 = 0x0000_dead;
/// Key material and payload are counted in these.
pub(crate) const SECTOR: u64 = 512;

/// The header (figure 1).
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(crate) struct RawHeader {
    pub(crate) magic: [u8; 6],
    pub(crate) version: U16,
    pub(crate) cipher_name: [u8; 32],
    pub(crate) cipher_mode: [u8; 32],
    pub(crate) hash_spec: [u8; 32],
    pub(crate) payload_offset: U32,
    pub(crate) key_bytes: U32,
    pub(crate) mk_digest: [u8; DIGEST],
    pub(crate) mk_digest_salt: [u8; SALT],
    pub(crate) mk_digest_iterations: U32,
    pub(crate) uuid: [u8; 40],
    pub(crate) slots: [RawSlot; SLOTS],
}

/// One key slot (figure 3).
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(crate) struct RawSlot {
    pub(crate) active: U32,
    pub(crate) iterations: U32,
    pub(crate) salt: [u8; SALT],
    pub(crate) key_material_offset: U32,
    pub(crate) stripes: U32,
}

pub(crate) const HEADER_LEN: usize = size_of::<RawHeader>();
pub(crate) const SLOT_LEN: usize = size_of::<RawSlot>();
/// Where the first key slot stands.
pub(crate) const SLOTS_AT: usize = std::mem::offset_of!(RawHeader, slots);

const _: () = assert!(HEADER_LEN == 592 && SLOT_LEN == 48 && SLOTS_AT == 208);
const _: () = assert!(std::mem::offset_of!(RawHeader, payload_offset) == 104);
const _: () = assert!(std::mem::offset_of!(RawHeader, uuid) == 168);
