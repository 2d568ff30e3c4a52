//! Sequences of changes to an image against a flat model of the disk.
//!
//! Shared by the property tests of every format and the fuzz target.
#![allow(dead_code, reason = "no test uses all of it")]

use std::sync::Arc;

use vmwright_disk::{Disk, ErrorKind, MemDisk};
use vmwright_image::{
    BackingFile, Compat, CreateOptions, FormatChoice, Image, Layout, OpenOptions, Qcow2Options, create_on,
};

/// How the image is made.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    pub layout: Layout,
    /// The size of the disk in bytes.
    pub size: u64,
    /// What the backing file holds, if there is one; shorter than the disk or as long.
    pub backing: Option<Vec<u8>>,
    /// Whether the length can be changed, in multiples of 512 bytes.
    pub resizable: bool,
    /// Offsets and lengths of the steps are scaled to this many bytes, about a cluster.
    pub scale: u64,
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

/// Steps as the bytes of a fuzzer spell them, six bytes each.
pub(crate) fn steps(script: &[u8], scale: u64) -> Vec<Step> {
    let step = |bytes: &[u8]| {
        let unit = if bytes[0] & 16 != 0 { scale } else { 7 };
        let offset = u64::from(u16::from_le_bytes([bytes[1], bytes[2]])) * unit;
        let len = u64::from(u16::from_le_bytes([bytes[3], bytes[4]])) % (scale * 5) + 1;
        match bytes[0] % 8 {
            0 => Step::Zero { offset, len },
            1 => Step::Discard { offset, len },
            2 if bytes[0] & 32 != 0 => Step::Reopen,
            2 => Step::Flush,
            3 => Step::Resize { len: offset },
            _ => Step::Write { offset, len, byte: bytes[5] },
        }
    };
    script.chunks_exact(6).map(step).collect()
}

/// A shape of qcow2 as four bytes of a fuzzer spell it.
pub(crate) fn qcow2(head: &[u8]) -> Shape {
    let byte = |index: usize| head.get(index).copied().unwrap_or(0);
    let version_2 = byte(0) & 64 != 0;
    // Entries with parts need clusters of at least 16 KiB.
    let extended_l2 = byte(1) % 6 == 5 && !version_2;
    let cluster_bits = if extended_l2 { 14 } else { 9 + u32::from(byte(1) % 6 % 5) };
    let cluster_size = 1u32 << cluster_bits;
    let options = Qcow2Options {
        cluster_size,
        refcount_bits: if version_2 { 16 } else { 1 << (byte(2) % 7) },
        compat: if version_2 { Compat::V0_10 } else { Compat::V1_1 },
        extended_l2,
        ..Qcow2Options::default()
    };
    let backing = (u64::from(byte(3) % 50) << cluster_bits) / 512 * 512;
    let backing: Vec<u8> = (0..backing).map(|index| (index / 100 + 1) as u8).collect();
    Shape {
        layout: Layout::Qcow2(options),
        size: u64::from(cluster_size) * 60 + 512,
        backing: (!backing.is_empty()).then_some(backing),
        resizable: true,
        scale: u64::from(cluster_size).min(4096),
    }
}

fn open(file: &Arc<dyn Disk>, shape: &Shape, backing: &Option<Arc<dyn Disk>>) -> Image {
    let options = OpenOptions { backing: backing.clone(), cache_bytes: 1, ..OpenOptions::default() };
    Image::open(file.clone(), FormatChoice::Exact(shape.layout.format()), options).unwrap()
}

/// Does the steps, comparing after each; answers the bytes of the image file and what the disk must hold.
pub(crate) fn run(shape: &Shape, steps: &[Step]) -> (Vec<u8>, Vec<u8>) {
    let bytes = shape.backing.clone().unwrap_or_default();
    let backing = shape.backing.clone().map(|bytes| Arc::new(MemDisk::from_bytes(bytes)) as Arc<dyn Disk>);
    // A VMDK has no other parents, which is an affair of the name alone here.
    let format = if matches!(shape.layout, Layout::Vmdk(_)) { "vmdk" } else { "raw" };
    let named = backing.is_some().then(|| BackingFile { name: "base".into(), format: Some(format.into()) });
    let file: Arc<dyn Disk> = Arc::new(MemDisk::new(0));
    let create =
        CreateOptions { backing: named, ..CreateOptions::laid_out(shape.layout.clone(), shape.size) };
    create_on(&file, &create).unwrap();

    let mut model = bytes;
    model.resize(shape.size as usize, 0);
    let mut image = open(&file, shape, &backing);
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
            Step::Resize { len } if shape.resizable => {
                let len = (len % (2 * shape.size)).next_multiple_of(512).max(512);
                image.set_len(len).unwrap();
                model.resize(len as usize, 0);
            }
            Step::Resize { .. } => {}
            Step::Flush => image.flush().unwrap(),
            Step::Reopen => {
                image.flush().unwrap();
                image = open(&file, shape, &backing);
                check(&image);
            }
        }
        let mut now = vec![0; model.len()];
        image.read_at(&mut now, 0).unwrap();
        assert!(now == model, "after {step:?}");
    }
    image.flush().unwrap();
    check(&image);
    let mut bytes = vec![0; file.len() as usize];
    file.read_at(&mut bytes, 0).unwrap();
    (bytes, model)
}

/// Nothing may be wrong with the tables of the image, in formats that have any.
fn check(image: &Image) {
    match image.check() {
        Ok(report) => assert!(report.is_clean(), "{report:?}"),
        Err(error) => assert!(error.kind() == ErrorKind::Unsupported, "{error}"),
    }
}

/// What was discarded is zeros or unchanged; the model follows.
fn discarded(image: &Image, model: &mut [u8], offset: u64, len: u64) {
    let mut now = vec![0; len as usize];
    image.read_at(&mut now, offset).unwrap();
    let before = &mut model[offset as usize..][..len as usize];
    assert!(now.iter().zip(&*before).all(|(now, before)| *now == 0 || now == before));
    before.copy_from_slice(&now);
}
