//! Index nodes of hashed directories.
