//! The corners of the protocol that no ordinary client reaches.

#[path = "../client/mod.rs"]
mod client;
mod handshake;
mod support;
mod transmission;
