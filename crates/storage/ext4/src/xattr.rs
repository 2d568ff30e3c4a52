//! Extended attributes in inodes and in blocks.
