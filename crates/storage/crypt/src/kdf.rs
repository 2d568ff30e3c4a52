//! Making keys of passphrases, at a cost that is bounded.

use crate::error::Reason;
use crate::{Error, Hash, Result};

/// What opening may cost at most: a header may have been made to keep its reader busy for years.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Computations of a hash in PBKDF2, all key slots together.
    pub hashes: u64,
    /// Memory of Argon2 in KiB.
    pub memory_kib: u32,
    /// KiB of memory times passes of Argon2, all key slots together.
    pub memory_passes_kib: u64,
}

impl Default for Limits {
    /// A few minutes on a slow machine: more than any program asks for by itself.
    fn default() -> Self {
        Self { hashes: 1 << 30, memory_kib: 4 << 20, memory_passes_kib: 128 << 20 }
    }
}

/// What may still be spent.
pub(crate) struct Budget {
    limits: Limits,
    hashes: u64,
    memory_passes_kib: u64,
}

impl Budget {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self { limits: *limits, hashes: limits.hashes, memory_passes_kib: limits.memory_passes_kib }
    }

    /// Takes the cost of PBKDF2 for a key of `len` bytes.
    pub(crate) fn pbkdf2(&mut self, hash: Hash, iterations: u32, len: usize) -> Result<()> {
        let cost = u64::from(iterations) * len.div_ceil(hash.len()) as u64;
        let limit = self.limits.hashes;
        let Some(rest) = self.hashes.checked_sub(cost) else {
            return Err(expensive("computing the hashes of the key slots", cost, limit));
        };
        self.hashes = rest;
        Ok(())
    }
}

fn expensive(what: &'static str, cost: u64, limit: u64) -> Error {
    Reason::TooExpensive { what, cost, limit }.into()
}
