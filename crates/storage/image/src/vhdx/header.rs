//! The two headers, of which one is current.

use vmwright_disk::Disk;
use zerocopy::{FromZeros, IntoBytes};

use super::layout::{FILE_SIGNATURE, Guid, HEADERS, MIB, NO_GUID, RawHeader, checksum};
use crate::error::Reason;
use crate::{Error, Result};

/// The current header, and which of the two it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    raw: RawHeader,
    slot: usize,
    /// Whether the other one is sound too.
    pub(super) both: bool,
}

impl Header {
    /// Reads both headers and takes the current one.
    pub(super) fn read(file: &dyn Disk) -> Result<Self> {
        let mut signature = [0; 8];
        if file.len() >= 8 {
            file.read_at(&mut signature, 0)?;
        }
        if signature != *FILE_SIGNATURE {
            let found = u64::from_le_bytes(signature);
            return Err(Error::corrupt("the file type identifier", 0, "vhdxfile", found));
        }
        let first = Self::read_slot(file, 0)?;
        let second = Self::read_slot(file, 1)?;
        let header = match (first, second) {
            (Some(a), Some(b)) => {
                let (at, bt) = (a.raw.sequence_number.get(), b.raw.sequence_number.get());
                if at == bt && a.raw.as_bytes() != b.raw.as_bytes() {
                    return Err(Error::corrupt(
                        "the headers' sequence number",
                        HEADERS[1] + 8,
                        "one of them to be newer",
                        at,
                    ));
                }
                Self { both: true, ..if bt > at { b } else { a } }
            }
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => {
                let at = HEADERS[0];
                return Err(Error::corrupt("the header", at, "one of two with a right checksum", 0));
            }
        };
        header.check()?;
        Ok(header)
    }

    fn read_slot(file: &dyn Disk, slot: usize) -> Result<Option<Self>> {
        let mut raw = RawHeader::new_zeroed();
        if file.len() < HEADERS[slot] + size_of::<RawHeader>() as u64 {
            return Ok(None);
        }
        file.read_at(raw.as_mut_bytes(), HEADERS[slot])?;
        let sound = raw.signature == *b"head" && raw.checksum.get() == checksum(raw.as_bytes());
        Ok(sound.then_some(Self { raw, slot, both: false }))
    }

    fn check(&self) -> Result<()> {
        let (raw, at) = (&self.raw, HEADERS[self.slot]);
        if raw.version.get() != 1 {
            return Err(Reason::Version { what: "VHDX", version: raw.version.get().into() }.into());
        }
        if raw.log_version.get() != 0 {
            return Err(
                Reason::Version { what: "the log of VHDX", version: raw.log_version.get().into() }.into()
            );
        }
        let (offset, len) = (raw.log_offset.get(), u64::from(raw.log_length.get()));
        if !len.is_multiple_of(MIB) {
            return Err(Error::corrupt("the length of the log", at + 68, "a multiple of 1 MiB", len));
        }
        if len > 0 && (!offset.is_multiple_of(MIB) || offset < MIB || offset.checked_add(len).is_none()) {
            return Err(Error::corrupt("the offset of the log", at + 72, "a multiple of 1 MiB", offset));
        }
        Ok(())
    }

    /// The headers of a new image; nothing is written yet.
    pub(super) fn new(log_offset: u64, log_length: u32, [file_write, data_write]: [Guid; 2]) -> Self {
        let mut raw = RawHeader::new_zeroed();
        raw.signature = *b"head";
        raw.version.set(1);
        raw.log_offset.set(log_offset);
        raw.log_length.set(log_length);
        raw.file_write_guid = file_write;
        raw.data_write_guid = data_write;
        Self { raw, slot: 1, both: true }
    }

    /// Where the log is, and how long.
    pub(super) fn log(&self) -> (u64, u64) {
        (self.raw.log_offset.get(), self.raw.log_length.get().into())
    }

    /// What marks the entries of the log that count; `None` where none do.
    pub(super) fn log_guid(&self) -> Option<Guid> {
        (self.raw.log_guid != NO_GUID).then_some(self.raw.log_guid)
    }

    /// What identifies the content.
    pub(super) fn data_write_guid(&self) -> Guid {
        self.raw.data_write_guid
    }

    /// Writes a changed header over the one that is not current; it is current if it is whole.
    ///
    /// The caller flushes before it relies on that.
    pub(super) fn write(&mut self, file: &dyn Disk, change: impl FnOnce(&mut RawHeader)) -> Result<()> {
        let mut raw = self.raw;
        change(&mut raw);
        raw.sequence_number.set(raw.sequence_number.get().checked_add(1).ok_or(Reason::Full)?);
        raw.checksum.set(checksum(raw.as_bytes()));
        let slot = 1 - self.slot;
        file.write_at(raw.as_bytes(), HEADERS[slot])?;
        *self = Self { raw, slot, both: true };
        Ok(())
    }
}

/// A new random GUID.
pub(super) fn new_guid() -> Result<Guid> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|_| Error::invalid("a new GUID", "the host has no random numbers to give"))?;
    Ok(uuid::Builder::from_random_bytes(bytes).into_uuid().to_bytes_le())
}
