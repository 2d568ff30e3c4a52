//! LUKS: an encrypted disk over a disk.
#![forbid(unsafe_code)]

mod af;
mod cipher;
mod disk;
mod error;
mod hash;
mod header;
mod kdf;
pub mod luks1;
pub mod luks2;
mod passphrase;
mod payload;
mod random;

pub use cipher::{Cipher, Mode, SECTOR};
pub use disk::CryptDisk;
pub use error::{Error, Result};
pub use hash::Hash;
pub use header::Header;
pub use kdf::{Argon2, Kdf, Limits};
pub use passphrase::Passphrase;
pub use payload::Payload;
