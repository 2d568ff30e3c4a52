//! What a crash may do to an image: every place where the writes can stop, and every way in which a write cache
//! can lose them.

use std::collections::HashSet;
use std::sync::Arc;

use vmwright_disk::fault::{Fault, FaultDisk, Loss, VolatileDisk};
use vmwright_disk::{Disk, HostFile, MemDisk};
use vmwright_judges::{output, tool};

use crate::{CreateOptions, Format, FormatChoice, Image, OpenOptions, Qcow2Options, create_on};

const SECTOR: usize = 512;
const QCOW2: FormatChoice = FormatChoice::Exact(Format::Qcow2);

/// What a guest may find in each sector after a crash.
#[derive(Clone)]
struct Model {
    now: Vec<u8>,
    /// What each sector was at the last flush and since.
    possible: Vec<HashSet<Vec<u8>>>,
}

impl Model {
    fn new(size: usize) -> Self {
        let mut model = Self { now: vec![0; size], possible: Vec::new() };
        model.flushed();
        model
    }

    fn flushed(&mut self) {
        self.possible = self.now.chunks(SECTOR).map(|sector| HashSet::from([sector.to_vec()])).collect();
    }

    /// A change began: from now on, a crash may show it.
    fn change(&mut self, offset: usize, data: &[u8]) {
        self.now[offset..offset + data.len()].copy_from_slice(data);
        for index in offset / SECTOR..(offset + data.len()).div_ceil(SECTOR) {
            let end = ((index + 1) * SECTOR).min(self.now.len());
            self.possible[index].insert(self.now[index * SECTOR..end].to_vec());
        }
    }

    fn allows(&self, bytes: &[u8]) -> Result<(), usize> {
        let mut sectors = bytes.chunks(SECTOR).zip(&self.possible);
        match sectors.position(|(sector, possible)| !possible.contains(sector)) {
            Some(index) => Err(index * SECTOR),
            None => Ok(()),
        }
    }
}

#[derive(Clone, Copy)]
enum Step {
    Write { offset: usize, len: usize, byte: u8 },
    Zero { offset: usize, len: usize },
    Discard { offset: usize, len: usize },
    Flush,
}

use Step::{Discard, Flush, Write, Zero};

/// Allocation, overwriting, copying, zeroing, discarding and reusing, in clusters of 4 KiB.
const STEPS: [Step; 16] = [
    Write { offset: 0, len: 12288, byte: 1 },
    Write { offset: 20_000, len: 100, byte: 2 },
    Flush,
    Write { offset: 4096, len: 512, byte: 3 },
    Discard { offset: 0, len: 4096 },
    Write { offset: 40_960, len: 4096, byte: 4 },
    Flush,
    Write { offset: 45_056, len: 8192, byte: 5 },
    Zero { offset: 8192, len: 16_384 },
    Flush,
    Write { offset: 8192, len: 4608, byte: 6 },
    Write { offset: 2_200_000, len: 5000, byte: 7 },
    Discard { offset: 40_960, len: 12_288 },
    Flush,
    Write { offset: 40_960, len: 8192, byte: 8 },
    Write { offset: 1024, len: 1024, byte: 9 },
];

const SIZE: usize = 2_300_416;

/// Does all steps until one fails; answers what is possible afterwards.
fn run(file: Arc<dyn Disk>, mut model: Model) -> Model {
    let Ok(image) = Image::open(file, QCOW2, OpenOptions { cache_bytes: 1, ..Default::default() }) else {
        return model;
    };
    for step in STEPS {
        let result = match step {
            Write { offset, len, byte } => {
                let data = vec![byte; len];
                model.change(offset, &data);
                image.write_at(&data, offset as u64)
            }
            Zero { offset, len } => {
                model.change(offset, &vec![0; len]);
                image.zero_at(offset as u64, len as u64)
            }
            Discard { offset, len } => {
                model.change(offset, &vec![0; len]);
                image.discard(offset as u64, len as u64)
            }
            Flush => image.flush().map(|()| model.flushed()),
        };
        if result.is_err() {
            break;
        }
    }
    model
}

/// The image after a crash must open, be safe to use, and hold what a guest may find.
fn judge(bytes: Vec<u8>, model: &Model, about: &str) {
    let image = Image::open(Arc::new(MemDisk::from_bytes(bytes)), QCOW2, OpenOptions::default()).unwrap();
    let report = image.check().unwrap_or_else(|error| panic!("{about}: {error}"));
    assert!(report.is_safe(), "{about}: {report:?}");
    let mut content = vec![0; image.len() as usize];
    image.read_at(&mut content, 0).unwrap();
    if let Err(offset) = model.allows(&content) {
        panic!("{about}: the sector at {offset} begins with {:?}", &content[offset..offset + 4]);
    }
}

fn qemu_judges(bytes: &[u8], about: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    HostFile::create(&path, bytes.len() as u64).unwrap().write_at(bytes, 0).unwrap();
    let output = output("qemu-img", ["check", "-f", "qcow2", path.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(matches!(output.status.code(), Some(0 | 3)), "{about}: {text}");
}

fn empty(cluster_size: u32, refcount_bits: u32) -> Vec<u8> {
    let qcow2 = Qcow2Options { cluster_size, refcount_bits, ..Qcow2Options::default() };
    let file = Arc::new(MemDisk::new(0));
    let options = CreateOptions { qcow2, ..CreateOptions::new(Format::Qcow2, SIZE as u64) };
    create_on(&(file.clone() as Arc<dyn Disk>), &options).unwrap();
    file.to_bytes()
}

/// Counts the changes that all steps make to the file.
fn changes(bytes: Vec<u8>) -> u64 {
    let counter = Arc::new(FaultDisk::new(Arc::new(MemDisk::from_bytes(bytes))));
    run(counter.clone(), Model::new(SIZE));
    counter.changes()
}

fn crash_everywhere(bytes: &[u8], samples: u64) {
    let with_qemu = tool("qemu-img").is_some();
    let total = changes(bytes.to_vec());
    assert!(total > 40, "only {total} changes");
    for nth in 0..=total {
        for fault in [Fault::Stop, Fault::Tear(700)] {
            let file = Arc::new(VolatileDisk::new(bytes.to_vec()));
            let model = run(Arc::new(FaultDisk::with_fault(file.clone(), nth, fault)), Model::new(SIZE));
            for (index, loss) in Loss::choices(file.pending(), samples).enumerate() {
                let about = format!("{fault:?} at change {nth}, {loss:?}");
                let after = file.after_crash(loss);
                if with_qemu && index == 1 && nth % 4 == 0 {
                    qemu_judges(&after, &about);
                }
                judge(after, &model, &about);
            }
        }
    }
}

#[test]
fn crash_after_flush_data_survives() {
    let torture = std::env::var_os("VMWRIGHT_TORTURE").is_some();
    for refcount_bits in if torture { vec![1, 2, 4, 8, 16, 32, 64] } else { vec![64] } {
        crash_everywhere(&empty(4096, refcount_bits), if torture { 40 } else { 4 });
    }
}

#[test]
fn crash_while_refcount_blocks_are_made_loses_nothing() {
    // A block of 64-bit counts covers 64 clusters of 512 bytes: the steps need several new ones.
    crash_everywhere(&empty(512, 64), 1);
}

#[test]
fn a_failed_write_is_reported_and_the_image_goes_on() {
    let bytes = empty(4096, 16);
    for nth in 0..changes(bytes.clone()) {
        let file = Arc::new(MemDisk::from_bytes(bytes.clone()));
        for fault in [Fault::Fail, Fault::NoSpace] {
            let model = run(Arc::new(FaultDisk::with_fault(file.clone(), nth, fault)), Model::new(SIZE));
            drop(model);
            // What was done until then may be incomplete, since nothing was flushed after; never unsafe.
            let image = Image::open(file.clone(), QCOW2, OpenOptions::default()).unwrap();
            assert!(image.check().unwrap().is_safe(), "{fault:?} at change {nth}");
            image.write_at(&[1; 10_000], 100_000).unwrap();
            image.flush().unwrap();
            assert!(image.check().unwrap().is_safe(), "after {fault:?} at change {nth}");
        }
    }
}
