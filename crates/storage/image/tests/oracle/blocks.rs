//! What must hold for every sequence of bytes that is opened as a VHD or a VDI.
//!
//! Shared by the property tests and the fuzz targets.
#![allow(dead_code, reason = "no test uses all of it")]

use std::sync::Arc;

use vmwright_disk::{Disk, ErrorKind, MemDisk};
use vmwright_image::{
    BackingFile, CreateOptions, Format, FormatChoice, Image, Layout, OpenOptions, VdiOptions, VhdOptions,
    VhdSubformat, create_on, describe,
};

const SIZE: u64 = 4096 * 40 + 512;

/// Sound images of a format, to be damaged.
pub(crate) fn samples(format: Format) -> Vec<Vec<u8>> {
    let layouts = match format {
        Format::Vhd => {
            let vhd =
                |subformat| Layout::Vhd(VhdOptions { subformat, block_size: 4096, ..VhdOptions::default() });
            vec![vhd(VhdSubformat::Dynamic), vhd(VhdSubformat::Fixed)]
        }
        _ => {
            let vdi = |preallocated| {
                Layout::Vdi(VdiOptions { preallocated, block_size: 4096, ..VdiOptions::default() })
            };
            vec![vdi(false), vdi(true)]
        }
    };
    let make = |layout: Layout| {
        let file: Arc<dyn Disk> = Arc::new(MemDisk::new(0));
        create_on(&file, &CreateOptions::laid_out(layout, SIZE)).unwrap();
        let image = Image::open(file.clone(), FormatChoice::Exact(format), OpenOptions::default()).unwrap();
        image.write_at(&[5; 30_000], 1000).unwrap();
        image.write_at(&[6; 700], 90_000).unwrap();
        image.discard(8192, 4096).unwrap();
        image.flush().unwrap();
        let mut bytes = vec![0; file.len() as usize];
        file.read_at(&mut bytes, 0).unwrap();
        bytes
    };
    layouts.into_iter().map(make).collect()
}

/// Sets the checksums of a VHD right, so that what was changed in the headers is believed.
pub(crate) fn seal(bytes: &mut [u8]) {
    let end = bytes.len().saturating_sub(512);
    for (at, len, field) in [(0, 512, 64), (512, 1024, 36), (end, 512, 64)] {
        let Some(part) = bytes.get_mut(at..at + len) else { continue };
        let known = part.starts_with(b"conectix") || part.starts_with(b"cxsparse");
        if known {
            part[field..field + 4].fill(0);
            let sum = part.iter().fold(0u32, |sum, byte| sum.wrapping_add((*byte).into()));
            part[field..field + 4].copy_from_slice(&(!sum).to_be_bytes());
        }
    }
}

/// Damages must be called corrupt (or unsupported, or full), not a mistake of the caller and not the host's.
fn assert_kind(kind: ErrorKind, about: &str) {
    let allowed = [ErrorKind::Corrupt, ErrorKind::Unsupported, ErrorKind::NoSpace, ErrorKind::ReadOnly];
    assert!(allowed.contains(&kind), "{about}: {kind:?}");
}

/// Opens, maps, reads, checks and writes; whatever works must be right. Answers what the beginning of the disk holds if
/// all of it could be read.
pub(crate) fn judge(bytes: Vec<u8>, format: Format) -> Option<Vec<u8>> {
    let choice = FormatChoice::Exact(format);
    let file: Arc<dyn Disk> = Arc::new(MemDisk::from_bytes(bytes));
    if let Err(error) = describe(&*file, choice) {
        assert_kind(error.kind(), "describing");
    }
    let backing: Arc<dyn Disk> = Arc::new(MemDisk::new(10_000));
    let options = OpenOptions { backing: Some(backing), lenient: true, ..OpenOptions::default() };
    let image = match Image::open(file.clone(), choice, options.clone()) {
        Ok(image) => image,
        Err(error) => {
            assert_kind(error.kind(), "opening");
            return None;
        }
    };
    let content = map_is_whole(&image);
    let sound = match image.check() {
        Ok(report) => report.is_safe(),
        Err(error) => {
            assert_kind(error.kind(), "checking");
            false
        }
    };
    write_and_read_back(&image, sound.then_some(&file), choice, options);
    content
}

/// Extents are never empty, begin where the last one ended, and end with the disk.
fn map_is_whole(image: &Image) -> Option<Vec<u8>> {
    let (mut at, mut whole) = (0, true);
    for _ in 0..2000 {
        if at == image.len() {
            break;
        }
        let extent = match image.extent_at(at) {
            Ok(extent) => extent,
            Err(error) => {
                assert_kind(error.kind(), "mapping");
                return None;
            }
        };
        assert!(extent.start == at && extent.len > 0 && extent.end() <= image.len(), "{extent:?}");
        let mut bytes = vec![1; extent.len.min(4096) as usize];
        match image.read_at(&mut bytes, at) {
            Ok(()) => assert!(!extent.is_zero() || bytes.iter().all(|byte| *byte == 0), "{extent:?}"),
            Err(error) => {
                assert_kind(error.kind(), "reading");
                whole = false;
            }
        }
        at = extent.end();
    }
    let mut content = vec![0; image.len().min(1 << 20) as usize];
    (whole && image.read_at(&mut content, 0).is_ok()).then_some(content)
}

/// What is written reads back at once; it also lasts, in an image that was sound.
fn write_and_read_back(
    image: &Image,
    file: Option<&Arc<dyn Disk>>,
    choice: FormatChoice,
    options: OpenOptions,
) {
    for place in 0..6 {
        let offset = image.len() / 6 * place + 37 * place % 512;
        if offset >= image.len() {
            continue;
        }
        let len = 300.min(image.len() - offset);
        let data = vec![0xa5; len as usize];
        if let Err(error) = image.write_at(&data, offset) {
            assert_kind(error.kind(), "writing");
            continue;
        }
        let mut now = vec![0; data.len()];
        image.read_at(&mut now, offset).unwrap();
        assert!(now == data, "at {offset}");
        if let Err(error) = image.flush() {
            assert_kind(error.kind(), "flushing");
            return;
        }
        if let Some(file) = file {
            let again = Image::open(file.clone(), choice, options.clone()).unwrap();
            again.read_at(&mut now, offset).unwrap();
            assert!(now == data, "after reopening, at {offset}");
            assert!(again.check().unwrap().is_safe());
        }
        for result in [image.zero_at(offset, len), image.discard(offset, len)] {
            if let Err(error) = result {
                assert_kind(error.kind(), "zeroing");
            }
        }
    }
    if image.len() < 1 << 30
        && let Err(error) = image.set_len(image.len() + 4096 * 700)
    {
        assert_kind(error.kind(), "growing");
    }
}

/// Damages a sample as a fuzzer spells it: which sample, whether its checksums are set right, and changes of eleven
/// bytes each: where, how long, and what.
pub(crate) fn judge_script(samples: &[Vec<u8>], format: Format, input: &[u8]) {
    let Some((&choice, script)) = input.split_first() else { return };
    let mut bytes = samples[usize::from(choice >> 1) % samples.len()].clone();
    for change in script.chunks_exact(11) {
        // Headers and tables are at both ends.
        let at = usize::from(change[0] & 15) << 8 | usize::from(change[1]);
        let at = if change[0] & 16 == 0 { at } else { bytes.len().saturating_sub(512) + at % 512 };
        let len = 1 + usize::from(change[2] % 8);
        if let Some(place) = bytes.get_mut(at..at + len) {
            place.copy_from_slice(&change[3..3 + len]);
        }
        if change[0] & 224 == 224 {
            bytes.truncate(usize::from(change[3]) << 8 | usize::from(change[4]));
        }
    }
    if choice & 1 == 1 {
        seal(&mut bytes);
    }
    judge(bytes, format);
}

/// Makes a differencing VHD, to be damaged.
pub(crate) fn child() -> Vec<u8> {
    let parent = Arc::new(MemDisk::new(0)) as Arc<dyn Disk>;
    create_on(&parent, &CreateOptions::new(Format::Vhd, SIZE)).unwrap();
    let image = Image::open(parent, FormatChoice::Exact(Format::Vhd), OpenOptions::default()).unwrap();
    let file: Arc<dyn Disk> = Arc::new(MemDisk::new(0));
    let options = CreateOptions {
        backing: Some(BackingFile { name: "base.vhd".into(), format: Some("vpc".into()) }),
        parent: vmwright_image::ParentId::of(&image).unwrap(),
        ..CreateOptions::laid_out(Layout::Vhd(VhdOptions { block_size: 4096, ..VhdOptions::default() }), SIZE)
    };
    create_on(&file, &options).unwrap();
    let options = OpenOptions { backing: Some(Arc::new(MemDisk::new(10_000))), ..OpenOptions::default() };
    let image = Image::open(file.clone(), FormatChoice::Exact(Format::Vhd), options).unwrap();
    image.write_at(&[5; 9000], 1000).unwrap();
    image.flush().unwrap();
    let mut bytes = vec![0; file.len() as usize];
    file.read_at(&mut bytes, 0).unwrap();
    bytes
}
