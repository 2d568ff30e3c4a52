//! Opening disks down to the files of their systems.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on panics")]

mod common;

use common::{Bench, ROOT_UUID, system, whole_disk};
use vmwright_guest::{ErrorKind, Guest, Mode, OpenOptions};
use vmwright_image::chain::Beneath;
use vmwright_judges::{need, run, skip};

macro_rules! need_tools {
    () => {
        need!("mke2fs", "sfdisk", "qemu-img", "mkfs.vfat")
    };
}

fn read(images: &[&std::path::Path]) -> vmwright_guest::Result<Guest> {
    Guest::open(images, &OpenOptions::default())
}

#[test]
fn what_fstab_names_is_mounted_and_the_rest_is_told() {
    need_tools!();
    let bench = Bench::new();
    let (raw, qcow2) = whole_disk(&bench);
    for image in [raw, qcow2] {
        let guest = read(&[&image]).unwrap();
        assert!(guest.has_operating_system());
        assert_eq!(guest.root_volume().device, "/dev/sda2");
        let root = guest.root();
        assert_eq!(root.read_file("/etc/hostname", 100).unwrap(), b"box\n");
        assert_eq!(root.read_file("/boot/vmlinuz-6.1.0-9-amd64", 100).unwrap(), b"kernel");
        assert_eq!(root.read_file("/srv/data/note", 100).unwrap(), b"data\n");
        let mounts: Vec<_> =
            root.mounts().map(|(_, path, _)| String::from_utf8_lossy(path).into_owned()).collect();
        assert_eq!(mounts, ["/", "/boot", "/srv/data"]);
        let problems = guest.problems().join("\n");
        assert_eq!(guest.problems().len(), 2, "{problems}");
        assert!(problems.contains("/dev/sda4 (vfat) cannot be read"), "{problems}");
        assert!(
            problems.contains("ffffffff-0000-0000-0000-000000000000 is not on these disks"),
            "{problems}"
        );
        let kinds: Vec<_> = guest
            .volumes()
            .map(|volume| volume.content.as_ref().map_or("", |content| &content.kind))
            .collect();
        assert_eq!(kinds, ["ext4", "ext4", "ext4", "vfat"]);
        assert_eq!(
            guest.volumes().nth(3).unwrap().content.as_ref().unwrap().uuid.as_deref(),
            Some("AABB-CCDD")
        );
    }
}

#[test]
fn a_filesystem_on_the_whole_disk_is_a_root_without_partitions() {
    need_tools!();
    let bench = Bench::new();
    let volume = bench.ext4("whole.ext4", &bench.tree("root", &system()), 16, &[]);
    let guest = read(&[&volume]).unwrap();
    assert_eq!(guest.root_volume().device, "/dev/sda");
    assert!(guest.has_operating_system());
}

#[test]
fn one_volume_of_data_is_a_root_without_a_system() {
    need_tools!();
    let bench = Bench::new();
    let data = bench.ext4("data.ext4", &bench.tree("data", &[("/a", "1")]), 8, &[]);
    let disk = bench.disk("disk.raw", "dos", &[("type=83", &data)]);
    let guest = read(&[&disk]).unwrap();
    assert!(!guest.has_operating_system());
    assert_eq!(guest.root().read_file("/a", 1).unwrap(), b"1");
}

#[test]
fn of_several_systems_one_must_be_chosen() {
    need_tools!();
    let bench = Bench::new();
    let tree = bench.tree("root", &system());
    let first = bench.ext4("first.ext4", &tree, 16, &["-L", "first"]);
    let second = bench.ext4("second.ext4", &tree, 16, &["-U", ROOT_UUID]);
    let disks = [
        bench.disk("a.raw", "gpt", &[("type=L, name=one", &first)]),
        bench.disk("b.raw", "dos", &[("type=83", &second)]),
    ];
    let error = Guest::open(&disks, &OpenOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().contains("/dev/sda1, /dev/sdb1"), "{error}");
    let by_uuid = format!("UUID={ROOT_UUID}");
    for (name, device) in [
        ("/dev/vda1", "/dev/sda1"),
        ("LABEL=first", "/dev/sda1"),
        ("PARTLABEL=one", "/dev/sda1"),
        (by_uuid.as_str(), "/dev/sdb1"),
    ] {
        let options = OpenOptions { root: Some(name), ..OpenOptions::default() };
        assert_eq!(Guest::open(&disks, &options).unwrap().root_volume().device, device);
    }
    let options = OpenOptions { root: Some("LABEL=none"), ..OpenOptions::default() };
    assert_eq!(Guest::open(&disks, &options).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn what_cannot_be_read_is_named() {
    need_tools!();
    let bench = Bench::new();
    let fat = bench.path("fat.img");
    std::fs::File::create(&fat).unwrap().set_len(8 << 20).unwrap();
    run("mkfs.vfat", [&fat]);
    let error = read(&[&fat]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("/dev/sda (vfat)"), "{error}");
    let empty = bench.path("empty.img");
    std::fs::File::create(&empty).unwrap().set_len(1 << 20).unwrap();
    assert_eq!(read(&[&empty]).unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(read(&[&bench.path("none")]).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_damaged_root_is_corrupt_not_absent() {
    need_tools!();
    let bench = Bench::new();
    let volume = bench.ext4("damaged.ext4", &bench.tree("root", &system()), 16, &[]);
    let mut bytes = std::fs::read(&volume).unwrap();
    // The number of blocks in the superblock.
    bytes[1024 + 4..1024 + 8].fill(0xff);
    std::fs::write(&volume, bytes).unwrap();
    assert_eq!(read(&[&volume]).unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn an_image_in_use_is_refused_unless_sharing_is_forced() {
    need_tools!();
    let bench = Bench::new();
    let volume = bench.ext4("whole.ext4", &bench.tree("root", &system()), 16, &[]);
    let writer = vmwright_disk::HostFile::open(&volume, false).unwrap();
    assert_eq!(read(&[&volume]).unwrap_err().kind(), ErrorKind::InUse);
    let options = OpenOptions { mode: Mode::ForceShare, ..OpenOptions::default() };
    assert!(Guest::open(&[&volume], &options).is_ok());
    drop(writer);
    let first = read(&[&volume]).unwrap();
    assert!(read(&[&volume]).is_ok(), "any number may read");
    assert_eq!(Guest::open(&[&volume], &OpenOptions::edit()).unwrap_err().kind(), ErrorKind::InUse);
    drop(first);
}

#[test]
fn a_backing_file_opens_only_through_the_gate() {
    need_tools!();
    let bench = Bench::new();
    let (raw, _) = whole_disk(&bench);
    let overlay = bench.path("overlay.qcow2");
    let args = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b"].map(AsRef::as_ref);
    run("qemu-img", args.into_iter().chain([raw.as_os_str(), overlay.as_os_str()]));
    let error = read(&[&overlay]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let gate = Beneath::image_folder();
    let options = OpenOptions { gate: &gate, ..OpenOptions::default() };
    assert_eq!(Guest::open(&[&overlay], &options).unwrap().inspect().hostname.as_deref(), Some("box"));
}

#[test]
fn a_root_outlives_the_guest_for_reading() {
    need_tools!();
    let bench = Bench::new();
    let volume = bench.ext4("whole.ext4", &bench.tree("root", &system()), 16, &[]);
    let root = read(&[&volume]).unwrap().into_root();
    assert_eq!(root.read_file("/etc/hostname", 10).unwrap(), b"box\n");
}

#[test]
fn one_image_cannot_be_two_disks() {
    need_tools!();
    let bench = Bench::new();
    let volume = bench.ext4("whole.ext4", &bench.tree("root", &system()), 16, &[]);
    let link = bench.path("link");
    std::os::unix::fs::symlink(&volume, &link).unwrap();
    assert_eq!(read(&[&volume, &link]).unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn a_damaged_backup_of_the_partition_table_is_told() {
    need_tools!();
    let bench = Bench::new();
    let (raw, _) = whole_disk(&bench);
    let mut bytes = std::fs::read(&raw).unwrap();
    let end = bytes.len();
    bytes[end - 512..].fill(0);
    std::fs::write(&raw, bytes).unwrap();
    let guest = read(&[&raw]).unwrap();
    assert!(
        guest.problems().iter().any(|problem| problem.starts_with("/dev/sda: the backup table is damaged"))
    );
}

#[test]
fn a_journal_on_another_disk_is_replayed_with_the_filesystem_it_belongs_to() {
    need!("mke2fs", "losetup", "mount");
    if !vmwright_judges::can_mount() {
        skip!("mounting is not permitted here");
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let text = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    for (name, len) in [("journal", 8 << 20), ("volume", 32 << 20)] {
        std::fs::File::create(at(name)).unwrap().set_len(len).unwrap();
    }
    run("mke2fs", ["-q", "-F", "-b", "1024", "-O", "journal_dev", &text(&at("journal"))]);
    let device = run("losetup", ["-f", "--show", &text(&at("journal"))]).trim().to_owned();
    let with = format!("device={device}");
    run("mke2fs", ["-q", "-F", "-b", "1024", "-t", "ext4", "-O", "mmp", "-J", &with, &text(&at("volume"))]);
    std::fs::create_dir(at("top")).unwrap();
    let options = format!("loop,commit=300,journal_path={device}");
    run("mount", ["-o", &options, &text(&at("volume")), &text(&at("top"))]);
    std::fs::write(at("top/file"), b"text").unwrap();
    std::fs::File::open(at("top/file")).unwrap().sync_all().unwrap();
    // As after a crash: both as they are while the kernel has them open.
    std::fs::copy(at("volume"), at("crashed")).unwrap();
    std::fs::copy(at("journal"), at("its-journal")).unwrap();
    run("umount", [&text(&at("top"))]);
    run("losetup", ["-d", &device]);
    assert_eq!(read(&[&at("crashed")]).unwrap_err().kind(), ErrorKind::Unsupported);
    let (before, path) = (std::fs::read(at("crashed")).unwrap(), at("its-journal"));
    let journal = Some(vmwright_guest::JournalDisk { image: &path, part: None });
    let guest = Guest::open(&[at("crashed")], &OpenOptions { journal, ..OpenOptions::default() }).unwrap();
    assert_eq!(guest.root().read_file("/file", 99).unwrap(), b"text");
    drop(guest);
    assert!(before == std::fs::read(at("crashed")).unwrap(), "reading has written");
    // Somebody has it open, says the guard, until that is overruled.
    let edit = OpenOptions { journal, ..OpenOptions::edit() };
    assert_eq!(Guest::open(&[at("crashed")], &edit).unwrap_err().kind(), ErrorKind::InUse);
    let edit = OpenOptions { journal, ignore_mmp: true, ..OpenOptions::edit() };
    Guest::open(&[at("crashed")], &edit).unwrap().commit().unwrap();
    assert_eq!(read(&[&at("crashed")]).unwrap().root().read_file("/file", 99).unwrap(), b"text");
    let volume = at("volume");
    let wrong = vmwright_guest::JournalDisk { image: &volume, part: None };
    let wrong = OpenOptions { journal: Some(wrong), ..OpenOptions::default() };
    assert_eq!(Guest::open(&[at("crashed")], &wrong).unwrap_err().kind(), ErrorKind::NotFound);
}
