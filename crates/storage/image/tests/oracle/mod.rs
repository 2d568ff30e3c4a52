//! What must hold for every sequence of bytes that is opened as a qcow2 image.
//!
//! Shared by the property tests and the fuzz target.

use std::sync::Arc;

use vmwright_disk::{Disk, Error, ErrorKind, Extent, MemDisk, Result};
use vmwright_image::{
    CreateOptions, Format, FormatChoice, Image, Layout, OpenOptions, Qcow2Options, Repair, check, copy,
    create_on, describe,
};

const QCOW2: FormatChoice = FormatChoice::Exact(Format::Qcow2);

/// Memory that does not grow without bound, as a full host would not.
struct Bounded(MemDisk);

const BOUND: u64 = 16 << 20;

impl Disk for Bounded {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.0.read_at(buf, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        self.0.write_at(data, offset)
    }

    fn zero_at(&self, offset: u64, len: u64) -> Result<()> {
        self.0.zero_at(offset, len)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.0.discard(offset, len)
    }

    fn set_len(&self, len: u64) -> Result<()> {
        if len > BOUND {
            let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
            return Err(Error::host("resize", "memory".as_ref(), full));
        }
        self.0.set_len(len)
    }

    fn flush(&self) -> Result<()> {
        self.0.flush()
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        self.0.extent_at(offset)
    }
}

/// A sound image with data, zeros and compressed clusters, to be damaged.
pub(crate) fn sample(cluster_bits: u32, refcount_bits: u32) -> Vec<u8> {
    let cluster_size = 1u32 << cluster_bits;
    let size = u64::from(cluster_size) * 90 + 512;
    let file: Arc<dyn Disk> = Arc::new(MemDisk::new(0));
    let qcow2 = Qcow2Options { cluster_size, refcount_bits, ..Qcow2Options::default() };
    create_on(&file, &CreateOptions::laid_out(Layout::Qcow2(qcow2), size)).unwrap();
    let image = Image::open(file.clone(), QCOW2, OpenOptions::default()).unwrap();
    let packed = MemDisk::new(size as usize);
    packed.write_at(&vec![7; cluster_size as usize * 5], u64::from(cluster_size) * 20).unwrap();
    copy::copy_data(&packed, &image, true, 1, &|_, _| {}).unwrap();
    image.write_at(&vec![5; cluster_size as usize * 7], 1000).unwrap();
    image.write_at(&[6; 700], u64::from(cluster_size) * 70).unwrap();
    image.zero_at(u64::from(cluster_size) * 3, u64::from(cluster_size)).unwrap();
    image.flush().unwrap();
    let mut bytes = vec![0; file.len() as usize];
    file.read_at(&mut bytes, 0).unwrap();
    bytes
}

/// A sound image with a snapshot and two bitmaps as well.
pub(crate) fn sample_with_history() -> Vec<u8> {
    let file: Arc<dyn Disk> = Arc::new(MemDisk::from_bytes(sample(10, 16)));
    let image = Image::open(file.clone(), QCOW2, OpenOptions::default()).unwrap();
    image.bitmaps().unwrap().add("first", Some(512)).unwrap();
    image.snapshots().unwrap().create("before").unwrap();
    image.write_at(&[8; 3000], 2000).unwrap();
    image.bitmaps().unwrap().add("second", None).unwrap();
    image.write_at(&[9; 100], 80_000).unwrap();
    image.flush().unwrap();
    let mut bytes = vec![0; file.len() as usize];
    file.read_at(&mut bytes, 0).unwrap();
    bytes
}

/// Repairs what may be damaged, then uses what only this format has.
fn repair_and_use(bytes: Vec<u8>, options: &OpenOptions) {
    let file: Arc<dyn Disk> = Arc::new(Bounded(MemDisk::from_bytes(bytes)));
    let sound = match check(file.clone(), QCOW2, Repair::All) {
        Err(error) => {
            assert_kind(error.kind(), "repairing");
            false
        }
        Ok(report) => {
            let again = check(file.clone(), QCOW2, Repair::Nothing).unwrap();
            assert_eq!((again.corruptions, again.leaks), (report.corruptions, report.leaks));
            report.is_clean()
        }
    };
    let Ok(image) = Image::open(file.clone(), QCOW2, options.clone()) else { return };
    let (Ok(snapshots), Ok(bitmaps)) = (image.snapshots(), image.bitmaps()) else { return };
    let mut works = true;
    let mut note = |result: vmwright_image::Result<()>, about: &str| {
        if let Err(error) = result {
            let kind = error.kind();
            if !matches!(kind, ErrorKind::InvalidInput | ErrorKind::Exists | ErrorKind::Io) {
                assert_kind(kind, about);
            }
            works &= kind != ErrorKind::Io;
        }
    };
    note(snapshots.create("new").map(|_| ()), "making a snapshot");
    for bitmap in bitmaps.list().unwrap_or_default().into_iter().take(4) {
        note(bitmaps.dirty(&bitmap.name).map(|_| ()), "reading a bitmap");
        note(bitmaps.merge(&bitmap.name, "first"), "merging bitmaps");
        note(bitmaps.remove(&bitmap.name), "removing a bitmap");
    }
    note(snapshots.apply("before"), "applying a snapshot");
    note(snapshots.delete("before"), "deleting a snapshot");
    note(bitmaps.add("third", None), "adding a bitmap");
    note(image.write_at(&[1; 100], 0).map_err(Into::into), "writing");
    note(image.flush().map_err(Into::into), "flushing");
    if sound && works {
        let report = image.check().unwrap();
        assert!(report.is_safe(), "{report:?}");
    }
}

/// Damages must be called corrupt (or unsupported, or full, or in want of a data file), not a mistake of the caller
/// and not the host's.
fn assert_kind(kind: ErrorKind, about: &str) {
    use ErrorKind::{Corrupt, NoSpace, NotFound, ReadOnly, Unsupported};
    let allowed = [Corrupt, Unsupported, NoSpace, ReadOnly, NotFound];
    assert!(allowed.contains(&kind), "{about}: {kind:?}");
}

/// Opens, maps, reads, checks and writes; whatever works must be right.
pub(crate) fn judge(bytes: Vec<u8>) {
    let copy = bytes.clone();
    let file: Arc<dyn Disk> = Arc::new(Bounded(MemDisk::from_bytes(bytes)));
    if let Err(error) = describe(&*file, QCOW2) {
        assert_kind(error.kind(), "describing");
    }
    let options = OpenOptions { backing: Some(Arc::new(MemDisk::new(10_000))), ..OpenOptions::default() };
    repair_and_use(copy, &options);
    let image = match Image::open(file.clone(), QCOW2, options.clone()) {
        Ok(image) => image,
        Err(error) => return assert_kind(error.kind(), "opening"),
    };
    map_is_whole(&image);
    let sound = match image.check() {
        Ok(report) => report.is_safe(),
        Err(error) => {
            assert_kind(error.kind(), "checking");
            false
        }
    };
    write_and_read_back(&image, sound.then_some(&file), options);
}

/// Extents are never empty, begin where the last one ended, and end with the disk.
fn map_is_whole(image: &Image) {
    let mut at = 0;
    for _ in 0..3000 {
        if at == image.len() {
            return;
        }
        let extent = match image.extent_at(at) {
            Ok(extent) => extent,
            Err(error) => return assert_kind(error.kind(), "mapping"),
        };
        assert!(extent.start == at && extent.len > 0 && extent.end() <= image.len(), "{extent:?}");
        let mut bytes = vec![1; extent.len.min(4096) as usize];
        match image.read_at(&mut bytes, at) {
            Ok(()) => assert!(!extent.is_zero() || bytes.iter().all(|byte| *byte == 0), "{extent:?}"),
            Err(error) => assert_kind(error.kind(), "reading"),
        }
        at = extent.end();
    }
}

/// What is written reads back at once. It also lasts, with a `file` whose image was sound: in another, two places of
/// the disk may share a cluster, and giving one back destroys the other.
fn write_and_read_back(image: &Image, file: Option<&Arc<dyn Disk>>, options: OpenOptions) {
    let cluster_size = image.cluster_size().unwrap_or(512);
    for place in 0..8 {
        // Within one cluster: a damaged image may keep two clusters of the disk in one place.
        let offset = image.len() / 8 * place / cluster_size * cluster_size;
        let skip = place * 37 % cluster_size;
        if offset + skip >= image.len() {
            continue;
        }
        let len = (cluster_size - skip).min(300).min(image.len().saturating_sub(offset + skip));
        let data = vec![0xa5; len as usize];
        if let Err(error) = image.write_at(&data, offset + skip) {
            assert_kind(error.kind(), "writing");
            continue;
        }
        let mut now = vec![0; data.len()];
        image.read_at(&mut now, offset + skip).unwrap();
        assert!(now == data, "at {offset}");
        if let Err(error) = image.flush() {
            assert_kind(error.kind(), "flushing");
            return;
        }
        if let Some(file) = file {
            let again = Image::open(file.clone(), QCOW2, options.clone()).unwrap();
            again.read_at(&mut now, offset + skip).unwrap();
            assert!(now == data, "after reopening, at {offset}");
            assert!(again.check().unwrap().is_safe());
        }
        for result in [image.zero_at(offset, cluster_size), image.discard(offset, cluster_size)] {
            match result {
                Err(error) if error.kind() == ErrorKind::InvalidInput => {
                    assert!(offset + cluster_size > image.len())
                }
                Err(error) => assert_kind(error.kind(), "zeroing"),
                Ok(()) => {}
            }
        }
    }
}
