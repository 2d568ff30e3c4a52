//! What a crash may do to an image of any format: every place where the writes can stop, and every way in which a
//! write cache can lose them.

use std::collections::HashSet;
use std::sync::Arc;

use vmwright_disk::fault::{Fault, FaultDisk, Loss, VolatileDisk};
use vmwright_disk::{Disk, ErrorKind, HostFile, MemDisk};
use vmwright_judges::{output, tool};

use crate::{CreateOptions, FormatChoice, Image, Layout, OpenOptions, create_on};

const SECTOR: usize = 512;

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

    /// Whether a guest may find these bytes; `torn` if a write may have stopped within a sector.
    fn allows(&self, bytes: &[u8], torn: bool) -> Result<(), usize> {
        let mut sectors = bytes.chunks(SECTOR).zip(&self.possible);
        let fits = |sector: &[u8], possible: &HashSet<Vec<u8>>| {
            possible.contains(sector) || torn && is_torn(sector, possible)
        };
        match sectors.position(|(sector, possible)| !fits(sector, possible)) {
            Some(index) => Err(index * SECTOR),
            None => Ok(()),
        }
    }
}

/// Whether a sector begins as one of these and ends as another.
fn is_torn(sector: &[u8], possible: &HashSet<Vec<u8>>) -> bool {
    let same = |pairs: &mut dyn Iterator<Item = (&u8, &u8)>| pairs.take_while(|(a, b)| a == b).count();
    let begins = possible.iter().map(|old| same(&mut sector.iter().zip(old))).max().unwrap_or(0);
    let ends =
        possible.iter().map(|new| same(&mut sector.iter().rev().zip(new.iter().rev()))).max().unwrap_or(0);
    begins + ends >= sector.len()
}

/// One change.
#[derive(Clone, Copy)]
pub(crate) enum Step {
    Write { offset: usize, len: usize, byte: u8 },
    Zero { offset: usize, len: usize },
    Discard { offset: usize, len: usize },
    Flush,
}

/// What is done to which image.
#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) layout: Layout,
    /// The size of the disk in bytes.
    pub(crate) size: usize,
    pub(crate) steps: Vec<Step>,
    /// The format by which `qemu-img check` judges the image; `None` where it has no check.
    pub(crate) qemu_check: Option<&'static str>,
    /// Whether the format writes zeros in place at any byte, so that a crash in their midst shows within a sector.
    pub(crate) tears_sectors: bool,
}

use Step::{Discard, Flush, Write, Zero};

/// Allocation, overwriting, copying, zeroing, discarding and reusing, in clusters of 4 KiB.
pub(crate) const STEPS: [Step; 16] = [
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

/// A size that [`STEPS`] fit into.
pub(crate) const SIZE: usize = 2_300_416;

/// Does all steps until one fails; answers what is possible afterwards.
fn run(case: &Case, file: Arc<dyn Disk>) -> Model {
    let mut model = Model::new(case.size);
    let Ok(image) = Image::open(file, case.choice(), OpenOptions { cache_bytes: 1, ..Default::default() })
    else {
        return model;
    };
    for &step in &case.steps {
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
fn judge(case: &Case, bytes: Vec<u8>, model: &Model, torn: bool, about: &str) {
    let file = Arc::new(MemDisk::from_bytes(bytes));
    let image = Image::open(file, case.choice(), OpenOptions::default())
        .unwrap_or_else(|error| panic!("{about}: {error}"));
    assert_safe(&image, about);
    let mut content = vec![0; image.len() as usize];
    image.read_at(&mut content, 0).unwrap();
    if let Err(offset) = model.allows(&content, torn) {
        panic!("{about}: the sector at {offset} begins with {:?}", &content[offset..offset + 4]);
    }
}

fn assert_safe(image: &Image, about: &str) {
    match image.check() {
        Ok(report) => assert!(report.is_safe(), "{about}: {report:?}"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::Unsupported, "{about}: {error}"),
    }
}

fn qemu_judges(format: &str, bytes: &[u8], about: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    HostFile::create(&path, bytes.len() as u64).unwrap().write_at(bytes, 0).unwrap();
    let output = output("qemu-img", ["check", "-f", format, path.to_str().unwrap()]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(matches!(output.status.code(), Some(0 | 3)), "{about}: {text}");
}

impl Case {
    fn choice(&self) -> FormatChoice {
        FormatChoice::Exact(self.layout.format())
    }

    fn empty(&self) -> Vec<u8> {
        let file = Arc::new(MemDisk::new(0));
        let options = CreateOptions::laid_out(self.layout.clone(), self.size as u64);
        create_on(&(file.clone() as Arc<dyn Disk>), &options).unwrap();
        file.to_bytes()
    }

    /// Counts the changes that all steps make to the file.
    fn changes(&self) -> u64 {
        let counter = Arc::new(FaultDisk::new(Arc::new(MemDisk::from_bytes(self.empty()))));
        run(self, counter.clone());
        counter.changes()
    }

    /// Crashes at every change, and loses what was not flushed in `samples` ways more than the simple ones; answers
    /// how many changes there were. Data that was flushed must survive, and the image must be safe to use.
    pub(crate) fn crash_everywhere(&self, samples: u64) -> u64 {
        let format = self.qemu_check.filter(|_| tool("qemu-img").is_some());
        let (bytes, total) = (self.empty(), self.changes());
        for nth in 0..=total {
            for fault in [Fault::Stop, Fault::Tear(700)] {
                let file = Arc::new(VolatileDisk::new(bytes.clone()));
                let model = run(self, Arc::new(FaultDisk::with_fault(file.clone(), nth, fault)));
                for (index, loss) in Loss::choices(file.pending(), samples).enumerate() {
                    let about = format!("{fault:?} at change {nth}, {loss:?}");
                    let after = file.after_crash(loss);
                    if let Some(format) = format.filter(|_| index == 1 && nth % 4 == 0) {
                        qemu_judges(format, &after, &about);
                    }
                    let torn = self.tears_sectors && matches!(fault, Fault::Tear(_));
                    judge(self, after, &model, torn, &about);
                }
            }
        }
        total
    }

    /// Lets every change fail once: the image must be safe to use and can be written on.
    pub(crate) fn fail_everywhere(&self) {
        for nth in 0..self.changes() {
            let file = Arc::new(MemDisk::from_bytes(self.empty()));
            for fault in [Fault::Fail, Fault::NoSpace] {
                run(self, Arc::new(FaultDisk::with_fault(file.clone(), nth, fault)));
                // What was done until then may be incomplete, since nothing was flushed after; never unsafe.
                let about = format!("{fault:?} at change {nth}");
                let image = Image::open(file.clone(), self.choice(), OpenOptions::default())
                    .unwrap_or_else(|error| panic!("{about}: {error}"));
                assert_safe(&image, &about);
                image.write_at(&[1; 10_000], 100_000).unwrap();
                image.flush().unwrap();
                assert_safe(&image, &about);
            }
        }
    }
}

/// Whether the long counts are asked for.
pub(crate) fn is_torture() -> bool {
    std::env::var_os("VMWRIGHT_TORTURE").is_some()
}
