//! Going on with a copy that ended early.
//!
//! ```text
//! DST.vmwright-part       the new image as far as it is
//! DST.vmwright-progress   what was copied and how (a digest), and up to where the part is durable
//! ```
//!
//! The record is written after the part was flushed, so that it never promises too much; without a record, or with that
//! of another copy, nothing is gone on with.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use vmwright_disk::Disk;

use super::options::{ConvertOptions, SourceIdentity};
use crate::create::FreshImage;
use crate::error::Reason;
use crate::{CreateOptions, Error, Image, Result};

/// How often it is noted how far a copy is: each time costs a flush.
const EVERY: Duration = Duration::from_secs(5);

/// What a record begins with.
const MAGIC: &[u8; 16] = b"vmwright copy 1\n";

/// What is copied and how.
pub(super) fn digest(identity: &SourceIdentity, len: u64, options: &ConvertOptions) -> blake3::Hash {
    let base = options.base.as_ref().map(|base| (&base.name, base.disk.len()));
    let how = (
        &options.layout,
        options.compress,
        options.level,
        options.find_zeros,
        base,
        options.secret.is_some(),
    );
    let mut hasher = blake3::Hasher::new();
    hasher.update(identity.0.as_bytes()).update(&len.to_le_bytes()).update(format!("{how:?}").as_bytes());
    hasher.finalize()
}

/// Takes up the unfinished file of an earlier copy, or begins a new one; answers up to where everything is in it.
pub(super) fn begin(
    path: &Path,
    create: &CreateOptions,
    force: bool,
    digest: blake3::Hash,
) -> Result<(FreshImage, u64)> {
    let Some(unfinished) = FreshImage::take_up(path, force)? else {
        let fresh = FreshImage::begin(path, create, force)?;
        if !fresh.parts().is_empty() {
            return Err(Error::unsupported("going on with a copy to an image of several files"));
        }
        return Ok((fresh, 0));
    };
    let Some(record) = unfinished.note()? else {
        // It was lost before it was first noted how far it is.
        drop(unfinished);
        return Ok((FreshImage::begin(path, create, force)?, 0));
    };
    let refuse = |why| Err(Reason::CannotResume { path: unfinished.unfinished().to_owned(), why }.into());
    let Some((found, done)) = parse(&record) else {
        return refuse("its record is damaged");
    };
    if found != *digest.as_bytes() {
        return refuse("the source has changed since, or this is another copy");
    }
    unfinished.keep(true);
    Ok((unfinished, done))
}

fn parse(record: &[u8]) -> Option<([u8; 32], u64)> {
    let (body, sum) = record.split_last_chunk::<32>()?;
    let body = body.strip_prefix(MAGIC).filter(|_| blake3::hash(body) == *sum)?;
    let (digest, done) = body.split_first_chunk::<32>()?;
    Some((*digest, u64::from_le_bytes(done.try_into().ok()?)))
}

fn encode(digest: &blake3::Hash, done: u64) -> Vec<u8> {
    let mut record = [&MAGIC[..], digest.as_bytes(), &done.to_le_bytes()].concat();
    record.extend_from_slice(blake3::hash(&record).as_bytes());
    record
}

/// Notes how far a copy is.
pub(super) struct Progressing<'a> {
    fresh: &'a FreshImage,
    image: &'a Image,
    digest: blake3::Hash,
    noted: Mutex<(u64, Instant)>,
}

impl<'a> Progressing<'a> {
    pub(super) fn new(fresh: &'a FreshImage, image: &'a Image, digest: blake3::Hash, start: u64) -> Self {
        Self { fresh, image, digest, noted: Mutex::new((start, Instant::now())) }
    }

    /// Makes what was copied durable and notes how far that is, from time to time.
    pub(super) fn note(&self, done: u64) -> Result<()> {
        let Ok(mut noted) = self.noted.try_lock() else { return Ok(()) };
        if done <= noted.0 || noted.1.elapsed() < EVERY {
            return Ok(());
        }
        self.save(done)?;
        *noted = (done, Instant::now());
        Ok(())
    }

    fn save(&self, done: u64) -> Result<()> {
        self.image.flush()?;
        self.fresh.save_note(&encode(&self.digest, done))?;
        self.fresh.keep(true);
        Ok(())
    }

    /// Notes how far a copy is that ends early.
    pub(super) fn end(&self, done: u64) -> Result<()> {
        let noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        if done > noted.0 { self.save(done) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_was_changed_is_not_believed() {
        let digest = blake3::hash(b"copy");
        let record = encode(&digest, 1 << 33);
        assert_eq!(parse(&record), Some((*digest.as_bytes(), 1 << 33)));
        for index in 0..record.len() {
            let mut changed = record.clone();
            changed[index] ^= 1;
            assert_eq!(parse(&changed), None);
        }
        assert_eq!(parse(&record[..record.len() - 1]), None);
    }
}
