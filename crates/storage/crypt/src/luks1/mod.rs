//! LUKS version 1, which is also how qcow2 images are encrypted.
//!
//! ```text
//! header │ key material of 8 slots │ … │ payload: sectors encrypted with the volume key
//!
//! passphrase ─ PBKDF2 ─ key ─ decrypts ─ key material ─ merge ─ volume key ─ PBKDF2 ─ compare with the digest
//! ```

mod create;
mod edit;
mod header;
pub(crate) mod layout;
mod slots;

#[cfg(test)]
mod tests;

pub use create::{Cost, FormatOptions, format};
pub use header::{Header, Slot};
pub(crate) use slots::same;
