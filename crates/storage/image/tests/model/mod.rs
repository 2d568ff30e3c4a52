//! Sequences of changes to an image against a flat model of the disk.
//!
//! Shared by the property tests and the fuzz target.

use std::sync::Arc;

use vmwright_disk::{Disk, MemDisk};
use vmwright_image::{
    BackingFile, Compat, CreateOptions, Format, FormatChoice, Image, OpenOptions, Qcow2Options, create_on,
};

/// How the image is made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub format: Format,
    pub cluster_bits: u32,
    pub refcount_order: u32,
    pub version_2: bool,
    /// The length of the backing file in clusters, zero for none.
    pub backing: u64,
}

/// One step; offsets and lengths are taken modulo what there is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Step {
    Write {
        offset: u64,
        len: u64,
        byte: u8,
    },
    Zero {
        offset: u64,
        len: u64,
    },
    Discard {
        offset: u64,
        len: u64,
    },
    Resize {
        len: u64,
    },
    Flush,
    /// Flushes, forgets everything and opens the image again.
    Reopen,
}

/// Steps as the bytes of a fuzzer spell them, after the shape.
pub(crate) fn steps(script: &[u8]) -> (Shape, Vec<Step>) {
    let (head, tail) = script.split_at(script.len().min(4));
    let byte = |index: usize| head.get(index).copied().unwrap_or(0);
    let shape = Shape {
        format: if byte(0) % 8 == 0 { Format::Raw } else { Format::Qcow2 },
        cluster_bits: 9 + u32::from(byte(1) % 5),
        refcount_order: u32::from(byte(2) % 7),
        version_2: byte(0) & 64 != 0,
        backing: u64::from(byte(3) % 50),
    };
    let step = |bytes: &[u8]| {
        let offset =
            u64::from(u16::from_le_bytes([bytes[1], bytes[2]])) * if bytes[0] & 16 != 0 { 512 } else { 7 };
        let len = u64::from(u16::from_le_bytes([bytes[3], bytes[4]])) % 20_000 + 1;
        match bytes[0] % 8 {
            0 => Step::Zero { offset, len },
            1 => Step::Discard { offset, len },
            2 if bytes[0] & 32 != 0 => Step::Reopen,
            2 => Step::Flush,
            3 => Step::Resize { len: offset },
            _ => Step::Write { offset, len, byte: bytes[5] },
        }
    };
    (shape, tail.chunks_exact(6).map(step).collect())
}

const CLUSTERS: u64 = 60;

/// What the backing file holds.
pub(crate) fn base(shape: Shape) -> Vec<u8> {
    let is_raw = shape.format == Format::Raw;
    let len = if is_raw { 0 } else { (shape.backing << shape.cluster_bits) / 512 * 512 };
    (0..len).map(|index| (index / 100 + 1) as u8).collect()
}

fn open(file: &Arc<dyn Disk>, shape: Shape, backing: &Option<Arc<dyn Disk>>) -> Image {
    let options = OpenOptions { backing: backing.clone(), cache_bytes: 1, ..OpenOptions::default() };
    Image::open(file.clone(), FormatChoice::Exact(shape.format), options).unwrap()
}

/// Does the steps, comparing after each; answers the bytes of the image file and what the disk must hold.
pub(crate) fn run((shape, steps): &(Shape, Vec<Step>)) -> (Vec<u8>, Vec<u8>) {
    let cluster_size = 1u32 << shape.cluster_bits;
    let size = u64::from(cluster_size) * CLUSTERS + 512;
    let is_raw = shape.format == Format::Raw;
    let qcow2 = Qcow2Options {
        cluster_size,
        refcount_bits: if shape.version_2 { 16 } else { 1 << shape.refcount_order },
        compat: if shape.version_2 { Compat::V0_10 } else { Compat::V1_1 },
        ..Qcow2Options::default()
    };
    let base_bytes = base(*shape);
    let backing = match base_bytes.is_empty() {
        true => None,
        false => Some(Arc::new(MemDisk::from_bytes(base_bytes.clone())) as Arc<dyn Disk>),
    };
    let named = backing.is_some().then(|| BackingFile { name: "base".into(), format: Some("raw".into()) });
    let file: Arc<dyn Disk> = Arc::new(MemDisk::new(0));
    create_on(&file, &CreateOptions { format: shape.format, size, backing: named, qcow2 }).unwrap();

    let mut model = base_bytes;
    model.resize(size as usize, 0);
    let mut image = open(&file, *shape, &backing);
    for step in steps {
        let size = model.len() as u64;
        let clip = |offset: u64, len: u64| {
            let offset = offset % size.max(1);
            (offset, len.min(size - offset))
        };
        match *step {
            Step::Write { offset, len, byte } => {
                let (offset, len) = clip(offset, len);
                let data = vec![byte; len as usize];
                image.write_at(&data, offset).unwrap();
                model[offset as usize..][..len as usize].copy_from_slice(&data);
            }
            Step::Zero { offset, len } => {
                let (offset, len) = clip(offset, len);
                image.zero_at(offset, len).unwrap();
                model[offset as usize..][..len as usize].fill(0);
            }
            Step::Discard { offset, len } => {
                let (offset, len) = clip(offset, len);
                image.discard(offset, len).unwrap();
                discarded(&image, &mut model, offset, len);
            }
            Step::Resize { len } if is_raw => {
                let len = len % 100_000 + 1;
                image.set_len(len).unwrap();
                model.resize(len as usize, 0);
            }
            Step::Resize { .. } => {}
            Step::Flush => image.flush().unwrap(),
            Step::Reopen => {
                image.flush().unwrap();
                image = open(&file, *shape, &backing);
                assert!(image.check().unwrap() == Default::default());
            }
        }
        let mut now = vec![0; model.len()];
        image.read_at(&mut now, 0).unwrap();
        assert!(now == model, "after {step:?}");
    }
    image.flush().unwrap();
    assert!(image.check().unwrap() == Default::default(), "{:?}", image.check());
    let mut bytes = vec![0; file.len() as usize];
    file.read_at(&mut bytes, 0).unwrap();
    (bytes, model)
}

/// What was discarded is zeros or unchanged; the model follows.
fn discarded(image: &Image, model: &mut [u8], offset: u64, len: u64) {
    let mut now = vec![0; len as usize];
    image.read_at(&mut now, offset).unwrap();
    let before = &mut model[offset as usize..][..len as usize];
    assert!(now.iter().zip(&*before).all(|(now, before)| *now == 0 || now == before));
    before.copy_from_slice(&now);
}
