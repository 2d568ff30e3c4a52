//! VMs as a user has them: commands, shims and machines are processes of their own.
#![allow(clippy::unwrap_used, clippy::panic)]

mod boots;
mod crash;
mod host;
mod lifecycle;
