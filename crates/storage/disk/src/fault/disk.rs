use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::{Disk, Error, Extent, Result};

/// What happens to the chosen change of a [`FaultDisk`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails without effect; later changes work.
    Fail,
    /// It fails for want of space, without effect; later changes work.
    NoSpace,
    /// Only the first bytes of a write arrive, and it fails; later changes work.
    Tear(usize),
    /// It is reported as done but never arrives.
    Drop,
    /// It and every later change and flush fail without effect, as if the host had stopped.
    Stop,
}

/// A disk that passes everything on but for one change, which meets a fault.
///
/// Changes are counted from zero: each write, zeroing, discard, change of length and flush is one.
pub struct FaultDisk {
    inner: Arc<dyn Disk>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    count: u64,
    plan: Option<(u64, Fault)>,
    stopped: bool,
}

impl FaultDisk {
    /// Passes everything on.
    pub fn new(inner: Arc<dyn Disk>) -> Self {
        Self { inner, state: Mutex::default() }
    }

    /// Passes everything on but change number `nth`.
    pub fn with_fault(inner: Arc<dyn Disk>, nth: u64, fault: Fault) -> Self {
        let state = State { plan: Some((nth, fault)), ..State::default() };
        Self { inner, state: Mutex::new(state) }
    }

    /// Sets which change, counted from the making of this disk, meets a fault.
    pub fn set_fault(&self, nth: u64, fault: Fault) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).plan = Some((nth, fault));
    }

    /// How many changes were asked for so far.
    pub fn changes(&self) -> u64 {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).count
    }

    /// Counts a change; answers which fault it meets.
    fn next(&self) -> Option<Fault> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let number = state.count;
        state.count += 1;
        if state.stopped {
            return Some(Fault::Stop);
        }
        let fault = state.plan.and_then(|(nth, fault)| (nth == number).then_some(fault));
        state.stopped |= fault == Some(Fault::Stop);
        fault
    }

    fn change(
        &self,
        work: impl FnOnce() -> Result<()>,
        torn: impl FnOnce(usize) -> Result<()>,
    ) -> Result<()> {
        match self.next() {
            None => work(),
            Some(Fault::Drop) => Ok(()),
            Some(Fault::Tear(bytes)) => torn(bytes).and(Err(injected(io::ErrorKind::Other))),
            Some(Fault::NoSpace) => Err(injected(io::ErrorKind::StorageFull)),
            Some(Fault::Fail | Fault::Stop) => Err(injected(io::ErrorKind::Other)),
        }
    }
}

fn injected(kind: io::ErrorKind) -> Error {
    Error::host("change", Path::new("a disk with an injected fault"), kind.into())
}

impl Disk for FaultDisk {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn is_read_only(&self) -> bool {
        self.inner.is_read_only()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.inner.read_at(buf, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        let torn = |bytes: usize| self.inner.write_at(&data[..bytes.min(data.len())], offset);
        self.change(|| self.inner.write_at(data, offset), torn)
    }

    fn zero_at(&self, offset: u64, len: u64) -> Result<()> {
        let torn = |bytes: usize| self.inner.zero_at(offset, len.min(bytes as u64));
        self.change(|| self.inner.zero_at(offset, len), torn)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.change(|| self.inner.discard(offset, len), |_| Ok(()))
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.change(|| self.inner.set_len(len), |_| Ok(()))
    }

    fn flush(&self) -> Result<()> {
        self.change(|| self.inner.flush(), |_| Ok(()))
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        self.inner.extent_at(offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ErrorKind, MemDisk};

    #[test]
    fn only_the_chosen_change_meets_the_fault() {
        let inner = Arc::new(MemDisk::new(100));
        let disk = FaultDisk::with_fault(inner.clone(), 1, Fault::Tear(2));
        disk.write_at(&[1; 4], 0).unwrap();
        disk.write_at(&[2; 4], 0).unwrap_err();
        assert_eq!(inner.to_bytes()[..4], [2, 2, 1, 1]);
        disk.write_at(&[3; 4], 0).unwrap();
        assert_eq!((inner.to_bytes()[0], disk.changes()), (3, 3));
    }

    #[test]
    fn after_a_stop_nothing_arrives() {
        let inner = Arc::new(MemDisk::new(100));
        let disk = FaultDisk::with_fault(inner.clone(), 0, Fault::Stop);
        for _ in 0..3 {
            assert_eq!(disk.write_at(&[1; 4], 0).unwrap_err().kind(), ErrorKind::Io);
        }
        assert_eq!(inner.to_bytes(), vec![0; 100]);
    }

    #[test]
    fn a_dropped_write_is_reported_as_done() {
        let inner = Arc::new(MemDisk::new(100));
        FaultDisk::with_fault(inner.clone(), 0, Fault::Drop).write_at(&[1; 4], 0).unwrap();
        assert_eq!(inner.to_bytes(), vec![0; 100]);
    }
}
