//! LUKS: an encrypted disk over a disk.
//!
//! ```text
//! passphrase ─ Header::open ─ CryptDisk ─ partition ─ filesystem …
//!                               │
//!                               └ file: header, key material │ encrypted sectors
//! ```
//!
//! Version 1 is also what encrypted qcow2 images have inside; its [`Cipher`] then encrypts their clusters. Opening is
//! bounded in time and memory by [`Limits`], since a header says itself what it costs.
//!
//! ```
//! use std::sync::Arc;
//! use vmwright_crypt::luks1::Cost;
//! use vmwright_crypt::luks2::{FormatOptions, Stretch, format};
//! use vmwright_crypt::{Hash, Header, Limits, Passphrase};
//! use vmwright_disk::{Disk, MemDisk};
//!
//! let passphrase = Passphrase::new("correct horse");
//! // Cheap, for an example; the default is Argon2id for two seconds.
//! let stretch = Stretch::Pbkdf2 { hash: Hash::Sha256, cost: Cost::Iterations(1000) };
//! let (header, _) = format(&FormatOptions { stretch, ..FormatOptions::default() }, &passphrase)?;
//! let file = Arc::new(MemDisk::new(header.len() + 4096));
//! file.write_at(&header, 0)?;
//!
//! let disk = Header::read(&*file)?.open(file, &passphrase, &Limits::default(), false)?;
//! disk.write_at(b"hello", 1000)?;
//! let mut bytes = [0; 5];
//! disk.read_at(&mut bytes, 1000)?;
//! assert_eq!(&bytes, b"hello");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
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
