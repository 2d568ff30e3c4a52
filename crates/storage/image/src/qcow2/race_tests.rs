//! What happens to an image while one of its writes is under way.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use vmwright_disk::{Disk, Extent, MemDisk, Result};

use crate::{
    BackingFile, CreateOptions, Format, FormatChoice, Image, Layout, OpenOptions, PartMaker, Qcow2Options,
    Repair, create_on,
};

const CLUSTER: usize = 4096;
const SIZE: u64 = 40 * CLUSTER as u64;
/// The write that something else meets begins with this byte.
const MARK: u8 = 0xe1;

type Act = Box<dyn FnOnce() + Send>;

/// A disk that starts something right after the bytes of a marked write have arrived, and gives it some time.
struct Meeting {
    inner: MemDisk,
    act: Mutex<Option<Act>>,
}

impl Meeting {
    fn new() -> Arc<Self> {
        Arc::new(Self { inner: MemDisk::new(0), act: Mutex::default() })
    }

    /// Lets `act` run on a thread of its own in the midst of the next marked write.
    fn meet(&self, act: impl FnOnce() + Send + 'static) -> mpsc::Receiver<()> {
        let (done, wait) = mpsc::channel();
        let act = move || {
            act();
            done.send(()).unwrap();
        };
        *self.act.lock().unwrap() = Some(Box::new(act));
        wait
    }
}

impl Disk for Meeting {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.inner.read_at(buf, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        self.inner.write_at(data, offset)?;
        if data.first() == Some(&MARK)
            && let Some(act) = self.act.lock().unwrap().take()
        {
            // Who has to wait for this very write goes on later.
            let thread = std::thread::spawn(act);
            for _ in 0..30 {
                if !thread.is_finished() {
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
        }
        Ok(())
    }

    fn zero_at(&self, offset: u64, len: u64) -> Result<()> {
        self.inner.zero_at(offset, len)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.inner.discard(offset, len)
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        self.inner.extent_at(offset)
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.inner.set_len(len)
    }

    fn flush(&self) -> Result<()> {
        self.inner.flush()
    }
}

/// Makes the one part that is asked for.
struct One(Arc<dyn Disk>);

impl PartMaker for One {
    fn image_name(&self) -> &str {
        "image"
    }

    fn make(&self, _name: &str) -> crate::Result<Arc<dyn Disk>> {
        Ok(self.0.clone())
    }
}

fn open(file: Arc<dyn Disk>, parts: Vec<Arc<dyn Disk>>, backing: Option<Arc<dyn Disk>>) -> Arc<Image> {
    let options = OpenOptions { parts, backing, ..OpenOptions::default() };
    Arc::new(Image::open(file, FormatChoice::Exact(Format::Qcow2), options).unwrap())
}

fn options(data_file: bool) -> CreateOptions {
    let qcow2 = Qcow2Options {
        cluster_size: CLUSTER as u32,
        data_file: data_file.then(|| "data".to_owned()),
        ..Qcow2Options::default()
    };
    CreateOptions::laid_out(Layout::Qcow2(qcow2), SIZE)
}

fn made() -> (Arc<Meeting>, Arc<Image>) {
    let file = Meeting::new();
    create_on(&(file.clone() as Arc<dyn Disk>), &options(false)).unwrap();
    let image = open(file.clone(), Vec::new(), None);
    (file, image)
}

fn content(image: &Image) -> Vec<u8> {
    let mut bytes = vec![0; image.len() as usize];
    image.read_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn a_repair_takes_nothing_away_from_a_write_under_way() {
    let (file, image) = made();
    image.write_at(&[1; CLUSTER], 0).unwrap();
    let repaired = image.clone();
    let done = file.meet(move || {
        assert!(repaired.repair(Repair::All).unwrap().is_safe());
    });
    image.write_at(&[MARK; 3 * CLUSTER], 2 * CLUSTER as u64).unwrap();
    done.recv_timeout(Duration::from_secs(20)).unwrap();
    image.write_at(&[3; 4 * CLUSTER], 8 * CLUSTER as u64).unwrap();
    image.flush().unwrap();
    assert!(image.check().unwrap().is_clean(), "{:?}", image.check());
    let bytes = content(&image);
    assert!(bytes[2 * CLUSTER..5 * CLUSTER].iter().all(|byte| *byte == MARK));
    assert!(bytes[8 * CLUSTER..12 * CLUSTER].iter().all(|byte| *byte == 3));
}

#[test]
fn a_write_past_the_end_of_a_disk_that_shrinks_meanwhile_is_refused() {
    for (size, ok) in [(2 * CLUSTER, false), (30 * CLUSTER + 512, false), (33 * CLUSTER, true)] {
        let (file, image) = made();
        image.write_at(&[1; CLUSTER], 0).unwrap();
        let shrunk = image.clone();
        let done = file.meet(move || shrunk.set_len(size as u64).unwrap());
        let written = image.write_at(&[MARK; 3 * CLUSTER], 30 * CLUSTER as u64);
        done.recv_timeout(Duration::from_secs(20)).unwrap();
        assert_eq!(written.is_ok(), ok, "{written:?}");
        image.flush().unwrap();
        assert!(image.check().unwrap().is_clean(), "{:?}", image.check());
        image.set_len(SIZE).unwrap();
        assert!(content(&image)[size..].iter().all(|byte| *byte == 0));
    }
}

#[test]
fn a_write_at_the_end_of_a_disk_that_grows_meanwhile_keeps_what_follows() {
    let (file, image) = made();
    let end = SIZE - CLUSTER as u64 + 512;
    image.set_len(end).unwrap();
    let grown = image.clone();
    let done = file.meet(move || {
        grown.set_len(SIZE).unwrap();
        grown.write_at(&[7; 100], end + 10).unwrap();
    });
    image.write_at(&[MARK; 512], end - 512).unwrap();
    done.recv_timeout(Duration::from_secs(20)).unwrap();
    let bytes = content(&image);
    let at = end as usize;
    assert!(bytes[at - 512..at].iter().all(|byte| *byte == MARK));
    assert!(bytes[at + 10..at + 110].iter().all(|byte| *byte == 7));
    image.flush().unwrap();
    assert!(image.check().unwrap().is_clean());
}

#[test]
fn two_writes_to_the_same_new_cluster_of_a_data_file_leave_each_byte_as_one_of_them() {
    let (file, data) = (MemDisk::new(0), Meeting::new());
    let file: Arc<dyn Disk> = Arc::new(file);
    crate::driver::create(&file, &options(true), &One(data.clone())).unwrap();
    let image = open(file, vec![data.clone()], None);
    image.write_at(&[1; CLUSTER], 0).unwrap();
    let other = image.clone();
    let at = 5 * CLUSTER as u64;
    let done = data.meet(move || other.write_at(&[7; 100], at + 300).unwrap());
    image.write_at(&[MARK; CLUSTER], at).unwrap();
    done.recv_timeout(Duration::from_secs(20)).unwrap();
    let bytes = &content(&image)[at as usize..][..CLUSTER];
    assert!(bytes[..300].iter().chain(&bytes[400..]).all(|byte| *byte == MARK));
    assert!(bytes[300..400].iter().all(|byte| *byte == 7 || *byte == MARK));
}

#[test]
fn a_crash_while_an_image_with_a_data_file_is_emptied_shows_the_old_or_the_backing_file() {
    use vmwright_disk::fault::{Fault, FaultDisk};
    let backing: Arc<dyn Disk> = Arc::new(MemDisk::from_bytes(vec![9; SIZE as usize]));
    let mut seen = [false; 2];
    for nth in 0..40 {
        let (file, data) = (Arc::new(MemDisk::new(0)), Arc::new(MemDisk::new(0)));
        let mut options = options(true);
        options.backing = Some(BackingFile { name: "base".into(), format: Some("raw".into()) });
        crate::driver::create(&(file.clone() as Arc<dyn Disk>), &options, &One(data.clone())).unwrap();
        let image = open(file.clone(), vec![data.clone()], Some(backing.clone()));
        image.write_at(&[1; 6 * CLUSTER], 0).unwrap();
        image.flush().unwrap();
        drop(image);
        let faulty = Arc::new(FaultDisk::with_fault(file.clone(), nth, Fault::Stop));
        let image = open(faulty, vec![data.clone()], Some(backing.clone()));
        let _ = image.driver().make_empty();
        drop(image);
        let bytes = content(&open(file, vec![data], Some(backing.clone())));
        for cluster in bytes[..6 * CLUSTER].chunks(CLUSTER) {
            assert!(cluster.iter().all(|byte| *byte == cluster[0]));
            assert!([1, 9].contains(&cluster[0]), "change {nth}: {}", cluster[0]);
            seen[usize::from(cluster[0] == 9)] = true;
        }
    }
    assert_eq!(seen, [true; 2]);
}
