//! What can be wrong with a volume: one line per problem.

/// Declares every problem once: its variant, its stable code, its text, and whether repairing it is
/// `safe` or `unsafe`; a `notice` can be repaired and is no damage.
macro_rules! problems {
    ($($(#[doc = $doc:literal])* $name:ident = $code:literal, $text:literal, $repair:ident;)*) => {
        /// Something that is wrong with a volume.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Problem {
            $(#[doc = $text] $name,)*
        }

        impl Problem {
            /// Every problem there is.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The name that stays the same from version to version, for scripts.
            pub fn code(self) -> &'static str {
                match self { $(Self::$name => $code,)* }
            }

            /// What is wrong, in words.
            pub fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// Whether it can be put right without losing what anyone has written.
            pub fn is_repairable(self) -> bool {
                match self { $(Self::$name => repairable!($repair),)* }
            }

            /// Whether a volume with it is damaged. What is left is lived with, such as a total that every kernel
            /// brings up to date when it mounts the volume.
            pub fn is_damage(self) -> bool {
                match self { $(Self::$name => damage!($repair),)* }
            }
        }
    };
}

macro_rules! repairable {
    (unsafe) => {
        false
    };
    ($other:ident) => {
        true
    };
}

macro_rules! damage {
    (notice) => {
        false
    };
    ($other:ident) => {
        true
    };
}

problems! {
    // The volume as a whole.
    SuperblockInvalid = "superblock-invalid", "the superblock cannot be used; a copy of it was used instead", unsafe;
    SuperblockChecksum = "superblock-checksum", "the checksum of the superblock is wrong", unsafe;
    SuperblockField = "superblock-field", "a field of the superblock is impossible", unsafe;
    VolumeTooLong = "volume-too-long", "the volume is longer than its disk", unsafe;
    StateNotClean = "state-not-clean", "the volume is not marked as cleanly unmounted and free of errors", notice;
    FreeBlocksTotal = "free-blocks-total", "the number of free blocks in the superblock is wrong", notice;
    FreeInodesTotal = "free-inodes-total", "the number of free inodes in the superblock is wrong", notice;
    Mmp = "mmp", "the block of the multiple mount protection is wrong", unsafe;

    // Group descriptors.
    GroupChecksum = "group-checksum", "the checksum of a group descriptor is wrong", unsafe;
    GroupPlace = "group-place", "a group's bitmaps or inode table are not where they may be", unsafe;
    GroupOverlap = "group-overlap", "a group's bitmaps or inode table overlap other metadata", unsafe;
    GroupCount = "group-count", "a number in a group descriptor is impossible", unsafe;
    GroupUninit = "group-uninit", "a group's flags do not fit what is in use in it", safe;
    GroupFreeBlocks = "group-free-blocks", "the number of free blocks in a group is wrong", safe;
    GroupFreeInodes = "group-free-inodes", "the number of free inodes in a group is wrong", safe;
    GroupDirectories = "group-directories", "the number of directories in a group is wrong", safe;
    GroupUnused = "group-unused", "inodes are in use that a group declares never used", unsafe;

    // The journal and reserved inodes.
    JournalInode = "journal-inode", "the journal's inode cannot hold a journal", unsafe;
    JournalSuperblock = "journal-superblock", "the superblock of the journal is damaged", unsafe;
    JournalContent = "journal-content", "what the journal holds cannot be replayed", unsafe;
    JournalFlag = "journal-flag", "the flags of the journal contradict one another", unsafe;
    JournalElsewhere = "journal-elsewhere", "the journal is on another device and holds changes", unsafe;
    FastCommits = "fast-commits", "the journal holds fast commits, which have to be replayed first", unsafe;
    ResizeInode = "resize-inode", "the inode of the blocks reserved for growing is wrong", unsafe;
    ReservedInode = "reserved-inode", "a reserved inode is not what it must be", unsafe;
    RootInode = "root-inode", "the root is not a directory", unsafe;

    // Inodes.
    InodeChecksum = "inode-checksum", "the checksum of an inode is wrong", unsafe;
    InodeField = "inode-field", "a field of an inode is impossible", unsafe;
    InodeExtra = "inode-extra", "the size of an inode's extra fields is impossible", unsafe;
    InodeMode = "inode-mode", "the type of an inode is unknown", unsafe;
    InodeFlags = "inode-flags", "an inode has flags that contradict it or the volume", unsafe;
    InodeSize = "inode-size", "the size of an inode's content does not fit its blocks", unsafe;
    InodeBlocks = "inode-blocks", "the number of blocks of an inode is wrong", safe;
    DeletedTime = "deleted-time", "an inode in use has a time of deletion, or a deleted one none", unsafe;
    OrphanLink = "orphan-link", "an inode is part of the list of orphans, by a time of deletion that is a number", safe;
    ExtentTree = "extent-tree", "a node of an extent tree is damaged", unsafe;
    ExtentRange = "extent-range", "an extent is impossible or out of order", unsafe;
    ExtentChecksum = "extent-checksum", "the checksum of a node of an extent tree is wrong", unsafe;
    BlockMap = "block-map", "a block map is damaged", unsafe;
    BlockNumber = "block-number", "an inode has a block that no file can have", unsafe;
    InlineData = "inline-data", "inline content is damaged", unsafe;
    Special = "special", "a link, device, pipe or socket has content that it cannot have", unsafe;
    SharedBlock = "shared-block", "a block belongs to more than one owner", unsafe;
    BadBlocks = "bad-blocks", "the list of bad blocks is impossible", unsafe;

    // Bitmaps.
    BlockBitmap = "block-bitmap", "the block bitmap of a group differs from what is in use", safe;
    InodeBitmap = "inode-bitmap", "the inode bitmap of a group differs from what is in use", safe;
    BlockBitmapChecksum = "block-bitmap-checksum", "the checksum of a block bitmap is wrong", safe;
    InodeBitmapChecksum = "inode-bitmap-checksum", "the checksum of an inode bitmap is wrong", safe;
    BitmapPadding = "bitmap-padding", "the bits behind the end of a bitmap are not set", safe;
    Unreadable = "unreadable", "something could not be read", unsafe;
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_problem_has_a_code_and_a_text_of_its_own() {
        let codes: HashSet<&str> = Problem::ALL.iter().map(|problem| problem.code()).collect();
        let texts: HashSet<&str> = Problem::ALL.iter().map(|problem| problem.text()).collect();
        assert_eq!((codes.len(), texts.len()), (Problem::ALL.len(), Problem::ALL.len()));
    }
}
