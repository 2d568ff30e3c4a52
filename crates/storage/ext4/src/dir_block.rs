//! Directory blocks without an index: records, insert, remove, iterate, checksum tails.
