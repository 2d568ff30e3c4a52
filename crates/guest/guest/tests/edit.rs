//! Changing guests: what others see of it afterwards, and that all of it happens or nothing.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on panics")]

mod common;

use std::path::Path;

use common::{Bench, ROOT_UUID, whole_disk};
use vmwright_guest::ops::{self, CopyOptions, Owner, Substitution};
use vmwright_guest::{ErrorKind, Guest, OpenOptions, WriteMode};
use vmwright_judges::{Mount, can_mount, need, run, skip};
use vmwright_vfs::Timestamp;

const BOOT: (u64, u64) = (1 << 20, 8 << 20);
const ROOT: (u64, u64) = (9 << 20, 24 << 20);

macro_rules! need_tools {
    () => {
        need!("mke2fs", "sfdisk", "qemu-img", "mkfs.vfat", "e2fsck")
    };
}

fn edit(image: &Path) -> Guest {
    let now = Some(Timestamp { seconds: 1_800_000_000, nanoseconds: 0 });
    Guest::open(&[image], &OpenOptions { now, ..OpenOptions::edit() }).unwrap()
}

/// Changes files on two filesystems in every way there is.
fn change(guest: &mut Guest, local: &Path) {
    let root = guest.root_mut();
    ops::write(root, b"/etc/hostname", &mut &b"renamed\n"[..]).unwrap();
    let noatime = Substitution::parse("s/errors=/noatime,&/").unwrap();
    assert!(ops::substitute(root, b"/etc/fstab", &[noatime]).unwrap());
    ops::write(root, b"/boot/extra", &mut &b"on /boot"[..]).unwrap();
    ops::mkdir(root, b"/opt/app/data", 0o750, true).unwrap();
    std::fs::write(local.join("big"), vec![0x5a; 3 << 20]).unwrap();
    ops::copy_in(root, &local.join("big"), b"/opt/app", &CopyOptions::default()).unwrap();
    ops::symlink(root, b"../big", b"/opt/app/data/link").unwrap();
    ops::hard_link(root, b"/opt/app/big", b"/opt/app/second").unwrap();
    ops::rename(root, b"/etc/machine-id", b"/etc/old-id", false).unwrap();
    ops::chmod(root, b"/etc/shadow", "u=rw,go=", false).unwrap();
    let owner = Owner::parse(root, "kim:sudo").unwrap();
    ops::chown(root, b"/home/kim", owner, true, true).unwrap();
    ops::remove(root, b"/etc/cloud", true).unwrap();
}

fn assert_sound(bench: &Bench, image: &Path) {
    for (start, len) in [BOOT, ROOT] {
        let volume = bench.cut(image, start, len);
        run("e2fsck", ["-f".as_ref(), "-n".as_ref(), volume.as_os_str()]);
    }
}

fn assert_changed(guest: &Guest) {
    let root = guest.root();
    assert_eq!(root.read_file("/etc/hostname", 100).unwrap(), b"renamed\n");
    assert_eq!(root.metadata("/etc/hostname").unwrap().modified.seconds, 1_800_000_000);
    assert!(root.read_file("/etc/fstab", 4096).unwrap().windows(15).any(|text| text == b"noatime,errors="));
    assert_eq!(root.read_file("/boot/extra", 100).unwrap(), b"on /boot");
    assert_eq!(root.read_file("/opt/app/data/link", 8 << 20).unwrap(), vec![0x5a; 3 << 20]);
    assert_eq!(root.metadata("/opt/app/second").unwrap().links, 2);
    assert!(root.exists("/etc/old-id") && !root.exists("/etc/machine-id") && !root.exists("/etc/cloud"));
    assert_eq!(root.metadata("/etc/shadow").unwrap().mode, 0o600);
    let home = root.metadata("/home/kim").unwrap();
    assert_eq!((home.uid, home.gid), (1000, 27));
}

#[test]
fn changes_on_several_filesystems_are_sound_and_seen_again() {
    need_tools!();
    let bench = Bench::new();
    let (raw, qcow2) = whole_disk(&bench);
    for image in [raw, qcow2] {
        let mut guest = edit(&image);
        change(&mut guest, &bench.path(""));
        assert_changed(&guest);
        let plan = guest.commit().unwrap();
        assert_eq!(plan.files.len(), 1);
        assert!(plan.files[0].written > 3 << 20);
        assert_sound(&bench, &image);
        if image.extension().is_some_and(|extension| extension == "qcow2") {
            run("qemu-img", ["check".as_ref(), image.as_os_str()]);
        }
        assert_changed(&Guest::open(&[&image], &OpenOptions::default()).unwrap());
    }
}

#[test]
fn the_kernel_reads_what_was_written_and_we_read_what_it_writes() {
    need_tools!();
    if !can_mount() {
        skip!("filesystems cannot be mounted here");
    }
    let bench = Bench::new();
    let (raw, _) = whole_disk(&bench);
    let mut guest = edit(&raw);
    change(&mut guest, &bench.path(""));
    guest.commit().unwrap();
    {
        let mount = Mount::new(&raw, &format!("offset={},sizelimit={}", ROOT.0, ROOT.1));
        let read = |path: &str| std::fs::read(mount.path().join(path)).unwrap();
        assert_eq!(read("etc/hostname"), b"renamed\n");
        assert_eq!(read("opt/app/second"), vec![0x5a; 3 << 20]);
        assert_eq!(std::fs::read_link(mount.path().join("opt/app/data/link")).unwrap(), Path::new("../big"));
        std::fs::write(mount.path().join("opt/app/kernel"), vec![0xa5; 100_000]).unwrap();
        std::fs::remove_file(mount.path().join("opt/app/big")).unwrap();
    }
    let mut guest = edit(&raw);
    assert_eq!(guest.root().read_file("/opt/app/kernel", 1 << 20).unwrap(), vec![0xa5; 100_000]);
    assert_eq!(guest.root().metadata("/opt/app/second").unwrap().links, 1);
    ops::remove(guest.root_mut(), b"/opt", true).unwrap();
    guest.commit().unwrap();
    assert_sound(&bench, &raw);
    let mount = Mount::new(&raw, &format!("offset={},sizelimit={}", ROOT.0, ROOT.1));
    assert!(!mount.path().join("opt").exists() && mount.path().join("etc/hostname").exists());
}

#[test]
fn without_a_commit_nothing_changes() {
    need_tools!();
    let bench = Bench::new();
    let (_, qcow2) = whole_disk(&bench);
    let before = std::fs::read(&qcow2).unwrap();
    let mut guest = edit(&qcow2);
    change(&mut guest, &bench.path(""));
    let plan = guest.plan().unwrap();
    assert_eq!(plan.files.len(), 1);
    assert_changed(&guest);
    drop(guest);
    assert!(std::fs::read(&qcow2).unwrap() == before);
    // Nor does opening for changes alone, where no journal had to be replayed.
    assert_eq!(edit(&qcow2).commit().unwrap().files, []);
    assert!(std::fs::read(&qcow2).unwrap() == before);
}

#[test]
fn a_guest_opened_for_reading_refuses_changes() {
    need_tools!();
    let bench = Bench::new();
    let (raw, _) = whole_disk(&bench);
    let mut guest = Guest::open(&[&raw], &OpenOptions::default()).unwrap();
    let error = ops::write(guest.root_mut(), b"/etc/hostname", &mut &b"x"[..]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnly);
    assert_eq!(guest.commit().unwrap().files.len(), 0);
}

#[test]
fn replacing_a_file_keeps_its_label_and_owner_on_disk() {
    need_tools!();
    if !can_mount() {
        skip!("filesystems cannot be mounted here");
    }
    need!("setfattr", "getfattr");
    let bench = Bench::new();
    let tree = bench.tree("root", &common::system());
    let image = bench.ext4("whole.ext4", &tree, 16, &["-U", ROOT_UUID]);
    let label = ["-n", "user.label", "-v", "kept"].map(AsRef::as_ref);
    {
        let mount = Mount::new(&image, "rw");
        let file = mount.path().join("etc/hostname");
        run("setfattr", label.into_iter().chain([file.as_os_str()]));
        std::os::unix::fs::chown(&file, Some(7), Some(8)).unwrap();
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o4750)).unwrap();
    }
    let mut guest = edit(&image);
    ops::write(guest.root_mut(), b"/etc/hostname", &mut &b"new\n"[..]).unwrap();
    guest.commit().unwrap();
    run("e2fsck", ["-f".as_ref(), "-n".as_ref(), image.as_os_str()]);
    let mount = Mount::new(&image, "ro");
    let file = mount.path().join("etc/hostname");
    assert_eq!(std::fs::read(&file).unwrap(), b"new\n");
    let metadata = std::fs::metadata(&file).unwrap();
    use std::os::unix::fs::MetadataExt;
    assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (7, 8, 0o4750));
    let shown =
        run("getfattr", ["-n".as_ref(), "user.label".as_ref(), "--only-values".as_ref(), file.as_os_str()]);
    assert_eq!(shown, "kept");
}

#[test]
fn edits_in_place_need_no_redo_file() {
    need_tools!();
    let bench = Bench::new();
    let (raw, _) = whole_disk(&bench);
    let options = OpenOptions { write_mode: WriteMode::Ordered, ..OpenOptions::edit() };
    let mut guest = Guest::open(&[&raw], &options).unwrap();
    ops::write(guest.root_mut(), b"/etc/hostname", &mut &b"direct\n"[..]).unwrap();
    guest.commit().unwrap();
    assert_sound(&bench, &raw);
    assert_eq!(
        Guest::open(&[&raw], &OpenOptions::default()).unwrap().inspect().hostname.as_deref(),
        Some("direct")
    );
}

#[test]
fn a_guest_that_is_full_is_left_as_it_was() {
    need_tools!();
    let bench = Bench::new();
    let (_, qcow2) = whole_disk(&bench);
    let before = std::fs::read(&qcow2).unwrap();
    let mut guest = edit(&qcow2);
    let mut endless = std::io::repeat(1);
    let error = ops::write(guest.root_mut(), b"/etc/endless", &mut endless).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    drop(guest);
    assert!(std::fs::read(&qcow2).unwrap() == before);
}
