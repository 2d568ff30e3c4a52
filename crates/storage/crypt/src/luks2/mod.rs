//! LUKS version 2.
//!
//! ```text
//! header, JSON │ second copy of both │ key material │ payload: sectors encrypted with the volume key
//!
//! passphrase ─ Argon2id ─ key ─ decrypts ─ key material ─ merge ─ volume key ─ PBKDF2 ─ compare with the digest
//! ```

mod create;
mod edit;
mod header;
pub(crate) mod layout;
mod metadata;
mod unlock;

#[cfg(test)]
mod tests;

pub use create::{FormatOptions, Stretch, format};
pub use header::{Header, Slot};
