use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::Result;

/// Lets what threads did in parallel take effect in its order, from one thread at a time.
pub(super) struct Order<T> {
    state: Mutex<State<T>>,
    moved: Condvar,
}

struct State<T> {
    /// The number whose turn it is.
    next: u64,
    /// Whether a thread is at work on what is due.
    busy: bool,
    ready: BTreeMap<u64, T>,
    stopped: bool,
}

impl<T> Order<T> {
    pub(super) fn new() -> Self {
        let state = State { next: 0, busy: false, ready: BTreeMap::new(), stopped: false };
        Self { state: Mutex::new(state), moved: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until fewer than `window` numbers are due before `number`; false once everything was stopped.
    pub(super) fn wait(&self, number: u64, window: u64) -> bool {
        let waits = |state: &mut State<T>| !state.stopped && number >= state.next.saturating_add(window);
        let state = self.moved.wait_while(self.lock(), waits).unwrap_or_else(PoisonError::into_inner);
        !state.stopped
    }

    /// Ends the turn of the number that it is.
    pub(super) fn pass(&self) {
        self.lock().next += 1;
        self.moved.notify_all();
    }

    /// Hands in what belongs to `number`, and does `work` on whatever is due unless another thread is at it.
    pub(super) fn submit(&self, number: u64, item: T, work: impl Fn(T) -> Result<()>) -> Result<()> {
        let mut state = self.lock();
        state.ready.insert(number, item);
        if state.busy {
            return Ok(());
        }
        state.busy = true;
        loop {
            let next = state.next;
            let Some(item) = state.ready.remove(&next).filter(|_| !state.stopped) else { break };
            drop(state);
            // Where this fails, busy stays set: nobody may go on behind what is missing.
            work(item)?;
            state = self.lock();
            state.next += 1;
            self.moved.notify_all();
        }
        state.busy = false;
        Ok(())
    }

    /// Ends all waiting.
    pub(super) fn stop(&self) {
        self.lock().stopped = true;
        self.moved.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn what_is_handed_in_out_of_order_takes_effect_in_order() {
        let order = Order::new();
        let numbers = AtomicU64::new(0);
        let done = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    loop {
                        let number = numbers.fetch_add(1, Ordering::Relaxed);
                        if number >= 500 || !order.wait(number, 6) {
                            return;
                        }
                        order
                            .submit(number, number, |item| {
                                done.lock().unwrap().push(item);
                                Ok(())
                            })
                            .unwrap();
                    }
                });
            }
        });
        assert_eq!(done.into_inner().unwrap(), (0..500).collect::<Vec<_>>());
    }

    #[test]
    fn stopping_wakes_who_waits_for_a_turn() {
        let order = Order::<()>::new();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| order.wait(5, 1));
            order.stop();
            assert!(!waiting.join().unwrap());
        });
    }
}
