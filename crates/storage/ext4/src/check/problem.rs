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
    SuperblockInvalid = "superblock-invalid", "the superblock cannot be used; a copy of it was used instead", safe;
    SuperblockChecksum = "superblock-checksum", "the checksum of the superblock is wrong", safe;
    SuperblockField = "superblock-field", "a field of the superblock is impossible", unsafe;
    VolumeTooLong = "volume-too-long", "the volume is longer than its disk", unsafe;
    StateNotClean = "state-not-clean", "the volume is not marked as cleanly unmounted and free of errors", notice;
    FreeBlocksTotal = "free-blocks-total", "the number of free blocks in the superblock is wrong", notice;
    FreeInodesTotal = "free-inodes-total", "the number of free inodes in the superblock is wrong", notice;
    Mmp = "mmp", "the block of the multiple mount protection is wrong", unsafe;

    // Group descriptors.
    GroupChecksum = "group-checksum", "the checksum of a group descriptor is wrong", safe;
    GroupPlace = "group-place", "a group's bitmaps or inode table are not where they may be", unsafe;
    GroupOverlap = "group-overlap", "a group's bitmaps or inode table overlap other metadata", unsafe;
    GroupCount = "group-count", "a number in a group descriptor is impossible", unsafe;
    GroupUninit = "group-uninit", "a group's flags do not fit what is in use in it", safe;
    GroupFreeBlocks = "group-free-blocks", "the number of free blocks in a group is wrong", safe;
    GroupFreeInodes = "group-free-inodes", "the number of free inodes in a group is wrong", safe;
    GroupDirectories = "group-directories", "the number of directories in a group is wrong", safe;
    GroupUnused = "group-unused", "inodes are in use that a group declares never used", safe;

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
    InodeChecksum = "inode-checksum", "the checksum of an inode is wrong", safe;
    InodeField = "inode-field", "a field of an inode is impossible", unsafe;
    InodeExtra = "inode-extra", "the size of an inode's extra fields is impossible", unsafe;
    InodeMode = "inode-mode", "the type of an inode is unknown", unsafe;
    InodeFlags = "inode-flags", "an inode has flags that contradict it or the volume", unsafe;
    InodeSize = "inode-size", "the size of an inode's content does not fit its blocks", unsafe;
    InodeBlocks = "inode-blocks", "the number of blocks of an inode is wrong", safe;
    DeletedTime = "deleted-time", "an inode in use has a time of deletion, or a deleted one none", safe;
    OrphanLink = "orphan-link", "an inode is part of the list of orphans, by a time of deletion that is a number", safe;
    ExtentTree = "extent-tree", "a node of an extent tree is damaged", unsafe;
    ExtentRange = "extent-range", "an extent is impossible or out of order", unsafe;
    ExtentChecksum = "extent-checksum", "the checksum of a node of an extent tree is wrong", safe;
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

    // Extended attributes.
    AttributeBlock = "attribute-block", "the block of an inode's extended attributes cannot be one", unsafe;
    AttributePlace = "attribute-place", "extended attributes overlap or reach past their area", unsafe;
    AttributeName = "attribute-name", "the name of an extended attribute is impossible", unsafe;
    AttributeValue = "attribute-value", "the value of an extended attribute does not lie in its area", unsafe;
    AttributeHash = "attribute-hash", "the hash of an extended attribute is wrong", unsafe;
    AttributeAcl = "attribute-acl", "an access control list is malformed", unsafe;
    AttributeInode = "attribute-inode", "an extended attribute leads to an inode that is not its value", unsafe;
    AttributeChecksum = "attribute-checksum", "the checksum of a block of extended attributes is wrong", safe;
    AttributeReferences = "attribute-references", "a block of extended attributes is shared by another number of inodes", safe;
    EncryptionContext = "encryption-context", "an encrypted inode does not say how it is encrypted", unsafe;

    // Directories.
    DirectoryEmpty = "directory-empty", "a directory has no blocks", unsafe;
    DirectoryHole = "directory-hole", "a directory has a hole", safe;
    DirectoryChecksum = "directory-checksum", "the checksum of a directory block is wrong", safe;
    DirectorySelf = "directory-self", "the first entry of a directory is not itself", safe;
    DirectoryParent = "directory-parent", "the second entry of a directory is not its parent", safe;
    DirectoryEntry = "directory-entry", "the length of a directory entry is impossible", safe;
    InlineDirectory = "inline-directory", "the size of an inline directory is impossible", unsafe;
    EntryInode = "entry-inode", "a directory entry leads to an inode that nobody may name", safe;
    EntryReserved = "entry-reserved", "a directory entry leads to something in use that the superblock keeps for itself", unsafe;
    EntryUnused = "entry-unused", "a directory entry leads to an inode that is not in use", safe;
    EntryUninit = "entry-uninit", "a directory entry leads to an inode whose group says that it was never used", safe;
    EntrySelf = "entry-self", "a directory entry leads to its own directory", safe;
    EntryRoot = "entry-root", "a directory entry leads to the root", safe;
    EntryDots = "entry-dots", "a directory has more than one entry for itself or its parent", safe;
    EntryNameless = "entry-nameless", "a directory entry has no name", safe;
    EntryName = "entry-name", "a name has a slash or a zero byte in it", safe;
    EntryEncoding = "entry-encoding", "a name is no valid text", unsafe;
    EntryType = "entry-type", "the type in a directory entry is not that of its inode", safe;
    EntryAgain = "entry-again", "a directory has more than one name", safe;
    EntryTwice = "entry-twice", "a directory has the same entry twice", safe;
    NameTwice = "name-twice", "a directory has two entries of the same name", unsafe;
    EncryptedName = "encrypted-name", "an encrypted name is too short to be one", unsafe;
    EncryptionPolicy = "encryption-policy", "an entry of an encrypted directory is not encrypted as the directory is", unsafe;
    IndexRoot = "index-root", "the root of a directory's index is damaged", safe;
    IndexNode = "index-node", "a node of a directory's index is damaged", safe;
    IndexChecksum = "index-checksum", "the checksum of a node of a directory's index is wrong", safe;
    IndexOrder = "index-order", "the index of a directory does not lead to its names", safe;

    // Connectivity and links.
    RootMissing = "root-missing", "there is no root directory", unsafe;
    Unconnected = "unconnected", "no directory has an entry for a directory", safe;
    Loop = "loop", "directories lie in one another", unsafe;
    ParentWrong = "parent-wrong", "the parent that a directory names is not its parent", safe;
    Unattached = "unattached", "an inode is in use that has no name", safe;
    LinkCount = "link-count", "the number of names of an inode is wrong", safe;
    DirNlink = "dir-nlink", "a directory has more subdirectories than the volume's features allow", safe;
    ValueReferences = "value-references", "an inode of a value is shared by another number of attributes", safe;

    // Orphans and quotas.
    Orphan = "orphan", "the removal of an inode was not finished", notice;
    OrphanList = "orphan-list", "the list of orphans is damaged", unsafe;
    OrphanInFile = "orphan-in-file", "the orphan file has inodes whose removal was not finished", safe;
    OrphanFile = "orphan-file", "the orphan file is damaged", unsafe;
    OrphanPresent = "orphan-present", "the volume says that the orphan file has entries", safe;
    QuotaFile = "quota-file", "a quota file is damaged", unsafe;
    QuotaUsage = "quota-usage", "what a quota file says that somebody uses is wrong", safe;

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
