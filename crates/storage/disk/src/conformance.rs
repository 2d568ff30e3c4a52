//! What every [`Disk`] must do, as a function that tests of implementors call; with feature `test-util`.
//!
//! ```
//! use vmwright_disk::{MemDisk, conformance::{Features, check}};
//! use std::sync::Arc;
//!
//! check(&|len| Arc::new(MemDisk::new(len as usize)), Features::default());
//! ```

#![allow(clippy::panic, clippy::unwrap_used, reason = "this is a test, though callers are elsewhere")]

use std::sync::Arc;

use crate::{Disk, ErrorKind, Extent};

/// What the implementation under test is able to do.
#[derive(Debug, Clone, Copy)]
pub struct Features {
    /// Lengths are multiples of this many bytes.
    pub granularity: u64,
    /// The length can be changed.
    pub resizable: bool,
    /// How many random operations are done on each of the disks.
    pub operations: usize,
}

impl Default for Features {
    fn default() -> Self {
        Self { granularity: 1, resizable: true, operations: 300 }
    }
}

/// Checks an implementation; `make` makes a new disk of the given length that reads as zeros.
///
/// # Panics
///
/// Where the disk does not do what [`Disk`] says.
pub fn check(make: &dyn Fn(u64) -> Arc<dyn Disk>, features: Features) {
    new_disks_read_as_zeros(make, features);
    ranges_are_checked(make, features);
    random_operations_agree_with_a_flat_model(make, features);
    reads_run_beside_writes_elsewhere(make, features);
    if !features.resizable {
        lengths_are_fixed(make, features);
    }
}

/// Checks a disk that can only be read, and holds `content`.
///
/// # Panics
///
/// Where the disk does not do what [`Disk`] says.
pub fn check_read_only(disk: &dyn Disk, content: &[u8]) {
    assert!(disk.is_read_only());
    let len = disk.len();
    for result in [disk.write_at(&[1], 0), disk.zero_at(0, 1), disk.discard(0, 1)] {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::ReadOnly);
    }
    assert!(disk.set_len(len + 512).is_err(), "the length cannot be changed");
    disk.flush().unwrap();
    compare(disk, content, "as it was opened");
}

fn length(features: Features, about: u64) -> u64 {
    about.next_multiple_of(features.granularity)
}

fn new_disks_read_as_zeros(make: &dyn Fn(u64) -> Arc<dyn Disk>, features: Features) {
    for about in [0, 1, 511, 4096, 70_001] {
        let len = length(features, about);
        let disk = make(len);
        assert_eq!((disk.len(), disk.is_empty(), disk.is_read_only()), (len, len == 0, false));
        compare(&*disk, &vec![0; len as usize], "when new");
    }
}

fn ranges_are_checked(make: &dyn Fn(u64) -> Arc<dyn Disk>, features: Features) {
    let len = length(features, 10_000);
    let disk = make(len);
    disk.write_at(&[7; 100], len - 100).unwrap();
    for (offset, count) in [(len, 1), (len - 1, 2), (0, len + 1), (u64::MAX, 1), (u64::MAX - 1, 2)] {
        let mut buf = vec![0; count as usize];
        let invalid = |result: crate::Result<()>, what: &str| {
            let kind = result.expect_err("a range past the end is refused").kind();
            assert_eq!(kind, ErrorKind::InvalidInput, "{what} of {count} bytes at {offset}");
        };
        invalid(disk.read_at(&mut buf, offset), "reading");
        invalid(disk.write_at(&buf, offset), "writing");
        invalid(disk.zero_at(offset, count), "zeroing");
        invalid(disk.discard(offset, count), "discarding");
    }
    for offset in [len, u64::MAX] {
        assert_eq!(disk.extent_at(offset).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    // Empty ranges do nothing, even at the end.
    for offset in [0, len] {
        disk.read_at(&mut [], offset).unwrap();
        disk.write_at(&[], offset).unwrap();
        disk.zero_at(offset, 0).unwrap();
        disk.discard(offset, 0).unwrap();
    }
    let mut expected = vec![0; len as usize];
    expected[len as usize - 100..].fill(7);
    compare(&*disk, &expected, "after refused operations");
}

fn lengths_are_fixed(make: &dyn Fn(u64) -> Arc<dyn Disk>, features: Features) {
    let len = length(features, 10_000);
    let disk = make(len);
    assert_eq!(disk.set_len(len * 2).unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(disk.len(), len);
}

fn random_operations_agree_with_a_flat_model(make: &dyn Fn(u64) -> Arc<dyn Disk>, features: Features) {
    let mut random = Random(0x5eed);
    for about in [3000, 66_000, 300_000] {
        let len = length(features, about);
        let disk = make(len);
        let mut model = vec![0; len as usize];
        for step in 0..features.operations {
            let what = operation(&*disk, &mut model, &mut random, features);
            if step % 16 == 0 || step + 1 == features.operations {
                compare(&*disk, &model, &what);
            }
        }
    }
}

/// Does one operation to the disk and its model; answers which.
fn operation(disk: &dyn Disk, model: &mut Vec<u8>, random: &mut Random, features: Features) -> String {
    let offset = random.below(model.len() as u64 + 1);
    let longest = (model.len() as u64 - offset).min([513, 5000, 100_000][random.below(3) as usize]);
    let count = random.below(longest + 1);
    let range = offset as usize..(offset + count) as usize;
    match random.below(10) {
        0..5 => {
            let seed = random.below(255) as u8 + 1;
            let data: Vec<u8> = (0..count).map(|at| seed ^ (at % 253) as u8).collect();
            disk.write_at(&data, offset).unwrap();
            model[range].copy_from_slice(&data);
            format!("after writing {count} bytes at {offset}")
        }
        5..7 => {
            disk.zero_at(offset, count).unwrap();
            model[range].fill(0);
            format!("after zeroing {count} bytes at {offset}")
        }
        7 => {
            disk.discard(offset, count).unwrap();
            let mut bytes = vec![0; count as usize];
            disk.read_at(&mut bytes, offset).unwrap();
            for (now, before) in bytes.iter().zip(&model[range.clone()]) {
                assert!(*now == 0 || now == before, "discarding {count} bytes at {offset} makes up bytes");
            }
            model[range].copy_from_slice(&bytes);
            format!("after discarding {count} bytes at {offset}")
        }
        8 if features.resizable => {
            let len = length(features, random.below(model.len() as u64 * 2 + 1));
            let len = len.min(length(features, 400_000)).max(features.granularity);
            disk.set_len(len).unwrap();
            model.resize(len as usize, 0);
            format!("after changing the length to {len}")
        }
        _ => {
            disk.flush().unwrap();
            "after a flush".into()
        }
    }
}

/// Compares the content, read whole and by extents, with what it should be.
fn compare(disk: &dyn Disk, model: &[u8], when: &str) {
    assert_eq!(disk.len(), model.len() as u64, "length {when}");
    let mut bytes = vec![0xee; model.len()];
    disk.read_at(&mut bytes, 0).unwrap();
    if let Some(at) = (0..model.len()).find(|at| bytes[*at] != model[*at]) {
        panic!("byte {at} is {} and not {} {when}", bytes[at], model[at]);
    }
    let mut at = 0;
    while at < disk.len() {
        let extent: Extent = disk.extent_at(at).unwrap();
        assert_eq!(extent.start, at, "an extent starts where asked {when}");
        assert!(extent.len > 0 && extent.end() <= disk.len(), "{extent:?} lies within the disk {when}");
        let range = extent.start as usize..extent.end() as usize;
        assert!(
            !extent.is_zero() || model[range].iter().all(|byte| *byte == 0),
            "{extent:?} is zeros {when}"
        );
        // Asking from the middle on answers the same.
        let middle = disk.extent_at(at + extent.len / 2).unwrap();
        assert_eq!(middle.is_zero(), extent.is_zero(), "{extent:?} and {middle:?} agree {when}");
        at = extent.end();
    }
}

/// Writers and readers of separate ranges do not disturb one another.
fn reads_run_beside_writes_elsewhere(make: &dyn Fn(u64) -> Arc<dyn Disk>, features: Features) {
    const PART: u64 = 8192;
    let disk = make(length(features, 4 * PART));
    std::thread::scope(|scope| {
        for part in 0..4 {
            let disk = &disk;
            scope.spawn(move || {
                for round in 1..20u8 {
                    let data = [round * 4 + part as u8; PART as usize];
                    disk.write_at(&data, part * PART).unwrap();
                    let mut bytes = [0; PART as usize];
                    disk.read_at(&mut bytes, part * PART).unwrap();
                    assert!(bytes == data, "part {part} in round {round}");
                }
            });
        }
    });
}

/// SplitMix64: the same sequence in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::VolatileDisk;
    use crate::{HostFile, MemDisk, Overlay, Window};

    fn file(len: u64) -> HostFile {
        // The name may go while the file is open.
        let dir = tempfile::tempdir().unwrap();
        HostFile::create(&dir.path().join("disk"), len).unwrap()
    }

    #[test]
    fn memory_conforms() {
        check(&|len| Arc::new(MemDisk::new(len as usize)), Features::default());
    }

    #[test]
    fn a_host_file_conforms() {
        check(&|len| Arc::new(file(len)), Features::default());
    }

    #[test]
    fn a_window_conforms() {
        let make = |len: u64| -> Arc<dyn Disk> {
            let around = Arc::new(MemDisk::from_bytes(vec![0xaa; len as usize + 2000]));
            around.zero_at(1000, len).unwrap();
            Arc::new(Window::new(around, 1000, len).unwrap())
        };
        check(&make, Features { resizable: false, ..Features::default() });
    }

    #[test]
    fn an_overlay_conforms() {
        check(&|len| Arc::new(Overlay::new(Arc::new(MemDisk::new(len as usize)))), Features::default());
        check(&|len| Arc::new(Overlay::new(Arc::new(file(len)))), Features::default());
    }

    #[test]
    fn an_overlay_over_an_overlay_conforms() {
        let make = |len: u64| -> Arc<dyn Disk> {
            let lower = Overlay::new(Arc::new(MemDisk::from_bytes(vec![0xbb; len as usize])));
            lower.zero_at(0, len).unwrap();
            Arc::new(Overlay::new(Arc::new(lower)))
        };
        check(&make, Features::default());
    }

    #[test]
    fn a_volatile_disk_conforms() {
        check(&|len| Arc::new(VolatileDisk::new(vec![0; len as usize])), Features::default());
    }

    #[test]
    fn a_file_opened_for_reading_conforms() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, [5; 9000]).unwrap();
        check_read_only(&HostFile::open(&path, true).unwrap(), &[5; 9000]);
    }
}
