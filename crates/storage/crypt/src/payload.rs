use vmwright_disk::Disk;

use crate::{Error, Result, SECTOR};

/// Where the encrypted content of a disk lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Payload {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its length in bytes; `None` where it reaches to the end of the file.
    pub len: Option<u64>,
    /// The number that its first sector is encrypted with.
    pub first_sector: u64,
    /// The size of a sector in bytes.
    pub sector_size: u64,
}

impl Payload {
    /// The length of the content in a file of `file_len` bytes.
    pub fn len_in(&self, file_len: u64) -> u64 {
        let len = self.len.unwrap_or_else(|| file_len.saturating_sub(self.offset));
        len - len % self.sector_size.max(SECTOR)
    }

    /// Whether the file holds the content.
    pub(crate) fn check(&self, file: &dyn Disk) -> Result<()> {
        let end = self.offset.checked_add(self.len.unwrap_or(0));
        if end.is_none_or(|end| end > file.len()) {
            let expected = "that the file reaches to its end";
            return Err(Error::corrupt("the encrypted content", self.offset, expected, file.len()));
        }
        Ok(())
    }
}
