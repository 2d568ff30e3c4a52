use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::Result;
use crate::error::Reason;

/// How long a copy that is held back sleeps before it looks whether it was cancelled.
const NAP: Duration = Duration::from_millis(20);

/// How fast a copy may go, and whether it shall go on.
#[derive(Debug, Default)]
pub(super) struct Pace {
    cancel: Option<Arc<AtomicBool>>,
    /// Bytes a second.
    limit: Option<u64>,
    /// When what was admitted so far is through at that rate.
    free_at: Mutex<Option<Instant>>,
}

impl Pace {
    pub(super) fn new(cancel: Option<Arc<AtomicBool>>, limit: Option<u64>) -> Self {
        Self { cancel, limit: limit.map(|limit| limit.max(1)), free_at: Mutex::default() }
    }

    /// An error once the copy was cancelled.
    pub(super) fn check(&self) -> Result<()> {
        match &self.cancel {
            Some(cancel) if cancel.load(Ordering::Relaxed) => Err(Reason::Cancelled.into()),
            _ => Ok(()),
        }
    }

    /// Waits until so many more bytes may be copied.
    pub(super) fn admit(&self, bytes: u64) -> Result<()> {
        self.check()?;
        let Some(limit) = self.limit else { return Ok(()) };
        let start = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            let start = free_at.map_or_else(Instant::now, |at| at.max(Instant::now()));
            *free_at = start.checked_add(Duration::from_secs_f64(bytes as f64 / limit as f64));
            start
        };
        loop {
            let rest = start.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return Ok(());
            }
            std::thread::sleep(rest.min(NAP));
            self.check()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_holds_back_and_a_cancelled_copy_does_not_wait() {
        let cancel = Arc::new(AtomicBool::new(false));
        let pace = Pace::new(Some(cancel.clone()), Some(1 << 20));
        let start = Instant::now();
        for _ in 0..4 {
            pace.admit(64 << 10).unwrap();
        }
        // The first of them did not wait.
        assert!(start.elapsed() >= Duration::from_millis(180), "{:?}", start.elapsed());
        pace.admit(1 << 30).unwrap();
        cancel.store(true, Ordering::Relaxed);
        assert!(pace.admit(1).unwrap_err().is_cancelled());
    }
}
