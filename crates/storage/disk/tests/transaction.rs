//! Transactions on the real host.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use vmwright_disk::{
    Access, ErrorKind, HostFile, Recovered, Recovery, Transaction, TransactionOptions, WriteMode, recover,
};
use vmwright_judges::{Mount, can_mount, need, output, run, skip};

fn image(dir: &Path, name: &str, len: usize) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, vec![1; len]).unwrap();
    path
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn begin() -> Transaction {
    Transaction::begin(TransactionOptions::default())
}

#[test]
fn a_commit_changes_all_files_and_leaves_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (image(dir.path(), "a", 10_000), image(dir.path(), "b", 10_000));
    let txn = begin();
    let (first, second) = (txn.open(&a, Access::Write).unwrap(), txn.open(&b, Access::Write).unwrap());
    first.write_at(&[2; 1000], 100).unwrap();
    second.set_len(50_000).unwrap();
    second.write_at(&[3; 1000], 40_000).unwrap();
    assert_eq!(fs::read(&a).unwrap(), vec![1; 10_000], "nothing is written before the commit");
    let plan = txn.commit().unwrap();
    assert_eq!(plan.files.len(), 2);
    let bytes = fs::read(&a).unwrap();
    assert_eq!((bytes[99], bytes[100], bytes[1099], bytes[1100]), (1, 2, 2, 1));
    let bytes = fs::read(&b).unwrap();
    assert_eq!((bytes.len(), bytes[9_999], bytes[10_000], bytes[40_000]), (50_000, 1, 0, 3));
    assert!(fs::metadata(&b).unwrap().blocks() * 512 < 40_000, "a hole stays one");
    assert_eq!(names(dir.path()), ["a", "b"]);
}

#[test]
fn the_same_file_opened_by_another_name_is_the_same_disk() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), "real", 4096);
    symlink("real", dir.path().join("link")).unwrap();
    let txn = begin();
    txn.open(&dir.path().join("link"), Access::Write).unwrap().write_at(&[7; 10], 0).unwrap();
    let mut bytes = [0; 10];
    txn.open(&path, Access::Read).unwrap().read_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, [7; 10]);
    txn.commit().unwrap();
    assert_eq!(fs::read(&path).unwrap()[..11], [7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 1]);
}

#[test]
fn a_file_with_several_names_needs_a_folder_for_redo_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), "a", 4096);
    fs::hard_link(&path, dir.path().join("b")).unwrap();
    let error = begin().open(&path, Access::Write).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("--redo-dir"), "{error}");

    let redo = tempfile::tempdir().unwrap();
    let txn = Transaction::begin(TransactionOptions::default().redo_dir(redo.path()));
    txn.open(&path, Access::Write).unwrap().write_at(&[5; 10], 0).unwrap();
    txn.commit().unwrap();
    assert_eq!(fs::read(dir.path().join("b")).unwrap()[0], 5);
    assert!(names(redo.path()).is_empty());
}

#[test]
fn ordered_mode_writes_in_place_and_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), "a", 4096);
    let txn = Transaction::begin(TransactionOptions::default().mode(WriteMode::Ordered));
    txn.open(&path, Access::Write).unwrap().write_at(&[5; 10], 0).unwrap();
    assert_eq!(fs::read(&path).unwrap()[0], 5);
    txn.commit().unwrap();
}

#[test]
fn a_transaction_locks_its_files_until_it_and_its_disks_are_gone() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), "a", 4096);
    let txn = begin();
    let disk = txn.open(&path, Access::Write).unwrap();
    assert_eq!(HostFile::open(&path, true).unwrap_err().kind(), ErrorKind::InUse);
    drop(txn);
    assert_eq!(HostFile::open(&path, true).unwrap_err().kind(), ErrorKind::InUse);
    drop(disk);
    HostFile::open(&path, true).unwrap();
}

#[test]
fn a_block_device_is_changed_through_a_folder_for_redo_files() {
    need!("losetup");
    if !can_mount() {
        skip!("loop devices cannot be made");
    }
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), "backing", 1 << 20);
    let device = PathBuf::from(run("losetup", ["--find", "--show", path.to_str().unwrap()]).trim());
    let detach = Detach(device.clone());
    assert_eq!(begin().open(&device, Access::Write).err().unwrap().kind(), ErrorKind::Unsupported);

    let txn = Transaction::begin(TransactionOptions::default().redo_dir(dir.path()));
    let disk = txn.open(&device, Access::Write).unwrap();
    assert_eq!(disk.len(), 1 << 20);
    assert_eq!(disk.set_len(4096).unwrap_err().kind(), ErrorKind::Unsupported);
    disk.write_at(&[9; 700], 5000).unwrap();
    disk.zero_at(65536, 65536).unwrap();
    txn.commit().unwrap();
    drop(disk);
    drop(detach);
    let bytes = fs::read(&path).unwrap();
    assert_eq!((bytes[4999], bytes[5000], bytes[5699], bytes[5700]), (1, 9, 9, 1));
    assert_eq!((bytes[65535], bytes[65536], bytes[131_071], bytes[131_072]), (1, 0, 0, 1));
    assert_eq!(names(dir.path()), ["backing"]);
}

struct Detach(PathBuf);

impl Drop for Detach {
    fn drop(&mut self) {
        output("losetup", ["--detach", self.0.to_str().unwrap()]);
    }
}

/// A small ext4 filesystem of the host, mounted.
fn small_filesystem(dir: &Path, mib: u64) -> Mount {
    let path = dir.join("small.img");
    fs::File::create(&path).unwrap().set_len(mib << 20).unwrap();
    run("mke2fs", ["-q", "-t", "ext4", "-m", "0", path.to_str().unwrap()]);
    Mount::new(&path, "rw")
}

#[test]
fn a_full_disk_is_found_before_anything_is_changed() {
    need!("mke2fs");
    if !can_mount() {
        skip!("loop devices cannot be mounted");
    }
    let dir = tempfile::tempdir().unwrap();
    let mount = small_filesystem(dir.path(), 16);
    let path = mount.path().join("disk");
    let file = fs::File::create(&path).unwrap();
    file.set_len(64 << 20).unwrap();
    file.write_all_at(&[1; 4096], 0).unwrap();
    file.sync_all().unwrap();
    let before = (fs::metadata(&path).unwrap().blocks(), fs::metadata(&path).unwrap().len());

    let txn = begin();
    let disk = txn.open(&path, Access::Write).unwrap();
    disk.write_at(&[2; 4096], 0).unwrap();
    let block = vec![3; 1 << 20];
    // The image needs 12 MiB more, and so does the redo.
    for index in 1..=12 {
        disk.write_at(&block, index << 20).unwrap();
    }
    let error = txn.commit().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    drop(disk);
    assert_eq!(fs::read(&path).unwrap()[..4096], [1; 4096]);
    file.sync_all().unwrap();
    let after = fs::metadata(&path).unwrap();
    // A block for the host's own bookkeeping may stay.
    assert!(after.blocks() <= before.0 + 8, "reserved space is given back: {} {before:?}", after.blocks());
    assert_eq!(after.len(), before.1);
    assert_eq!(names(mount.path()), ["disk", "lost+found"]);
}

#[test]
fn a_large_change_is_committed_through_a_temporary_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), "a", 4096);
    let txn = begin();
    let disk = txn.open(&path, Access::Write).unwrap();
    disk.set_len(40 << 20).unwrap();
    for index in 0..40u8 {
        disk.write_at(&vec![index + 1; 1 << 20], u64::from(index) << 20).unwrap();
    }
    txn.commit().unwrap();
    let bytes = fs::read(&path).unwrap();
    assert!(
        (0..40).all(
            |index| bytes[index << 20] == index as u8 + 1 && bytes[(index << 20) + 99] == index as u8 + 1
        )
    );
    assert_eq!(names(dir.path()), ["a"]);
}

#[test]
fn a_damaged_redo_is_an_error_that_can_be_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), "a", 4096);
    fs::write(dir.path().join("a.vmwright-redo"), b"VMWREDO1 and then nothing that makes sense").unwrap();
    for access in [Access::Read, Access::Write] {
        let error = begin().open(&path, access).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    }
    let options = TransactionOptions::default();
    assert_eq!(recover(&path, Recovery::Discard, &options).unwrap(), Recovered::Discarded);
    assert_eq!(names(dir.path()), ["a"]);
}

const ROUNDS: &str = "VMWRIGHT_DISK_TEST_ROUNDS";

/// Not a test by itself: the process that [`a_killed_commit_leaves_both_files_old_or_new`] kills.
#[test]
fn commits_without_end() {
    let Some(dir) = std::env::var_os(ROUNDS).map(PathBuf::from) else { return };
    for round in 2..=u8::MAX {
        let txn = begin();
        for name in ["a", "b"] {
            let disk = txn.open(&dir.join(name), Access::Write).unwrap();
            for block in 0..16 {
                disk.write_at(&[round; 4096], block * 12_288).unwrap();
            }
        }
        txn.commit().unwrap();
    }
}

#[test]
fn a_killed_commit_leaves_both_files_old_or_new() {
    let rounds = if std::env::var_os("VMWRIGHT_TORTURE").is_some() { 300 } else { 15 };
    let mut recovered = 0;
    for round in 0..rounds {
        let dir = tempfile::tempdir().unwrap();
        let paths = ["a", "b"].map(|name| image(dir.path(), name, 16 * 12_288));
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "commits_without_end"])
            .env(ROUNDS, dir.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_micros(6_000 + round * 2_713 % 40_000));
        child.kill().unwrap();
        child.wait().unwrap();

        let values = paths.map(|path| {
            recovered += usize::from(dir.path().join("a.vmwright-redo").exists());
            let txn = begin();
            let disk = txn.open(&path, Access::Write).unwrap();
            let mut bytes = vec![0; 16 * 12_288];
            disk.read_at(&mut bytes, 0).unwrap();
            for block in bytes.chunks(12_288) {
                assert!(block[..4096].iter().all(|byte| *byte == bytes[0]), "torn after round {}", bytes[0]);
                assert!(block[4096..].iter().all(|byte| *byte == 1));
            }
            bytes[0]
        });
        assert_eq!(values[0], values[1], "both files agree");
        assert_eq!(names(dir.path()), ["a", "b"], "nothing is left behind");
    }
    println!("{recovered} of {rounds} kills left a redo");
}

#[test]
fn a_file_replaced_before_the_commit_is_refused_and_both_stay_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let (path, kept) = (image(dir.path(), "a", 10_000), dir.path().join("kept"));
    for replace in [true, false] {
        let txn = begin();
        txn.open(&path, Access::Write).unwrap().write_at(&[2; 1000], 100).unwrap();
        fs::rename(&path, &kept).unwrap();
        if replace {
            fs::write(&path, b"another").unwrap();
        }
        // Written to a file that no longer has the name, the change would be lost without a word.
        assert_eq!(txn.commit().unwrap_err().kind(), ErrorKind::InUse);
        assert_eq!(fs::read(&kept).unwrap(), vec![1; 10_000]);
        assert_eq!(fs::read(&path).ok(), replace.then(|| b"another".to_vec()));
        fs::rename(&kept, &path).unwrap();
        assert_eq!(names(dir.path()), ["a"]);
    }
}

#[test]
fn writing_what_is_there_already_does_not_touch_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), "a", 10_000);
    let long_ago = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000);
    fs::File::options().write(true).open(&path).unwrap().set_modified(long_ago).unwrap();
    let txn = begin();
    txn.open(&path, Access::Write).unwrap().write_at(&[1; 5000], 100).unwrap();
    assert!(txn.commit().unwrap().files.is_empty());
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), long_ago);
}
