//! The jbd2 journal: replay and superblock.
