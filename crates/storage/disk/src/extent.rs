/// Names one host file among those that a stack of disks reads from.
///
/// Two disks opened on the same host file (same device and inode) have equal ids within a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    /// The device number of the filesystem that holds the file, or zero for memory.
    pub device: u64,
    /// The inode number, or a number unique in this process for memory.
    pub inode: u64,
}

/// A range of a disk whose bytes are all kept in the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The offset of the first byte.
    pub start: u64,
    /// The length in bytes, never zero.
    pub len: u64,
    /// How the bytes are kept.
    pub kind: ExtentKind,
    /// How many backing files down the bytes were found; zero is the disk itself.
    pub depth: u32,
}

/// How the bytes of an extent are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtentKind {
    /// Plain bytes in a host file, from this offset on.
    Data {
        /// The host file.
        file: FileId,
        /// The offset in it, in bytes.
        offset: u64,
    },
    /// Only reading gives the bytes: encrypted, or changed in an overlay.
    Opaque,
    /// Compressed in the image.
    Compressed,
    /// Recorded as zeros, without being stored.
    Zero,
    /// Not recorded at all; reads as zeros.
    Unallocated,
}

impl Extent {
    /// The offset just past the last byte.
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }

    /// Whether the bytes are known to be zeros without reading them.
    pub fn is_zero(&self) -> bool {
        matches!(self.kind, ExtentKind::Zero | ExtentKind::Unallocated)
    }

    /// Appends `next` to this extent if it continues it; answers whether it did.
    pub fn merge(&mut self, next: &Extent) -> bool {
        let continues = match (self.kind, next.kind) {
            (
                ExtentKind::Data { file, offset },
                ExtentKind::Data { file: next_file, offset: next_offset },
            ) => file == next_file && offset.checked_add(self.len) == Some(next_offset),
            (a, b) => a == b,
        };
        let adjacent = self.start.checked_add(self.len) == Some(next.start);
        let merged = continues && adjacent && self.depth == next.depth;
        if merged {
            self.len = self.len.saturating_add(next.len);
        }
        merged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(start: u64, len: u64, offset: u64) -> Extent {
        let file = FileId { device: 1, inode: 2 };
        Extent { start, len, kind: ExtentKind::Data { file, offset }, depth: 0 }
    }

    #[test]
    fn neighbours_in_disk_and_file_merge() {
        let mut extent = data(0, 10, 100);
        assert!(extent.merge(&data(10, 5, 110)));
        assert_eq!(extent, data(0, 15, 100));
    }

    #[test]
    fn a_jump_in_the_file_does_not_merge() {
        let mut extent = data(0, 10, 100);
        assert!(!extent.merge(&data(10, 5, 200)));
        assert!(!extent.merge(&data(11, 5, 110)));
    }
}
