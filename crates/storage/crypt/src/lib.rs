//! LUKS: an encrypted disk over a disk.
#![forbid(unsafe_code)]

mod passphrase;

pub use passphrase::Passphrase;
