//! The services of vmwright: listeners, TLS, and who may connect.
//!
//! So far that is [`nbd`]. Libraries print nothing: what happens is told to a function of the caller's.
#![forbid(unsafe_code)]

mod error;
pub mod nbd;

pub use error::{Error, ErrorKind, Result};
