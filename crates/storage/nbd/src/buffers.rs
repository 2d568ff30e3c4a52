use std::ops::{Deref, DerefMut};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::MAX_PAYLOAD;

/// The least that is worth keeping.
const SMALLEST: usize = 4 << 10;

/// The memory of one connection for the data of requests: lent out, waited for, never more than the limit.
///
/// Buffers are kept for reuse, since fresh memory costs as much as the copying it is for.
pub(crate) struct Buffers {
    state: Mutex<State>,
    returned: Condvar,
    limit: usize,
}

#[derive(Default)]
struct State {
    free: Vec<Vec<u8>>,
    /// The bytes of all buffers, free and lent.
    total: usize,
}

impl Buffers {
    /// Any one request always finds room, whatever the limit.
    pub(crate) fn new(limit: usize) -> Self {
        Self { state: Mutex::default(), returned: Condvar::new(), limit: limit.max(MAX_PAYLOAD as usize) }
    }

    /// Lends `len` bytes that hold nothing in particular; waits until others have returned enough.
    ///
    /// A thread that has borrowed must return before it borrows again.
    pub(crate) fn take(&self, len: usize) -> Lent<'_> {
        let size = len.min(MAX_PAYLOAD as usize).next_power_of_two().max(SMALLEST);
        let mut state = self.lock();
        loop {
            let fitting = state.free.iter().enumerate().filter(|(_, buffer)| buffer.len() >= size);
            if let Some((at, _)) = fitting.min_by_key(|(_, buffer)| buffer.len()) {
                let buffer = state.free.swap_remove(at);
                return Lent { from: self, buffer, len };
            }
            while state.total + size > self.limit
                && let Some(buffer) = state.free.pop()
            {
                state.total -= buffer.len();
            }
            if state.total + size <= self.limit {
                state.total += size;
                drop(state);
                return Lent { from: self, buffer: vec![0; size], len };
            }
            state = self.returned.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes lent to one request, returned when dropped.
pub(crate) struct Lent<'a> {
    from: &'a Buffers,
    buffer: Vec<u8>,
    len: usize,
}

impl Deref for Lent<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buffer[..self.len]
    }
}

impl DerefMut for Lent<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[..self.len]
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        self.from.lock().free.push(std::mem::take(&mut self.buffer));
        self.from.returned.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn never_more_is_lent_than_the_limit() {
        let buffers = Buffers::new(40 << 20);
        let lent = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for thread in 0..6 {
                let (buffers, lent) = (&buffers, &lent);
                scope.spawn(move || {
                    for round in 0..30 {
                        let len = [1, 5000, 3 << 20, 32 << 20][(thread + round) % 4];
                        let buffer = buffers.take(len);
                        assert_eq!(buffer.len(), len);
                        let now = lent.fetch_add(len, Ordering::SeqCst) + len;
                        assert!(now <= 40 << 20, "{now} bytes are lent");
                        lent.fetch_sub(len, Ordering::SeqCst);
                    }
                });
            }
        });
        assert!(buffers.lock().total <= 40 << 20);
    }

    #[test]
    fn a_returned_buffer_is_lent_again() {
        let buffers = Buffers::new(0);
        for _ in 0..100 {
            buffers.take(10_000);
        }
        assert_eq!(buffers.lock().total, 16 << 10);
    }
}
