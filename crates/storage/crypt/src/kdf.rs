//! Making keys of passphrases, at a cost that is bounded.

use std::time::{Duration, Instant};

use argon2::{Algorithm, Block, Params, Version};
use zeroize::{Zeroize, Zeroizing};

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
    /// A few minutes on a slow machine and 4 GiB of memory: more than any program asks for by itself.
    fn default() -> Self {
        Self { hashes: 1 << 30, memory_kib: 4 << 20, memory_passes_kib: 128 << 20 }
    }
}

/// How a passphrase is stretched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs, reason = "each is its function")]
pub enum Kdf {
    Pbkdf2 { hash: Hash, iterations: u32 },
    Argon2i(Argon2),
    Argon2id(Argon2),
}

/// The cost of Argon2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Argon2 {
    /// How many times the memory is filled.
    pub passes: u32,
    /// The memory in KiB.
    pub memory_kib: u32,
    /// How many threads could share the work.
    pub lanes: u32,
}

/// The most lanes: more than any program asks for.
const MAX_LANES: u32 = 64;

impl Kdf {
    /// The key of `len` bytes that a passphrase stands for.
    pub(crate) fn derive(&self, secret: &[u8], salt: &[u8], len: usize) -> Result<Zeroizing<Vec<u8>>> {
        match self {
            Self::Pbkdf2 { hash, iterations } => Ok(hash.pbkdf2(secret, salt, *iterations, len)),
            Self::Argon2i(cost) => cost.derive(Algorithm::Argon2i, secret, salt, len),
            Self::Argon2id(cost) => cost.derive(Algorithm::Argon2id, secret, salt, len),
        }
    }
}

impl Argon2 {
    /// A cost of about so much time on this machine, with at most so much memory: at least four passes, and less
    /// memory where they would take longer.
    pub fn in_time(time: Duration, memory_kib: u32, lanes: u32) -> Result<Self> {
        const PROBE: u32 = 32 << 10;
        let lanes = lanes.clamp(1, MAX_LANES);
        let probe = Self { passes: 1, memory_kib: PROBE, lanes };
        let begun = Instant::now();
        probe.derive(Algorithm::Argon2id, b"passphrase", &[1; 32], 32)?;
        let per_kib = begun.elapsed().as_secs_f64() / f64::from(PROBE);
        let affordable = time.as_secs_f64() / per_kib.max(1e-12);
        let least = 8 * lanes.max(4);
        let memory_kib = memory_kib.max(least).min(((affordable / 4.0) as u32).max(PROBE));
        let passes = ((affordable / f64::from(memory_kib)) as u32).max(4);
        Ok(Self { passes, memory_kib, lanes })
    }

    fn derive(
        &self,
        algorithm: Algorithm,
        secret: &[u8],
        salt: &[u8],
        len: usize,
    ) -> Result<Zeroizing<Vec<u8>>> {
        let refused = |_| Error::unsupported("this cost of Argon2");
        let params = Params::new(self.memory_kib, self.passes, self.lanes, Some(len)).map_err(refused)?;
        let count = params.block_count();
        let mut blocks: Vec<Block> = Vec::new();
        let bytes = count as u64 * Block::SIZE as u64;
        blocks.try_reserve_exact(count).map_err(|_| Error::from(Reason::NoMemory { bytes }))?;
        blocks.resize(count, Block::default());
        let mut key = Zeroizing::new(vec![0; len]);
        let argon2 = argon2::Argon2::new(algorithm, Version::V0x13, params);
        let done = argon2.hash_password_into_with_memory(secret, salt, &mut key, &mut blocks[..]);
        // The rest of a gigabyte says no more than its end.
        blocks.iter_mut().rev().take(64).for_each(Zeroize::zeroize);
        done.map_err(refused)?;
        Ok(key)
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
        let cost = u64::from(iterations) * len.div_ceil(hash.output_len()) as u64;
        let limit = self.limits.hashes;
        let rest = self.hashes.checked_sub(cost);
        self.hashes =
            rest.ok_or_else(|| expensive("the number of hashes that open the key slots", cost, limit))?;
        Ok(())
    }

    /// Takes the cost of a key of `len` bytes.
    pub(crate) fn take(&mut self, kdf: &Kdf, len: usize) -> Result<()> {
        match kdf {
            Kdf::Pbkdf2 { hash, iterations } => self.pbkdf2(*hash, *iterations, len),
            Kdf::Argon2i(cost) | Kdf::Argon2id(cost) => self.argon2(cost),
        }
    }

    fn argon2(&mut self, cost: &Argon2) -> Result<()> {
        let (memory, limit) = (cost.memory_kib, self.limits.memory_kib);
        if memory > limit {
            return Err(expensive("the memory in KiB that opens a key slot", memory.into(), limit.into()));
        }
        if cost.lanes > MAX_LANES {
            return Err(expensive(
                "the number of threads that open a key slot",
                cost.lanes.into(),
                MAX_LANES.into(),
            ));
        }
        let work = u64::from(memory) * u64::from(cost.passes);
        let limit = self.limits.memory_passes_kib;
        let rest = self.memory_passes_kib.checked_sub(work);
        let what = "the memory in KiB times passes that opens the key slots";
        self.memory_passes_kib = rest.ok_or_else(|| expensive(what, work, limit))?;
        Ok(())
    }
}

fn expensive(what: &'static str, cost: u64, limit: u64) -> Error {
    Reason::TooExpensive { what, cost, limit }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn argon2_is_that_of_its_reference_program() {
        // From the test suite of the reference implementation: t=2, m=2^16 KiB, p=1, "password", "somesalt".
        let cost = Argon2 { passes: 2, memory_kib: 65536, lanes: 1 };
        let key = Kdf::Argon2i(cost).derive(b"password", b"somesalt", 32).unwrap();
        assert_eq!(key[..8], [0xc1, 0x62, 0x88, 0x32, 0x14, 0x7d, 0x97, 0x20]);
        let key = Kdf::Argon2id(cost).derive(b"password", b"somesalt", 32).unwrap();
        assert_eq!(key[..8], [0x09, 0x31, 0x61, 0x15, 0xd5, 0xcf, 0x24, 0xed]);
    }

    #[test]
    fn costs_out_of_all_proportion_are_refused_before_they_are_paid() {
        let huge = [
            Kdf::Argon2id(Argon2 { passes: 4, memory_kib: u32::MAX, lanes: 4 }),
            Kdf::Argon2id(Argon2 { passes: u32::MAX, memory_kib: 1 << 20, lanes: 4 }),
            Kdf::Argon2i(Argon2 { passes: 4, memory_kib: 1 << 20, lanes: 65 }),
            Kdf::Pbkdf2 { hash: Hash::Sha256, iterations: u32::MAX },
        ];
        for kdf in huge {
            let mut budget = Budget::new(&Limits::default());
            assert!(budget.take(&kdf, 64).unwrap_err().is_too_expensive(), "{kdf:?}");
        }
        let mut budget = Budget::new(&Limits::default());
        let usual = Kdf::Argon2id(Argon2 { passes: 4, memory_kib: 1 << 20, lanes: 4 });
        assert_eq!((0..).find(|_| budget.take(&usual, 64).is_err()), Some(32));
    }

    #[test]
    fn a_cost_that_argon2_cannot_have_is_an_error() {
        for cost in [(0, 65536, 1), (1, 7, 1), (1, 65536, 0), (1, 8, 4)] {
            let (passes, memory_kib, lanes) = cost;
            let kdf = Kdf::Argon2id(Argon2 { passes, memory_kib, lanes });
            assert!(kdf.derive(b"x", &[0; 16], 32).is_err(), "{cost:?}");
        }
    }

    #[test]
    fn a_cost_in_time_has_at_least_four_passes() {
        let cost = Argon2::in_time(Duration::from_millis(1), 1 << 20, 4).unwrap();
        assert_eq!((cost.passes, cost.memory_kib, cost.lanes), (4, 32 << 10, 4));
    }
}
