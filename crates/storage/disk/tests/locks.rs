//! Locks against the programs that they are meant for: each side refuses what the other has open.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use vmwright_disk::{Access, Disk, ErrorKind, HostFile, Sharing, Transaction, TransactionOptions};
use vmwright_judges::{need, output, tool};

/// A program that has an image open until this is dropped.
struct Holder(Child);

impl Holder {
    /// Starts a program, sends it `hello` and waits for so many lines from it.
    fn start(program: &str, args: &[&str], hello: &str, lines: usize) -> Self {
        let mut child = Command::new(tool(program).unwrap())
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.as_mut().unwrap().write_all(hello.as_bytes()).unwrap();
        let answers = BufReader::new(child.stdout.as_mut().unwrap()).lines().take(lines);
        assert_eq!(answers.count(), lines, "{program} {args:?} has not started");
        Self(child)
    }

    fn qemu_io(image: &Path, more: &[&str]) -> Self {
        let args = [&["-f", "raw"], more, &[image.to_str().unwrap()]].concat();
        Self::start("qemu-io", &args, "length\n", 1)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn image() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    std::fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
    (dir, path)
}

fn qemu_io(image: &Path, more: &[&str], command: &str) -> bool {
    let args = [&["-f", "raw"], more, &["-c", command, image.to_str().unwrap()]].concat();
    output("qemu-io", args).status.success()
}

fn refused(path: &Path, read_only: bool) -> String {
    let error = HostFile::open(path, read_only).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
    error.to_string()
}

#[test]
fn what_qemu_writes_is_refused_and_its_name_given() {
    need!("qemu-io");
    let (_dir, path) = image();
    let holder = Holder::qemu_io(&path, &[]);
    for read_only in [true, false] {
        let message = refused(&path, read_only);
        assert!(message.contains(&format!("qemu-io (process {})", holder.0.id())), "{message}");
    }
    let forced = HostFile::open_forced(&path).unwrap();
    forced.read_at(&mut [0; 512], 0).unwrap();
    drop(holder);
    HostFile::open(&path, false).unwrap();
}

#[test]
fn what_qemu_reads_can_be_read_but_not_written() {
    need!("qemu-io");
    let (_dir, path) = image();
    let _holder = Holder::qemu_io(&path, &["-r"]);
    HostFile::open(&path, true).unwrap();
    refused(&path, false);
}

#[test]
fn qemu_refuses_what_is_written_here() {
    need!("qemu-io", "qemu-img");
    let (_dir, path) = image();
    let writer = HostFile::open(&path, false).unwrap();
    assert!(!qemu_io(&path, &[], "write 0 512"));
    assert!(!qemu_io(&path, &["-r"], "read 0 512"));
    assert!(!output("qemu-img", ["bench", "-f", "raw", "-c", "1", path.to_str().unwrap()]).status.success());
    // Consistent reading is not shared: what is there is about to change.
    assert!(!qemu_io(&path, &["-r", "-U"], "read 0 512"));
    drop(writer);
    assert!(qemu_io(&path, &[], "write 0 512"));
}

#[test]
fn qemu_reads_what_is_read_here() {
    need!("qemu-io", "qemu-img");
    let (_dir, path) = image();
    let _reader = HostFile::open(&path, true).unwrap();
    assert!(qemu_io(&path, &["-r"], "read 0 512"));
    assert!(output("qemu-img", ["bench", "-f", "raw", "-c", "1", path.to_str().unwrap()]).status.success());
    assert!(!qemu_io(&path, &[], "write 0 512"));
}

#[test]
fn the_disk_of_a_virtual_machine_is_refused() {
    need!("qemu-system-x86_64");
    let (_dir, path) = image();
    let drive = format!("file={},format=raw,if=virtio", path.display());
    let machine = ["-machine", "q35,accel=tcg", "-display", "none", "-nodefaults", "-S", "-m", "32"];
    let args = [&machine[..], &["-qmp", "stdio", "-drive", &drive]].concat();
    // The greeting comes before the disk is attached, the answer to a command after that.
    let hello = "{\"execute\": \"qmp_capabilities\"}\n";
    let holder = Holder::start("qemu-system-x86_64", &args, hello, 2);
    assert!(refused(&path, false).contains("qemu-system-x86"));
    refused(&path, true);
    let options = TransactionOptions::default();
    let error = Transaction::begin(options.clone()).open(&path, Access::Write).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::InUse);
    let forced = Transaction::begin(options.sharing(Sharing::Forced));
    forced.open(&path, Access::Read).unwrap();
    assert_eq!(forced.open(&path, Access::Write).err().unwrap().kind(), ErrorKind::InvalidInput);
    drop(holder);
}

#[test]
fn a_virtual_machine_does_not_start_on_a_disk_that_is_written_here() {
    need!("qemu-system-x86_64");
    let (_dir, path) = image();
    let txn = Transaction::begin(TransactionOptions::default());
    let _disk = txn.open(&path, Access::Write).unwrap();
    let drive = format!("file={},format=raw,if=virtio", path.display());
    let machine = ["-machine", "q35,accel=tcg", "-display", "none", "-nodefaults", "-S", "-drive", &drive];
    let output = output("qemu-system-x86_64", machine);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("lock"), "{output:?}");
}
