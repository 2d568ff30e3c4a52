//! The bytes of the protocol, after <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>.
//!
//! All numbers are big-endian.

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `NBDMAGIC`, the first bytes that a server sends.
pub(crate) const INIT_PASSWD: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`, the mark of newstyle negotiation and of each option.
pub(crate) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
pub(crate) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub(crate) const REQUEST_MAGIC: u32 = 0x2560_9513;
pub(crate) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
pub(crate) const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// What a server sends first ("Newstyle negotiation").
#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Greeting {
    pub(crate) init_passwd: U64,
    pub(crate) option_magic: U64,
    pub(crate) handshake_flags: U16,
}
const _: () = assert!(size_of::<Greeting>() == 18);

pub(crate) const FLAG_FIXED_NEWSTYLE: u16 = 1;
pub(crate) const FLAG_NO_ZEROES: u16 = 1 << 1;
pub(crate) const CLIENT_FIXED_NEWSTYLE: u32 = 1;
pub(crate) const CLIENT_NO_ZEROES: u32 = 1 << 1;

/// Precedes the data of an option ("Newstyle negotiation").
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct OptionHeader {
    pub(crate) magic: U64,
    pub(crate) option: U32,
    pub(crate) length: U32,
}
const _: () = assert!(size_of::<OptionHeader>() == 16);

/// Precedes the data of a reply to an option ("Fixed newstyle negotiation").
#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct OptionReply {
    pub(crate) magic: U64,
    pub(crate) option: U32,
    pub(crate) reply: U32,
    pub(crate) length: U32,
}
const _: () = assert!(size_of::<OptionReply>() == 20);

/// The answer to `NBD_OPT_EXPORT_NAME`, after which 124 zeros may follow.
#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct ExportReply {
    pub(crate) size: U64,
    pub(crate) flags: U16,
}
const _: () = assert!(size_of::<ExportReply>() == 10);

pub(crate) const OPT_EXPORT_NAME: u32 = 1;
pub(crate) const OPT_ABORT: u32 = 2;
pub(crate) const OPT_LIST: u32 = 3;
pub(crate) const OPT_STARTTLS: u32 = 5;
pub(crate) const OPT_INFO: u32 = 6;
pub(crate) const OPT_GO: u32 = 7;
pub(crate) const OPT_STRUCTURED_REPLY: u32 = 8;
pub(crate) const OPT_LIST_META_CONTEXT: u32 = 9;
pub(crate) const OPT_SET_META_CONTEXT: u32 = 10;

pub(crate) const REP_ACK: u32 = 1;
pub(crate) const REP_SERVER: u32 = 2;
pub(crate) const REP_INFO: u32 = 3;
pub(crate) const REP_META_CONTEXT: u32 = 4;
pub(crate) const REP_ERR_UNSUP: u32 = (1 << 31) + 1;
pub(crate) const REP_ERR_POLICY: u32 = (1 << 31) + 2;
pub(crate) const REP_ERR_INVALID: u32 = (1 << 31) + 3;
pub(crate) const REP_ERR_TLS_REQD: u32 = (1 << 31) + 5;
pub(crate) const REP_ERR_UNKNOWN: u32 = (1 << 31) + 6;
pub(crate) const REP_ERR_SHUTDOWN: u32 = (1 << 31) + 7;
pub(crate) const REP_ERR_TOO_BIG: u32 = (1 << 31) + 9;

pub(crate) const INFO_EXPORT: u16 = 0;
pub(crate) const INFO_NAME: u16 = 1;
pub(crate) const INFO_DESCRIPTION: u16 = 2;
pub(crate) const INFO_BLOCK_SIZE: u16 = 3;

pub(crate) const HAS_FLAGS: u16 = 1;
pub(crate) const READ_ONLY: u16 = 1 << 1;
pub(crate) const SEND_FLUSH: u16 = 1 << 2;
pub(crate) const SEND_FUA: u16 = 1 << 3;
pub(crate) const SEND_TRIM: u16 = 1 << 5;
pub(crate) const SEND_WRITE_ZEROES: u16 = 1 << 6;
pub(crate) const SEND_DF: u16 = 1 << 7;
pub(crate) const CAN_MULTI_CONN: u16 = 1 << 8;
pub(crate) const SEND_CACHE: u16 = 1 << 10;
pub(crate) const SEND_FAST_ZERO: u16 = 1 << 11;

/// A request, which the data follows if it is a write ("Request message").
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct RequestHeader {
    pub(crate) magic: U32,
    pub(crate) flags: U16,
    pub(crate) kind: U16,
    pub(crate) cookie: U64,
    pub(crate) offset: U64,
    pub(crate) length: U32,
}
const _: () = assert!(size_of::<RequestHeader>() == 28);

pub(crate) const CMD_READ: u16 = 0;
pub(crate) const CMD_WRITE: u16 = 1;
pub(crate) const CMD_DISC: u16 = 2;
pub(crate) const CMD_FLUSH: u16 = 3;
pub(crate) const CMD_TRIM: u16 = 4;
pub(crate) const CMD_CACHE: u16 = 5;
pub(crate) const CMD_WRITE_ZEROES: u16 = 6;
pub(crate) const CMD_BLOCK_STATUS: u16 = 7;

pub(crate) const CMD_FLAG_FUA: u16 = 1;
pub(crate) const CMD_FLAG_NO_HOLE: u16 = 1 << 1;
pub(crate) const CMD_FLAG_DF: u16 = 1 << 2;
pub(crate) const CMD_FLAG_REQ_ONE: u16 = 1 << 3;
pub(crate) const CMD_FLAG_FAST_ZERO: u16 = 1 << 4;

/// The answer to a request where structured replies were not agreed on, or carry nothing ("Simple reply message").
#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct SimpleReply {
    pub(crate) magic: U32,
    pub(crate) error: U32,
    pub(crate) cookie: U64,
}
const _: () = assert!(size_of::<SimpleReply>() == 16);

/// Precedes the payload of one part of an answer ("Structured reply chunk message").
#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct ChunkHeader {
    pub(crate) magic: U32,
    pub(crate) flags: U16,
    pub(crate) kind: U16,
    pub(crate) cookie: U64,
    pub(crate) length: U32,
}
const _: () = assert!(size_of::<ChunkHeader>() == 20);

pub(crate) const CHUNK_DONE: u16 = 1;
pub(crate) const CHUNK_NONE: u16 = 0;
pub(crate) const CHUNK_OFFSET_DATA: u16 = 1;
pub(crate) const CHUNK_OFFSET_HOLE: u16 = 2;
pub(crate) const CHUNK_BLOCK_STATUS: u16 = 5;
pub(crate) const CHUNK_ERROR: u16 = (1 << 15) + 1;

/// The payload of a hole in a read.
#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Hole {
    pub(crate) offset: U64,
    pub(crate) length: U32,
}
const _: () = assert!(size_of::<Hole>() == 12);

/// One range in an answer to `NBD_CMD_BLOCK_STATUS`.
#[derive(Clone, Copy, IntoBytes, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Descriptor {
    pub(crate) length: U32,
    pub(crate) flags: U32,
}
const _: () = assert!(size_of::<Descriptor>() == 8);

/// `NBD_STATE_HOLE` of `base:allocation`.
pub(crate) const STATE_HOLE: u32 = 1;
/// `NBD_STATE_ZERO` of `base:allocation`.
pub(crate) const STATE_ZERO: u32 = 1 << 1;

/// The longest string: a name, a query, a message.
pub(crate) const MAX_STRING: usize = 4096;
