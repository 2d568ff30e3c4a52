//! LUKS: an encrypted disk over a disk.
#![forbid(unsafe_code)]

mod af;
mod cipher;
mod error;
mod hash;
mod kdf;
pub mod luks1;
mod passphrase;
mod random;

pub use cipher::{Cipher, Mode, SECTOR};
pub use error::{Error, Result};
pub use hash::Hash;
pub use kdf::Limits;
pub use passphrase::Passphrase;
