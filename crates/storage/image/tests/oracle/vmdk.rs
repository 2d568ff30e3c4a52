//! What must hold for every sequence of bytes that is opened as a VMDK.
//!
//! Shared by the property tests and the fuzz target.

use std::sync::Arc;

use vmwright_disk::{Disk, Error, ErrorKind, Extent, MemDisk, Result};
use vmwright_image::{
    CreateOptions, Format, FormatChoice, Image, Layout, OpenOptions, Repair, Subformat, VmdkOptions, copy,
    create_on, describe,
};

const VMDK: FormatChoice = FormatChoice::Exact(Format::Vmdk);
const BOUND: u64 = 16 << 20;

/// Memory that does not grow without bound, as a full host would not.
struct Bounded(MemDisk);

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

/// A sound image with data and zeros, to be damaged.
pub(crate) fn sample(subformat: Subformat, zeroed_grain: bool) -> Vec<u8> {
    let size = 65536 * 20 + 1536;
    let file: Arc<dyn Disk> = Arc::new(MemDisk::new(0));
    let vmdk = VmdkOptions { subformat, zeroed_grain, cid: Some(0x1234_5678), ..VmdkOptions::default() };
    create_on(&file, &CreateOptions::laid_out(Layout::Vmdk(vmdk), size)).unwrap();
    let image = Image::open(file.clone(), VMDK, OpenOptions::default()).unwrap();
    let source = MemDisk::new(size as usize);
    let text: Vec<u8> = (0..200_000u32).map(|index| (index / 7 % 251) as u8).collect();
    source.write_at(&text, 70_000).unwrap();
    source.write_at(&[6; 700], size - 700).unwrap();
    copy::copy_data(&source, &image, false, 1, &|_, _| {}).unwrap();
    if subformat != Subformat::StreamOptimized {
        image.zero_at(131_072, 65536).unwrap();
    }
    image.flush().unwrap();
    let mut bytes = vec![0; file.len() as usize];
    file.read_at(&mut bytes, 0).unwrap();
    bytes
}

/// Damages must be called corrupt (or unsupported, or full), not a mistake of the caller and not the host's.
fn assert_kind(kind: ErrorKind, about: &str) {
    let allowed = [
        ErrorKind::Corrupt,
        ErrorKind::Unsupported,
        ErrorKind::NoSpace,
        ErrorKind::ReadOnly,
        // A parent or an extent that was named by the damage.
        ErrorKind::NotFound,
    ];
    assert!(allowed.contains(&kind), "{about}: {kind:?}");
}

/// Opens any bytes; answers what a guest reads if all of it can be read.
pub(crate) fn judge(bytes: Vec<u8>) -> Option<Vec<u8>> {
    let file: Arc<dyn Disk> = Arc::new(Bounded(MemDisk::from_bytes(bytes)));
    let described = describe(&*file, VMDK);
    let image =
        match Image::open(file.clone(), VMDK, OpenOptions { cache_bytes: 1, ..OpenOptions::default() }) {
            Ok(image) => image,
            Err(error) => {
                assert_kind(error.kind(), "opening");
                return None;
            }
        };
    described.expect("what opens can be described");
    image.info().unwrap();
    if let Err(error) = image.check() {
        assert_kind(error.kind(), "checking");
    }
    if image.len() > 8 << 20 {
        // The map is whole however large the disk claims to be, as far as it is looked at.
        let _ = image.extent_at(image.len() - 1);
        return None;
    }
    let (mut content, mut whole) = (vec![0; image.len() as usize], true);
    let mut at = 0;
    while at < image.len() {
        let len = (image.len() - at).min(4096);
        let part = &mut content[at as usize..(at + len) as usize];
        match (image.read_at(part, at), image.extent_at(at)) {
            (Ok(()), Ok(extent)) => {
                assert!(extent.start == at && extent.len > 0 && extent.end() <= image.len());
                let known = (extent.len.min(len)) as usize;
                assert!(!extent.is_zero() || part[..known].iter().all(|byte| *byte == 0));
            }
            (Err(error), _) | (_, Err(error)) => {
                assert_kind(error.kind(), "reading");
                whole = false;
            }
        }
        at += len;
    }
    write(&image, &mut content);
    match image.repair(Repair::All) {
        Ok(_) => {}
        Err(error) => assert_kind(error.kind(), "repairing"),
    }
    whole.then_some(content)
}

/// What is written is read back.
fn write(image: &Image, _content: &mut [u8]) {
    let len = image.len().min(5000);
    for at in [0, (image.len() / 2).min(image.len() - len), image.len() - len] {
        let data = vec![0xa5; len as usize];
        let result = image.write_at(&data, at).and_then(|()| image.flush());
        match result {
            Ok(()) => {
                let mut found = vec![0; data.len()];
                match image.read_at(&mut found, at) {
                    Ok(()) => assert!(found == data, "what was written is read back"),
                    Err(error) => assert_kind(error.kind(), "reading back"),
                }
            }
            Err(error) => assert_kind(error.kind(), "writing"),
        }
    }
    for result in [image.zero_at(0, image.len()), image.discard(0, image.len()), image.flush()] {
        if let Err(error) = result {
            assert_kind(error.kind(), "zeroing");
        }
    }
}
