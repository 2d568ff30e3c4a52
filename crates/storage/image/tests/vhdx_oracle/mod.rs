//! What must hold for every file that opens as VHDX, however it came about.
//!
//! Shared by the property test and the fuzz target.
#![allow(dead_code, reason = "no user uses all of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

use std::sync::Arc;

use vmwright_disk::{Disk, Error, ErrorKind, Extent, MemDisk, Result};
use vmwright_image::{
    CreateOptions, Format, FormatChoice, Image, Layout, OpenOptions, ParentId, VhdxOptions, create_on,
};

const VHDX: FormatChoice = FormatChoice::Exact(Format::Vhdx);
const MIB: u64 = 1 << 20;
/// A medium has an end, also for images that want more.
const MEDIUM: u64 = 64 << 20;
/// So many extents are walked, and so many bytes read at a time.
const EXTENTS: usize = 2000;

/// Memory that is full at some length, as a filesystem is.
struct Medium(MemDisk);

fn full() -> Error {
    Error::layer(ErrorKind::NoSpace, std::io::Error::from(std::io::ErrorKind::StorageFull))
}

impl Disk for Medium {
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
        if len > MEDIUM { Err(full()) } else { self.0.set_len(len) }
    }

    fn flush(&self) -> Result<()> {
        self.0.flush()
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        self.0.extent_at(offset)
    }
}

/// What [`sample`] makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Dynamic,
    Child,
}

/// A sound image with a few blocks, of 1 MiB each, and a parent of sevens if it is to have one.
pub(crate) fn sample(kind: Kind) -> Vec<u8> {
    let file = Arc::new(MemDisk::new(0));
    let shared: Arc<dyn Disk> = file.clone();
    let layout = Layout::Vhdx(VhdxOptions { block_size: 1 << 20, ..VhdxOptions::default() });
    let mut options = CreateOptions::laid_out(layout.clone(), 4 * MIB + 512);
    if kind == Kind::Child {
        let parent: Arc<dyn Disk> = Arc::new(MemDisk::new(0));
        create_on(&parent, &CreateOptions::laid_out(layout, 4 * MIB)).unwrap();
        let image = Image::open(parent, VHDX, OpenOptions::default()).unwrap();
        options.parent = ParentId::of(&image).unwrap();
        let name = "parent.vhdx".to_owned();
        options.backing = Some(vmwright_image::BackingFile { name, format: Some("vhdx".into()) });
    }
    create_on(&shared, &options).unwrap();
    let image = Image::open(shared, VHDX, how(false)).unwrap();
    image.write_at(&[1; 70_000], 100).unwrap();
    image.write_at(&[2; 4096], 2 * MIB - 1000).unwrap();
    image.zero_at(3 * MIB, MIB).unwrap();
    image.flush().unwrap();
    file.to_bytes()
}

fn how(read_only: bool) -> OpenOptions {
    let parent: Arc<dyn Disk> = Arc::new(MemDisk::from_bytes(vec![7; 4 << 20]));
    OpenOptions { read_only, backing: Some(parent), cache_bytes: 1, ..OpenOptions::default() }
}

/// A refusal must say which kind it is.
fn refused(kind: ErrorKind, text: &str) {
    let expected = [ErrorKind::Corrupt, ErrorKind::Unsupported, ErrorKind::NoSpace];
    assert!(expected.contains(&kind), "{kind:?}: {text}");
}

/// Whether something worked; where not, it must have been refused as it should.
fn done<T>(result: Result<T>) -> Option<T> {
    result.map_err(|error| refused(error.kind(), &error.to_string())).ok()
}

/// Opens whatever this is, and uses it; answers what it holds where it can be read and is not large.
pub(crate) fn judge(bytes: Vec<u8>) -> Option<Vec<u8>> {
    let file = Arc::new(Medium(MemDisk::from_bytes(bytes)));
    let image = match Image::open(file.clone(), VHDX, how(true)) {
        Ok(image) => image,
        Err(error) => {
            refused(error.kind(), &error.to_string());
            return None;
        }
    };
    let before = walk(&image);
    if let Err(error) = image.check() {
        refused(error.kind(), &error.to_string());
    }
    drop(image);
    let image = Image::open(file.clone(), VHDX, how(false)).unwrap();
    let len = image.len();
    if len >= 512 && done(image.write_at(&[0xa7; 512], len - 512)).is_some() && done(image.flush()).is_some()
    {
        let again = Image::open(file, VHDX, how(true)).unwrap();
        let mut bytes = [0; 512];
        again.read_at(&mut bytes, len - 512).unwrap();
        assert_eq!(bytes, [0xa7; 512], "what was written and flushed is gone");
    }
    let _ = done(image.discard(0, len.min(4 * MIB)));
    let _ = done(image.zero_at(0, len.min(4 * MIB)));
    let _ = done(image.flush());
    before
}

/// The map must be whole, and say of zeros what reading says.
fn walk(image: &Image) -> Option<Vec<u8>> {
    let mut at = 0;
    for _ in 0..EXTENTS {
        if at >= image.len() {
            break;
        }
        let extent = done(image.extent_at(at))?;
        assert!(extent.start == at && extent.len > 0 && extent.end() <= image.len(), "{extent:?}");
        let mut bytes = vec![1; extent.len.min(65_536) as usize];
        let read = done(image.read_at(&mut bytes, at));
        assert!(read.is_none() || !extent.is_zero() || bytes.iter().all(|byte| *byte == 0), "{extent:?}");
        at = extent.end();
    }
    if image.len() > 16 * MIB {
        return None;
    }
    let mut bytes = vec![0; image.len() as usize];
    done(image.read_at(&mut bytes, 0))?;
    Some(bytes)
}
