//! Multiple mount protection: a block that says who has the volume open for writing.
//!
//! ```text
//! magic · sequence · seconds · node[64] · device[32] · interval · zeros · crc32c     1,024 bytes, little-endian
//! ```
//!
//! Kernels write a new sequence every few seconds, e2fsck and its kin a fixed one, and whoever is done writes the one that
//! means clean. Others wait to see whether the sequence moves. Nothing here can wait, so that any sequence but the
//! clean one means that the volume is in use. While we change it the block names us: before the first byte of a
//! change it says that a tool is at work, and the end of each sync says clean again.

use std::fmt;
use std::sync::Arc;

use vmwright_disk::Disk;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::checksum::crc32c;
use crate::error::{Error, ErrorKind, Place, Result};
use crate::features::incompat;
use crate::superblock::Superblock;
use crate::volume::{Ext4, Options};

const MAGIC: u32 = 0x004d_4d50;
/// Nobody uses the volume.
const CLEAN: u32 = 0xff4d_4d50;
/// A tool that checks or changes the volume uses it.
const TOOL: u32 = 0xe24d_4d50;

/// The size of the structure, at the beginning of its block.
const SIZE: usize = 1024;

/// `struct mmp_struct`: <https://www.kernel.org/doc/html/latest/filesystems/ext4/mmp.html>.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawMmp {
    mmp_magic: U32,
    mmp_seq: U32,
    mmp_time: U64,
    mmp_nodename: [u8; 64],
    mmp_bdevname: [u8; 32],
    mmp_check_interval: U16,
    mmp_pad1: U16,
    mmp_pad2: [U32; 226],
    mmp_checksum: U32,
}

const _: () = {
    assert!(size_of::<RawMmp>() == SIZE);
    assert!(std::mem::offset_of!(RawMmp, mmp_checksum) == SIZE - 4);
};

/// Who has a volume open, as the block says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holder {
    node: Vec<u8>,
    device: Vec<u8>,
    seconds: u64,
    tool: bool,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let node = String::from_utf8_lossy(&self.node);
        let device = String::from_utf8_lossy(&self.device);
        let what = if self.tool { "a tool such as e2fsck" } else { "a kernel" };
        write!(f, "{what} on {node:?} has it open as {device:?}, last seen ")?;
        write_time(f, self.seconds)
    }
}

/// Writes seconds since 1970 as a date.
fn write_time(f: &mut fmt::Formatter<'_>, seconds: u64) -> fmt::Result {
    // The year 9999 is enough for anyone; a crafted time must not overflow.
    let seconds = seconds.min(253_402_300_799);
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Counted from 0000-03-01, so that leap days come last.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    write!(f, "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// The bytes of a field up to its first zero.
fn text(field: &[u8]) -> Vec<u8> {
    field.iter().copied().take_while(|&byte| byte != 0).collect()
}

/// What a volume that is open for writing says of that, in its block.
pub(crate) struct Guard {
    offset: u64,
    block: u64,
    seed: Option<u32>,
    raw: RawMmp,
    /// Whether the block says that we are at work.
    announced: bool,
    /// Whether the block is no longer where it was announced.
    moved: bool,
}

impl Guard {
    /// Reads the block of a volume that is about to be changed, and refuses one that is in use.
    pub(crate) fn read(disk: &Arc<dyn Disk>, superblock: &Superblock, ignore: bool) -> Result<Self> {
        let block = superblock.mmp_block();
        if !superblock.is_valid_block(block) {
            return Err(Error::corrupt(
                Place::Superblock,
                "the block that guards mounts is outside the volume",
            ));
        }
        let seed = superblock.features.metadata_csum().then_some(superblock.checksum_seed);
        let offset = block * u64::from(superblock.block_size);
        let raw = RawMmp::new_zeroed();
        let mut guard = Self { offset, block, seed, raw, announced: false, moved: false };
        guard.raw = guard.stored(disk)?;
        match guard.check() {
            // As if it were ours: the next sync says clean.
            Err(_) if ignore => guard.announced = true,
            checked => checked?,
        }
        Ok(guard)
    }

    /// Goes on with another seed for checksums.
    pub(crate) fn reseed(&mut self, superblock: &Superblock) {
        self.seed = superblock.features.metadata_csum().then_some(superblock.checksum_seed);
    }

    fn stored(&self, disk: &Arc<dyn Disk>) -> Result<RawMmp> {
        let mut raw = RawMmp::new_zeroed();
        disk.read_at(raw.as_mut_bytes(), self.offset).map_err(|source| Error::disk("read", source))?;
        Ok(raw)
    }

    /// The block as it is when nothing is known of what it held.
    fn fresh(&self) -> RawMmp {
        let mut raw = RawMmp::new_zeroed();
        raw.mmp_magic = MAGIC.into();
        raw.mmp_check_interval = self.raw.mmp_check_interval;
        if self.raw.mmp_magic != MAGIC {
            raw.mmp_check_interval = 5.into();
        }
        raw
    }

    fn check(&self) -> Result<()> {
        let (raw, place) = (&self.raw, Place::Block(self.block));
        if raw.mmp_magic != MAGIC {
            let (expected, actual) = (MAGIC.into(), raw.mmp_magic.get().into());
            return Err(Error::mismatch(
                place,
                "the magic of the block that guards mounts",
                expected,
                actual,
            ));
        }
        let checksum = self.checksum(raw);
        if checksum.is_some_and(|checksum| raw.mmp_checksum != checksum) {
            let (expected, actual) = (checksum.unwrap_or(0).into(), raw.mmp_checksum.get().into());
            return Err(Error::mismatch(
                place,
                "the checksum of the block that guards mounts",
                expected,
                actual,
            ));
        }
        match raw.mmp_seq.get() {
            CLEAN => Ok(()),
            sequence if sequence > TOOL => Err(Error::mismatch(
                place,
                "the sequence of the block that guards mounts",
                CLEAN.into(),
                sequence.into(),
            )),
            sequence => Err(Error::held(Holder {
                node: text(&raw.mmp_nodename),
                device: text(&raw.mmp_bdevname),
                seconds: raw.mmp_time.get(),
                tool: sequence == TOOL,
            })),
        }
    }

    fn checksum(&self, raw: &RawMmp) -> Option<u32> {
        self.seed.map(|seed| crc32c(seed, &raw.as_bytes()[..SIZE - 4]))
    }

    /// Says in the block that we are at work, before anything else is written.
    pub(crate) fn announce(&mut self, disk: &Arc<dyn Disk>, now: i64) -> Result<()> {
        if self.announced {
            return Ok(());
        }
        self.put(disk, TOOL, now)?;
        disk.flush().map_err(|source| Error::disk("flush", source))?;
        self.announced = true;
        Ok(())
    }

    fn put(&mut self, disk: &Arc<dyn Disk>, sequence: u32, now: i64) -> Result<()> {
        let mut raw = self.fresh();
        raw.mmp_seq = sequence.into();
        raw.mmp_time = now.max(0).cast_unsigned().into();
        raw.mmp_nodename[..8].copy_from_slice(b"vmwright");
        if let Some(checksum) = self.checksum(&raw) {
            raw.mmp_checksum = checksum.into();
        }
        disk.write_at(raw.as_bytes(), self.offset).map_err(|source| Error::disk("write", source))?;
        // What could not be written would look like someone else's when the next sync compares.
        self.raw = raw;
        Ok(())
    }

    /// Takes over what has become of the volume: the block may have moved, and have its checksum from another seed.
    pub(crate) fn follow(&mut self, superblock: &Superblock) {
        let offset = superblock.mmp_block().saturating_mul(superblock.block_size.into());
        self.moved |= offset != self.offset;
        self.block = superblock.mmp_block();
        self.offset = offset;
        self.seed = superblock.features.metadata_csum().then_some(superblock.checksum_seed);
    }

    /// Says in the block that nobody is at work, once everything is written.
    pub(crate) fn release(&mut self, disk: &Arc<dyn Disk>, now: i64) -> Result<()> {
        if !self.announced {
            return Ok(());
        }
        if !self.moved && self.stored(disk)?.as_bytes() != self.raw.as_bytes() {
            let problem = "someone else has taken the filesystem while it was being changed";
            return Err(Error::plain(ErrorKind::InUse, problem));
        }
        disk.flush().map_err(|source| Error::disk("flush", source))?;
        self.put(disk, CLEAN, now)?;
        (self.announced, self.moved) = (false, false);
        Ok(())
    }
}

impl Ext4 {
    /// Refuses a volume that someone else has open, and sees to it that others are told while we change it.
    pub(crate) fn guard(&mut self, options: Options) -> Result<()> {
        if !options.write || !self.superblock.features.has_incompat(incompat::MMP) {
            return Ok(());
        }
        let guard = Guard::read(self.cache.disk(), &self.superblock, options.ignore_mmp)?;
        self.cache.set_guard(guard, self.now.seconds);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_as_dates() {
        let told = |seconds| {
            let holder = Holder { node: b"a".to_vec(), device: b"b".to_vec(), seconds, tool: false };
            let text = holder.to_string();
            text.split_once("seen ").map(|(_, time)| time.to_owned()).unwrap_or_default()
        };
        assert_eq!(told(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(told(951_782_400), "2000-02-29 00:00:00 UTC");
        assert_eq!(told(1_700_000_000), "2023-11-14 22:13:20 UTC");
        assert_eq!(told(4_107_542_399), "2100-02-28 23:59:59 UTC");
        assert_eq!(told(u64::MAX), "9999-12-31 23:59:59 UTC");
    }
}
