//! Damaged and malicious VMDK images.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

#[path = "oracle/vmdk.rs"]
mod oracle;
mod support;

use std::sync::Arc;

use oracle::{judge, sample};
use proptest::prelude::*;
use support::{Folder, qemu_img};
use vmwright_disk::{Disk, ErrorKind, MemDisk};
use vmwright_image::chain::{AllowAll, Beneath, ChainOptions, open};
use vmwright_image::{Format, FormatChoice, Image, OpenOptions, Repair, Subformat};
use vmwright_judges::{output, tool};

const VMDK: FormatChoice = FormatChoice::Exact(Format::Vmdk);

fn samples() -> Vec<Vec<u8>> {
    vec![
        sample(Subformat::MonolithicSparse, false),
        sample(Subformat::MonolithicSparse, true),
        sample(Subformat::StreamOptimized, false),
    ]
}

fn open_bytes(bytes: Vec<u8>) -> Result<Image, vmwright_image::Error> {
    Image::open(Arc::new(MemDisk::from_bytes(bytes)), VMDK, OpenOptions::default())
}

fn kind_of(bytes: Vec<u8>) -> Option<ErrorKind> {
    open_bytes(bytes).err().map(|error| error.kind())
}

fn u32_at(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

#[test]
fn the_samples_are_sound() {
    for bytes in samples() {
        assert!(open_bytes(bytes.clone()).unwrap().check().unwrap().is_clean());
        assert!(judge(bytes).is_some());
    }
}

#[test]
fn every_field_of_the_header_out_of_range_is_refused() {
    let fields: [(usize, u64, usize); 12] = [
        (12, 1 << 63, 8),
        (12, u64::MAX, 8),
        (20, 0, 8),
        (20, 100, 8),
        (20, 1 << 40, 8),
        (28, 1 << 60, 8),
        (28, 1 << 20, 8),
        (36, 1 << 60, 8),
        (44, 0, 4),
        (44, 513, 4),
        (56, 1 << 60, 8),
        (56, 1 << 20, 8),
    ];
    for (at, value, len) in fields {
        let mut bytes = sample(Subformat::MonolithicSparse, false);
        bytes[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
        assert_eq!(kind_of(bytes), Some(ErrorKind::Corrupt), "{value:#x} at {at}");
    }
    let mut bytes = sample(Subformat::MonolithicSparse, false);
    bytes[4] = 4;
    assert_eq!(kind_of(bytes), Some(ErrorKind::Unsupported));
}

#[test]
fn a_stream_that_is_cut_off_says_so() {
    let bytes = sample(Subformat::StreamOptimized, false);
    for len in [bytes.len() - 512, bytes.len() - 1024, bytes.len() / 2, 2048, 600, 512] {
        let error = open_bytes(bytes[..len].to_vec()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{len}");
    }
    let error = open_bytes(bytes[..bytes.len() - 512].to_vec()).unwrap_err();
    assert!(error.to_string().contains("cut off"), "{error}");
}

#[test]
fn a_grain_that_claims_too_much_or_inflates_too_far_is_corrupt() {
    let bytes = sample(Subformat::StreamOptimized, false);
    // The first grain follows the overhead: its length behind its sector.
    let grain = 65536;
    assert!(u32_at(&bytes, grain + 8) > 0);
    for size in [u32::MAX, 131_073, 0] {
        let mut bytes = bytes.clone();
        bytes[grain + 8..grain + 12].copy_from_slice(&size.to_le_bytes());
        let image = open_bytes(bytes).unwrap();
        assert_eq!(image.read_at(&mut [0; 512], 65536).unwrap_err().kind(), ErrorKind::Corrupt);
        assert!(!image.check().unwrap().is_safe());
    }
    let mut compressor = libdeflate_bomb();
    let mut bytes = bytes.clone();
    compressor.truncate(u32_at(&bytes, grain + 8).max(compressor.len()));
    bytes[grain + 8..grain + 12].copy_from_slice(&(compressor.len() as u32).to_le_bytes());
    bytes[grain + 12..grain + 12 + compressor.len()].copy_from_slice(&compressor);
    let image = open_bytes(bytes).unwrap();
    assert_eq!(image.read_at(&mut [0; 512], 65536).unwrap_err().kind(), ErrorKind::Corrupt);
}

/// A zlib stream of one stored block of a hundred zeros, and then one that never was: it would fill more than a grain.
fn libdeflate_bomb() -> Vec<u8> {
    // Fixed codes: a literal 0, then as many copies of 258 bytes at distance 1 as fill 70,000 bytes.
    let mut bits = Vec::new();
    let mut push = |value: u32, count: u32, reversed: bool| {
        for bit in 0..count {
            let shift = if reversed { count - 1 - bit } else { bit };
            bits.push(value >> shift & 1 != 0);
        }
    };
    push(1, 1, false);
    push(1, 2, false);
    push(0x30, 8, true);
    for _ in 0..272 {
        push(0xc5, 8, true);
        push(0, 5, true);
    }
    push(0, 7, true);
    let mut bytes = vec![0x78, 0x01];
    bytes.extend(
        bits.chunks(8)
            .map(|byte| byte.iter().enumerate().fold(0, |sum, (at, bit)| sum | u8::from(*bit) << at)),
    );
    bytes.extend_from_slice(&[0; 4]);
    bytes
}

#[test]
fn an_extent_of_a_foreign_file_is_opened_only_through_the_gate() {
    let folder = Folder::new();
    let path = folder.path("disk.vmdk");
    for name in ["/etc/passwd", "../../../../../../etc/passwd"] {
        let text = format!(
            "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\
            RW 1 FLAT \"{name}\" 0\n"
        );
        std::fs::write(&path, text).unwrap();
        let error = open(&path, VMDK, &Beneath::image_folder(), ChainOptions::read_only()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{name}: {error}");
    }
}

#[test]
fn an_image_that_names_itself_is_a_loop() {
    let folder = Folder::new();
    let path = folder.path("disk.vmdk");
    let parent = "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=1\nparentFileNameHint=\"disk.vmdk\"\n\
        createType=\"custom\"\nRW 1 ZERO\n";
    let part = "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"twoGbMaxExtentSparse\"\n\
        RW 1 SPARSE \"disk.vmdk\"\n";
    for text in [parent, part] {
        std::fs::write(&path, text).unwrap();
        let error = open(&path, VMDK, &AllowAll::default(), ChainOptions::read_only()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    }
}

#[test]
fn zeros_and_parts_without_access_are_what_they_say() {
    let text = b"# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"custom\"\n\
        RW 2 ZERO\nNOACCESS 2 FLAT \"/dev/sda\" 0\nRW 3 ZERO\n";
    assert!(judge(text.to_vec()).is_none());
    let image = open_bytes(text.to_vec()).unwrap();
    assert_eq!(image.len(), 7 * 512);
    let mut bytes = [7; 1024];
    image.read_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, [0; 1024]);
    assert_eq!(image.read_at(&mut bytes, 512).unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(image.write_at(&bytes, 0).unwrap_err().kind(), ErrorKind::ReadOnly);
    assert!(image.extent_at(0).unwrap().is_zero());
    assert!(!image.extent_at(1024).unwrap().is_zero());
}

#[test]
fn an_image_with_a_file_of_changed_blocks_is_only_read() {
    let mut bytes = sample(Subformat::MonolithicSparse, false);
    let end = 512 + bytes[512..].iter().position(|byte| *byte == 0).unwrap();
    let line = b"changeTrackPath=\"disk-ctk.vmdk\"\n";
    bytes[end..end + line.len()].copy_from_slice(line);
    let image = open_bytes(bytes).unwrap();
    assert_eq!(image.write_at(&[1], 0).unwrap_err().kind(), ErrorKind::Unsupported);
    image.read_at(&mut [0; 512], 70_000).unwrap();
}

#[test]
fn a_parent_that_has_no_name_is_asked_for() {
    let mut bytes = sample(Subformat::MonolithicSparse, false);
    let text = String::from_utf8_lossy(&bytes[512..1536]).replace("parentCID=ffffffff", "parentCID=00000007");
    bytes[512..1536].copy_from_slice(text.as_bytes());
    let image = open_bytes(bytes).unwrap();
    assert_eq!(image.read_at(&mut [0; 512], 0).unwrap_err().kind(), ErrorKind::NotFound);
    image.read_at(&mut [0; 512], 70_144).unwrap();
}

#[test]
fn damages_of_the_tables_are_found_and_repaired_from_the_other_copy() {
    let sound = sample(Subformat::MonolithicSparse, false);
    let (rgd, gd) = (u32_at(&sound, 48) * 512, u32_at(&sound, 56) * 512);
    let (copy, table) = (u32_at(&sound, rgd) * 512, u32_at(&sound, gd) * 512);
    let content = judge(sound.clone()).unwrap();
    // Where, and how many of the damages are corruptions.
    for (at, corrupt) in [(table + 4, true), (gd, true), (rgd, true), (copy + 4, false)] {
        let mut bytes = sound.clone();
        bytes[at..at + 4].copy_from_slice(&0x00ff_ffffu32.to_le_bytes());
        let file = Arc::new(MemDisk::from_bytes(bytes));
        let image = Image::open(file.clone(), VMDK, OpenOptions::default()).unwrap();
        let report = image.check().unwrap();
        assert_eq!((report.is_safe(), report.is_clean()), (!corrupt, false), "{at:#x}: {report:?}");
        assert!(!report.findings.is_empty());
        image.repair(Repair::All).unwrap();
        image.flush().unwrap();
        drop(image);
        let image = Image::open(file, VMDK, OpenOptions::default()).unwrap();
        assert!(image.check().unwrap().is_clean(), "{at:#x}");
        let mut found = vec![0; content.len()];
        image.read_at(&mut found, 0).unwrap();
        assert!(found == content);
    }
}

#[test]
fn a_grain_used_twice_is_found_and_never_given_back() {
    let mut bytes = sample(Subformat::MonolithicSparse, false);
    for directory in [48, 56] {
        let table = u32_at(&bytes.clone(), u32_at(&bytes, directory) * 512) * 512;
        let entry = bytes[table + 4..table + 8].to_vec();
        bytes[table + 40..table + 44].copy_from_slice(&entry);
    }
    let image = open_bytes(bytes).unwrap();
    assert!(!image.check().unwrap().is_safe());
    let mut before = vec![0; 65536];
    image.read_at(&mut before, 65536).unwrap();
    assert!(before.iter().any(|byte| *byte != 0));
    image.zero_at(655_360, 65536).unwrap();
    image.flush().unwrap();
    image.write_at(&vec![9; 131_072], 5 * 65536).unwrap();
    image.flush().unwrap();
    let mut after = vec![0; 65536];
    image.read_at(&mut after, 65536).unwrap();
    assert!(before == after);
}

#[test]
fn data_is_never_written_over_tables() {
    let sound = sample(Subformat::MonolithicSparse, false);
    for target in [0u32, 1, 21, 26] {
        let mut bytes = sound.clone();
        for directory in [48, 56] {
            let table = u32_at(&bytes.clone(), u32_at(&bytes, directory) * 512) * 512;
            bytes[table + 4..table + 8].copy_from_slice(&target.max(1).to_le_bytes());
        }
        let image = open_bytes(bytes).unwrap();
        assert_eq!(image.write_at(&[1; 512], 65536).unwrap_err().kind(), ErrorKind::Corrupt, "{target}");
    }
}

fn cases() -> u32 {
    if std::env::var_os("VMWRIGHT_TORTURE").is_some() { 20_000 } else { 300 }
}

/// What QEMU reads, or `None` where it refuses.
fn qemu_reads(bytes: &[u8]) -> Option<Vec<u8>> {
    let folder = Folder::new();
    let (image, raw) = (folder.path("image"), folder.path("raw"));
    std::fs::write(&image, bytes).unwrap();
    let args = ["convert", "-f", "vmdk", "-O", "raw", image.to_str().unwrap(), raw.to_str().unwrap()];
    output("qemu-img", args).status.success().then(|| std::fs::read(raw).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_images_are_refused_or_whole(
        choice in 0usize..3,
        changes in proptest::collection::vec((any::<u32>(), any::<[u8; 4]>(), 1usize..5), 1..6),
        near in any::<bool>(),
        cut in proptest::option::weighted(0.1, any::<u32>()),
    ) {
        static SAMPLES: std::sync::OnceLock<Vec<Vec<u8>>> = std::sync::OnceLock::new();
        let mut bytes = SAMPLES.get_or_init(samples)[choice].clone();
        for (at, value, len) in changes {
            // Mostly where the tables are.
            let within = if near { 16_384.min(bytes.len()) } else { bytes.len() };
            let at = at as usize % within;
            let end = (at + len).min(bytes.len());
            bytes[at..end].copy_from_slice(&value[..end - at]);
        }
        if let Some(cut) = cut {
            bytes.truncate(cut as usize % bytes.len());
        }
        judge(bytes);
    }
}

#[test]
fn what_is_read_of_a_damaged_image_is_what_qemu_reads() {
    if tool("qemu-img").is_none() {
        vmwright_judges::skip!("qemu-img is not installed");
    }
    let mut numbers = support::Numbers(3);
    let (mut both, rounds) = (0, if std::env::var_os("VMWRIGHT_TORTURE").is_some() { 2000 } else { 60 });
    let all = samples();
    for round in 0..rounds {
        let mut bytes = all[round % all.len()].clone();
        for _ in 0..1 + numbers.below(3) {
            // Entries and the descriptor: a header that is damaged is refused more often here.
            let at = 80 + numbers.below(16_000) as usize;
            bytes[at] = numbers.next() as u8;
        }
        let Some(ours) = judge(bytes.clone()) else { continue };
        let Some(theirs) = qemu_reads(&bytes) else { continue };
        assert!(ours == theirs, "round {round}");
        both += 1;
    }
    assert!(both > rounds / 4, "only {both} images were read by both");
    let _ = qemu_img;
}
