//! Free space of real filesystems: given back, overwritten and left out, with every file as before.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use vmwright_disk::{Disk, Error, FreeMap, HostFile};
use vmwright_guest::FreeSpace;
use vmwright_image::chain::{self, AllowAll, ChainOptions};
use vmwright_image::copy::{self, CompactOptions, ConvertOptions, Fill, compact, sparsify, wipe};
use vmwright_image::{Format, FormatChoice, Image, Layout};
use vmwright_judges::{need, output, run};

const SECRET: &[u8] = b"nobody shall find this again....";

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A GPT disk with an ext4 filesystem at 1 MiB that holds one file, and had another that was full of a secret; answers
/// where the filesystem is.
fn disk(folder: &Folder, features: &str) -> PathBuf {
    let (kept, gone, volume, raw) =
        (folder.path("kept"), folder.path("gone"), folder.path("volume"), folder.path("source"));
    let numbers: Vec<u8> = (0..3_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    std::fs::write(&kept, &numbers).unwrap();
    std::fs::write(&gone, SECRET.repeat(200_000)).unwrap();
    std::fs::File::create(&volume).unwrap().set_len(24 << 20).unwrap();
    run("mke2fs", ["-q", "-F", "-t", "ext4", "-O", features, text(&volume)]);
    for command in
        [format!("write {} gone", text(&gone)), format!("write {} kept", text(&kept)), "rm gone".to_owned()]
    {
        run("debugfs", ["-w", "-R", &command, text(&volume)]);
    }
    run("e2fsck", ["-fn", text(&volume)]);
    std::fs::File::create(&raw).unwrap().set_len(28 << 20).unwrap();
    run("sgdisk", ["-n", "1:2048:+24M", text(&raw)]);
    HostFile::open(&raw, false).unwrap().write_at(&std::fs::read(&volume).unwrap(), 1 << 20).unwrap();
    raw
}

fn open(path: &Path, format: Format, read_only: bool) -> Arc<Image> {
    let options = ChainOptions { read_only, ..ChainOptions::default() };
    Arc::new(chain::open(path, FormatChoice::Exact(format), &AllowAll::default(), options).unwrap())
}

fn space(image: &Arc<Image>) -> FreeSpace {
    let disk: Arc<dyn Disk> = image.clone();
    let space = FreeSpace::of(&disk).unwrap();
    assert_eq!(space.known.len(), 1, "{:?}", space.unknown);
    space
}

fn contains(disk: &dyn Disk, needle: &[u8]) -> bool {
    let mut bytes = vec![0; disk.len() as usize];
    disk.read_at(&mut bytes, 0).unwrap();
    // The secret lies at multiples of its length.
    bytes.chunks_exact(needle.len()).any(|chunk| chunk == needle)
}

/// The filesystem must be sound and its file as before.
fn judge(folder: &Folder, disk: &dyn Disk) {
    let volume = folder.path("judged");
    let mut bytes = vec![0; 24 << 20];
    disk.read_at(&mut bytes, 1 << 20).unwrap();
    std::fs::write(&volume, bytes).unwrap();
    run("e2fsck", ["-fn", text(&volume)]);
    let out = folder.path("out");
    run("debugfs", ["-R", &format!("dump kept {}", text(&out)), text(&volume)]);
    assert!(std::fs::read(out).unwrap() == std::fs::read(folder.path("kept")).unwrap());
}

fn convert(folder: &Folder, raw: &Path, format: Format) -> PathBuf {
    let path = folder.path(&format!("disk.{format}"));
    let source = HostFile::open(raw, true).unwrap();
    copy::convert(&source, &path, &ConvertOptions::new(format), &|_, _| {}).unwrap();
    path
}

fn find(disk: &Arc<dyn Disk>) -> vmwright_disk::Result<Box<dyn FreeMap>> {
    let space = FreeSpace::of(disk).map_err(|error| Error::layer(error.kind(), error))?;
    Ok(Box::new(space))
}

#[test]
fn free_space_is_what_debugfs_calls_free() {
    need!("mke2fs", "debugfs", "sgdisk", "e2fsck");
    for features in ["none,has_journal,extent,filetype", "metadata_csum,64bit,flex_bg,uninit_bg", "^flex_bg"]
    {
        let folder = Folder::new();
        let raw = disk(&folder, features);
        let image = open(&raw, Format::Raw, true);
        let mut free = 0;
        let mut last = 0;
        space(&image)
            .free_ranges(&mut |range| {
                assert!(range.start > last && range.start >= 1 << 20 && range.end <= 25 << 20);
                free += range.end - range.start;
                last = range.end;
                Ok(())
            })
            .unwrap();
        let stats = run("dumpe2fs", ["-h", text(&folder.path("volume"))]);
        let number = |key: &str| -> u64 {
            let line = stats.lines().find(|line| line.starts_with(key)).unwrap();
            line.rsplit(' ').next().unwrap().parse().unwrap()
        };
        assert_eq!(free, number("Free blocks:") * number("Block size:"), "{features}");
    }
}

#[test]
fn compacting_leaves_out_what_was_deleted_and_nothing_else() {
    need!("mke2fs", "debugfs", "sgdisk", "e2fsck", "dumpe2fs");
    for format in [Format::Raw, Format::Qcow2, Format::Vhd, Format::Vdi] {
        let folder = Folder::new();
        let raw = disk(&folder, "metadata_csum");
        let path = convert(&folder, &raw, format);
        let before = open(&path, format, true);
        assert!(contains(&*before, SECRET));
        let layout = before.layout();
        let id =
            serde_json::to_value(before.info().unwrap()).unwrap()["format-specific"]["data"]["uuid"].clone();
        drop(before);
        let choice = FormatChoice::Exact(format);
        let done =
            compact(&path, choice, &AllowAll::default(), Some(&find), &CompactOptions::default(), &|_, _| {})
                .unwrap();
        // Blocks of a VHD are large, and hold most of the little that is left.
        assert!(done.bytes_after + (2 << 20) <= done.bytes_before, "{format}: {done:?}");
        assert!(done.bytes_free > 8 << 20, "{done:?}");
        let after = open(&path, format, true);
        assert!(!contains(&*after, SECRET), "{format}");
        assert_eq!(after.layout(), layout);
        let info = serde_json::to_value(after.info().unwrap()).unwrap();
        assert_eq!(info["format-specific"]["data"]["uuid"], id, "others know it by its id");
        judge(&folder, &*after);
        // The table of partitions too.
        let disk = folder.path("again.raw");
        copy::convert(&*after, &disk, &ConvertOptions::new(Format::Raw), &|_, _| {}).unwrap();
        assert!(run("sgdisk", ["-v", text(&disk)]).contains("No problems found"));
    }
}

#[test]
fn compacting_an_overlay_keeps_its_base_and_hides_what_is_free() {
    need!("mke2fs", "debugfs", "sgdisk", "e2fsck");
    for format in [Format::Qcow2, Format::Vhd] {
        let folder = Folder::new();
        let raw = disk(&folder, "metadata_csum");
        let base = convert(&folder, &raw, format);
        let top = folder.path("top");
        chain::create_overlay_as(&top, &base, format, Layout::new(format), None, false).unwrap();
        let image = open(&top, format, false);
        image.write_at(&[0], 512).unwrap();
        let mut sector = [0; 512];
        image.read_at(&mut sector, 512).unwrap();
        sector[0] = b'E';
        image.write_at(&sector, 512).unwrap();
        image.flush().unwrap();
        let named = image.backing_file();
        drop(image);
        let choice = FormatChoice::Exact(format);
        compact(&top, choice, &AllowAll::default(), Some(&find), &CompactOptions::default(), &|_, _| {})
            .unwrap();
        let image = open(&top, format, true);
        assert_eq!(image.backing_file(), named);
        assert!(!contains(&*image, SECRET) && contains(&*open(&base, format, true), SECRET));
        judge(&folder, &*image);
    }
}

#[test]
fn an_image_with_snapshots_is_not_compacted() {
    need!("qemu-img");
    let folder = Folder::new();
    let path = folder.path("image");
    run("qemu-img", ["create", "-q", "-f", "qcow2", text(&path), "1M"]);
    run("qemu-img", ["snapshot", "-c", "one", text(&path)]);
    let choice = FormatChoice::Exact(Format::Qcow2);
    let error = compact(&path, choice, &AllowAll::default(), None, &CompactOptions::default(), &|_, _| {})
        .unwrap_err();
    assert!(error.to_string().contains("snapshots"), "{error}");
}

#[test]
fn sparsifying_in_place_gives_back_what_was_deleted() {
    need!("mke2fs", "debugfs", "sgdisk", "e2fsck");
    for format in [Format::Raw, Format::Qcow2, Format::Vhd, Format::Vdi] {
        let folder = Folder::new();
        let raw = disk(&folder, "metadata_csum");
        let path = convert(&folder, &raw, format);
        let image = open(&path, format, false);
        let before = image.info().unwrap().actual_size;
        let freed = sparsify(&*image, &space(&image), None, &|_, _| {}).unwrap();
        assert!(freed.bytes_treated >= 6 << 20, "{format}: {freed:?}");
        let after = image.info().unwrap().actual_size;
        // Only whole blocks of 2 MiB can be given back, parts of which took no space before.
        let least = if format == Format::Vhd { 1 << 20 } else { 3 << 20 };
        assert!(after + least <= before, "{format}: {before} to {after}");
        judge(&folder, &*image);
        drop(image);
        judge(&folder, &*open(&path, format, true));
    }
}

#[test]
fn wiping_leaves_no_trace_of_what_was_deleted() {
    need!("mke2fs", "debugfs", "sgdisk", "e2fsck");
    for (format, fill) in
        [(Format::Raw, Fill::Zeros), (Format::Qcow2, Fill::Random), (Format::Vdi, Fill::Zeros)]
    {
        let folder = Folder::new();
        let raw = disk(&folder, "metadata_csum");
        let path = convert(&folder, &raw, format);
        let image = open(&path, format, false);
        let freed = wipe(&*image, &space(&image), fill, None, &|_, _| {}).unwrap();
        assert!(freed.bytes_treated >= 6 << 20, "{freed:?}");
        judge(&folder, &*image);
        drop(image);
        assert!(!contains(&HostFile::open(&path, true).unwrap(), SECRET), "{format}");
    }
}

#[test]
fn what_is_free_is_not_said_where_it_is_not_certain() {
    need!("mke2fs", "debugfs", "sgdisk", "e2fsck");
    let folder = Folder::new();
    let raw = disk(&folder, "metadata_csum");
    let broken = |change: &dyn Fn(&HostFile)| -> String {
        let copy = folder.path("copy.raw");
        std::fs::copy(&raw, &copy).unwrap();
        change(&HostFile::open(&copy, false).unwrap());
        let image: Arc<dyn Disk> = open(&copy, Format::Raw, true);
        let space = FreeSpace::of(&image).unwrap();
        assert!(space.known.is_empty());
        space.unknown[0].reason.clone()
    };
    // Marks of something else.
    assert!(broken(&|disk| disk.write_at(b"LUKS\xba\xbe", 1 << 20).unwrap()).contains("crypto_LUKS"));
    // A filesystem with errors: the mark, with the checksum set right by debugfs.
    let volume = folder.path("errors");
    std::fs::copy(folder.path("volume"), &volume).unwrap();
    run("debugfs", ["-w", "-R", "set_super_value state 3", text(&volume)]);
    let errors = std::fs::read(&volume).unwrap();
    assert!(broken(&|disk| disk.write_at(&errors, 1 << 20).unwrap()).contains("errors"));
    // A bitmap that is not what its checksum says.
    let stats = String::from_utf8(output("dumpe2fs", [text(&folder.path("volume"))]).stdout).unwrap();
    let line = stats.lines().find(|line| line.contains("Block bitmap at")).unwrap();
    let block: u64 = line.split_whitespace().nth(3).unwrap().parse().unwrap();
    let size = stats.lines().find(|line| line.starts_with("Block size:")).unwrap();
    let size: u64 = size.rsplit(' ').next().unwrap().parse().unwrap();
    let reason = broken(&|disk| {
        let at = (1 << 20) + block * size;
        disk.write_at(&[0], at).unwrap();
    });
    assert!(reason.contains("bitmap"), "{reason}");
}
