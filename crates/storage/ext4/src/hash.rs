//! Hashes of names in indexed directories.
