//! The journal: what a crash left in it is found, checked and handed over; nothing is written here.
//!
//! ```text
//! ┌superblock┐┌descriptor┐┌data┐┌data┐┌revoke┐┌commit n┐┌descriptor┐… wraps … ┌fast commits┐
//! ```
//!
//! Numbers are big-endian. Replaying is not copying: [`recover()`] answers which block of the journal holds
//! the newest content of which block of the volume. Fast commits describe changes to files instead; they
//! come as a list for the layer that knows files.

mod checksum;
mod create;
mod fast_commit;
mod layout;
#[cfg(any(test, feature = "test-util"))]
pub(crate) mod model;
mod recover;
mod superblock;

pub(crate) use create::{NewJournal, new_superblock, with_user};
pub(crate) use fast_commit::FastCommit;
pub(crate) use recover::{Recovery, Replayed, recover};
pub(crate) use superblock::JournalSuperblock;
