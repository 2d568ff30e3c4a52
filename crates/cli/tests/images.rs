//! The verbs on images as wholes, as a user calls them, judged by qemu-img and libnbd.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on panics")]

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use vmwright_judges::{need, output, run, skip};

/// A folder with a raw disk of 6 MiB that has data in two places.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        let mut bytes = vec![0; 6 << 20];
        bytes[1 << 20..][..300_000].iter_mut().enumerate().for_each(|(at, byte)| *byte = (at / 500) as u8);
        bytes[5_000_000..][..70_000].fill(7);
        fs::write(place.path("disk.raw"), bytes).unwrap();
        fs::write(place.path("key"), "open sesame\n").unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmwright"));
        command.args(line.split(' ')).current_dir(self.folder.path()).env("VMWRIGHT_HOME", self.path("home"));
        command
    }

    fn output(&self, line: &str) -> Output {
        self.command(line).stdin(Stdio::null()).output().unwrap()
    }

    fn ok(&self, line: &str) -> String {
        let output = self.output(line);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "vmwright {line}: {}\n{errors}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.ok(line)).unwrap()
    }

    fn fails(&self, line: &str, code: i32) -> String {
        let output = self.output(line);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "vmwright {line}: {errors}");
        errors
    }

    fn qemu_img(&self, line: &str) -> String {
        let args: Vec<_> = line
            .split(' ')
            .map(|word| match word.strip_prefix('@') {
                Some(name) => self.path(name).into_os_string(),
                None => OsStr::new(word).to_owned(),
            })
            .collect();
        run("qemu-img", args)
    }
}

#[test]
fn a_disk_goes_through_every_format_and_comes_back() {
    need!("qemu-img");
    let place = Place::new();
    let formats = [("qcow2", "qcow2"), ("vmdk", "vmdk"), ("vhd", "vpc"), ("vhdx", "vhdx"), ("vdi", "vdi")];
    let mut last = "disk.raw".to_owned();
    for (format, qemu) in formats {
        let next = format!("disk.{format}");
        place.ok(&format!("disk convert {last} {next} -O {format} --verify"));
        place.qemu_img(&format!("compare -q -f raw -F {qemu} @disk.raw @{next}"));
        assert_eq!(place.json(&format!("disk info {next} --json"))["format"], qemu);
        last = next;
    }
    place.ok(&format!("disk convert {last} back.raw -O raw"));
    assert!(fs::read(place.path("back.raw")).unwrap() == fs::read(place.path("disk.raw")).unwrap());
    let sums = ["disk.raw", "disk.vmdk", "disk.vhdx"]
        .map(|name| place.json(&format!("disk checksum {name} --json"))["sha256"].clone());
    assert!(sums[0] == sums[1] && sums[1] == sums[2]);
    let theirs = run("sha256sum", [place.path("disk.raw")]);
    assert!(theirs.starts_with(sums[0].as_str().unwrap()));
}

#[test]
fn comparing_answers_by_its_exit_code() {
    let place = Place::new();
    place.ok("disk convert disk.raw a.qcow2 -O qcow2 -c");
    assert_eq!(place.ok("disk compare disk.raw a.qcow2"), "they hold the same\n");
    let mut bytes = fs::read(place.path("disk.raw")).unwrap();
    bytes[5_000_001] = 8;
    fs::write(place.path("other.raw"), bytes).unwrap();
    let output = place.output("disk compare a.qcow2 other.raw");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("5000001"));
    place.fails("disk compare a.qcow2 missing.raw", 1);
}

#[test]
fn a_target_that_exists_needs_force_and_a_dry_run_makes_nothing() {
    let place = Place::new();
    place.ok("disk convert disk.raw a.qcow2 -O qcow2 --dry-run");
    assert!(!place.path("a.qcow2").exists());
    place.ok("disk convert disk.raw a.qcow2 -O qcow2");
    let errors = place.fails("disk convert disk.raw a.qcow2 -O qcow2", 3);
    assert!(errors.contains("--force"), "{errors}");
    place.ok("disk convert disk.raw a.qcow2 -O qcow2 --force");
    let errors = place.fails("disk convert disk.raw b.qcow2 -O qcow2 -o colour=red", 2);
    assert!(errors.contains("cluster_size"), "{errors}");
    assert!(!place.path("b.qcow2").exists() && !place.path("b.qcow2.vmwright-part").exists());
}

#[test]
fn a_disk_shrinks_only_when_told() {
    need!("qemu-img");
    let place = Place::new();
    place.ok("disk convert disk.raw a.qcow2 -O qcow2");
    place.ok("disk resize a.qcow2 +2M");
    assert_eq!(place.json("disk info a.qcow2 --json")["virtual-size"], 8 << 20);
    let errors = place.fails("disk resize a.qcow2 6M", 3);
    assert!(errors.contains("--shrink"), "{errors}");
    place.ok("disk resize a.qcow2 6M --shrink");
    place.qemu_img("compare -q -f raw -F qcow2 @disk.raw @a.qcow2");
    place.qemu_img("check -q @a.qcow2");
    place.fails("disk resize a.qcow2 -20M", 2);
}

#[test]
fn a_damaged_image_exits_with_four_until_it_is_repaired() {
    need!("qemu-img");
    let place = Place::new();
    place.ok("disk convert disk.raw a.qcow2 -O qcow2");
    place.ok("disk check a.qcow2");
    let mut bytes = fs::read(place.path("a.qcow2")).unwrap();
    // The first reference counts, of the header and the tables, become zero.
    let table = u64::from_be_bytes(bytes[48..56].try_into().unwrap()) as usize;
    let block = u64::from_be_bytes(bytes[table..table + 8].try_into().unwrap()) as usize;
    bytes[block..block + 16].fill(0);
    fs::write(place.path("a.qcow2"), &bytes).unwrap();
    let output = place.output("disk check a.qcow2");
    assert_eq!(output.status.code(), Some(4), "{}", String::from_utf8_lossy(&output.stdout));
    place.ok("disk check a.qcow2 --repair all --dry-run");
    assert!(fs::read(place.path("a.qcow2")).unwrap() == bytes);
    place.ok("disk check a.qcow2 --repair all");
    place.ok("disk check a.qcow2");
    place.qemu_img("check -q @a.qcow2");
    place.qemu_img("compare -q -f raw -F qcow2 @disk.raw @a.qcow2");
}

#[test]
fn overlays_are_committed_rebased_and_flattened() {
    need!("qemu-img", "qemu-io");
    let place = Place::new();
    place.ok("disk convert disk.raw base.qcow2 -O qcow2");
    fs::copy(place.path("base.qcow2"), place.path("other.qcow2")).unwrap();
    place.ok("disk create -b base.qcow2 top.qcow2");
    let top = place.path("top.qcow2");
    run("qemu-io", [OsStr::new("-c"), OsStr::new("write -P 9 2M 1M"), top.as_os_str()]);
    place.qemu_img("convert -O raw @top.qcow2 @expected.raw");
    let chain = place.json("disk info top.qcow2 --chain --json");
    assert_eq!(chain.as_array().unwrap().len(), 2);
    let same = |image: &str| place.qemu_img(&format!("compare -q -f raw -F qcow2 @expected.raw @{image}"));

    place.ok("disk rebase top.qcow2 -b other.qcow2");
    same("top.qcow2");
    place.ok("disk commit top.qcow2");
    same("other.qcow2");
    same("top.qcow2");
    place.ok("disk flatten top.qcow2");
    fs::remove_file(place.path("other.qcow2")).unwrap();
    same("top.qcow2");
    place.fails("disk commit top.qcow2", 2);
}

#[test]
fn snapshots_come_and_go() {
    need!("qemu-img", "qemu-io");
    let place = Place::new();
    place.ok("disk convert disk.raw a.qcow2 -O qcow2");
    place.ok("disk snapshot create a.qcow2 before");
    let image = place.path("a.qcow2");
    run("qemu-io", [OsStr::new("-c"), OsStr::new("write -P 9 0 6M"), image.as_os_str()]);
    assert_eq!(place.json("disk snapshot list a.qcow2 --json")[0]["name"], "before");
    place.ok("disk convert a.qcow2 old.raw -O raw -l before");
    assert!(fs::read(place.path("old.raw")).unwrap() == fs::read(place.path("disk.raw")).unwrap());
    place.ok("disk snapshot apply a.qcow2 before");
    place.qemu_img("compare -q -f raw -F qcow2 @disk.raw @a.qcow2");
    place.ok("disk snapshot delete a.qcow2 before");
    place.qemu_img("check -q @a.qcow2");
    place.fails("disk snapshot apply a.qcow2 before", 1);
    place.fails("disk snapshot list disk.raw", 3);
}

#[test]
fn an_encrypted_disk_opens_with_its_passphrase_alone() {
    need!("qemu-img");
    let place = Place::new();
    let cheap = "-o version=1 -o iterations=1000";
    place.ok(&format!("disk encrypt disk.raw a.luks --new-passphrase-file key {cheap}"));
    assert_eq!(place.json("disk info a.luks --json")["encrypted"], true);
    place.ok("disk compare disk.raw a.luks --passphrase-file key");
    fs::write(place.path("wrong"), "mumble").unwrap();
    let errors = place.fails("disk checksum a.luks --passphrase-file wrong", 1);
    assert!(errors.contains("passphrase"), "{errors}");
    let errors = place.fails("disk checksum a.luks", 2);
    assert!(errors.contains("--passphrase-file"), "{errors}");
    place.ok("disk decrypt a.luks back.raw -O raw --passphrase-file key");
    assert!(fs::read(place.path("back.raw")).unwrap() == fs::read(place.path("disk.raw")).unwrap());
    place.fails("disk decrypt disk.raw b.raw -O raw", 2);
}

/// A server, which ends with the test.
struct Serving {
    child: Child,
    uri: String,
}

impl Serving {
    fn new(place: &Place, line: &str) -> Self {
        let mut child = place.command(line).stdout(Stdio::piped()).spawn().unwrap();
        let mut first = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
        let uri = first.trim_end().rsplit(' ').next().unwrap().replace("socket=", "socket=./");
        Self { child, uri }
    }

    fn end(mut self) {
        let pid = i32::try_from(self.child.id()).unwrap();
        run("kill", ["-INT", &pid.to_string()]);
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // It has ended where the test went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn other_programs_use_an_image_that_is_served() {
    need!("nbdcopy", "qemu-io", "qemu-img");
    let place = Place::new();
    place.ok("disk convert disk.raw a.vdi -O vdi");
    let socket = place.path("s").display().to_string();
    let serving = Serving::new(&place, &format!("disk serve a.vdi --socket {socket} --write"));
    let uri = serving.uri.replace("socket=./", "socket=");
    place.fails("disk checksum a.vdi", 3);
    run("nbdcopy", [uri.as_str(), place.path("copy.raw").to_str().unwrap()]);
    assert!(fs::read(place.path("copy.raw")).unwrap() == fs::read(place.path("disk.raw")).unwrap());
    run("qemu-io", ["-f", "raw", "-c", "write -P 5 3M 64k", "-c", "flush", uri.as_str()]);
    serving.end();
    assert!(!place.path("s").exists());
    let mut expected = fs::read(place.path("disk.raw")).unwrap();
    expected[3 << 20..][..65536].fill(5);
    fs::write(place.path("expected.raw"), expected).unwrap();
    place.qemu_img("compare -q -f raw -F vdi @expected.raw @a.vdi");
    place.qemu_img("check -q @a.vdi");
}

#[test]
fn a_copy_that_is_interrupted_leaves_nothing_or_goes_on() {
    let place = Place::new();
    let interrupted = |line: &str| {
        let mut child = place.command(line).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(700));
        run("kill", ["-INT", &child.id().to_string()]);
        assert!(!child.wait().unwrap().success());
        let names = fs::read_dir(place.folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let left = names.filter(|name| name.to_str().unwrap().starts_with("a.raw"));
        left.map(|name| name.into_string().unwrap()).collect::<Vec<_>>()
    };
    let left = interrupted("disk convert disk.raw a.raw -O raw --rate-limit 100K");
    assert!(left.is_empty(), "{left:?}");
    let left = interrupted("disk convert disk.raw a.raw -O raw --rate-limit 100K --resume");
    assert!(!left.is_empty() && !left.contains(&"a.raw".to_owned()), "{left:?}");
    place.ok("disk convert disk.raw a.raw -O raw --resume --verify");
    assert!(fs::read(place.path("a.raw")).unwrap() == fs::read(place.path("disk.raw")).unwrap());

    // The other snapshot of the same files is another source.
    fs::remove_file(place.path("a.raw")).unwrap();
    place.ok("disk convert disk.raw s.qcow2 -O qcow2");
    place.qemu_img("snapshot -c one @s.qcow2");
    place.qemu_img("snapshot -c two @s.qcow2");
    let left = interrupted("disk convert s.qcow2 a.raw -O raw --snapshot one --rate-limit 100K --resume");
    assert!(!left.is_empty() && !left.contains(&"a.raw".to_owned()), "{left:?}");
    place.fails("disk convert s.qcow2 a.raw -O raw --snapshot two --resume", 1);
    place.ok("disk convert s.qcow2 a.raw -O raw --snapshot one --resume");
    assert!(fs::read(place.path("a.raw")).unwrap() == fs::read(place.path("disk.raw")).unwrap());
}

#[test]
fn the_table_of_formats_is_the_one_in_the_docs() {
    let place = Place::new();
    let table = place.ok("disk formats");
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/formats/README.md");
    let page = fs::read_to_string(page).unwrap();
    assert!(
        page.contains(&table),
        "docs/formats/README.md must hold what `vmwright disk formats` prints:\n{table}"
    );
    let json = place.json("disk formats --json");
    assert_eq!(json["qcow2"]["snapshots"], "done");
    assert!(json["raw"]["snapshots"]["refused"].is_string());
}

/// A loop device over a file, gone when dropped.
struct Loop(String);

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = output("losetup", ["-d", &self.0]);
    }
}

#[test]
fn a_block_device_is_written_in_place_and_read_back() {
    need!("qemu-img", "losetup");
    let place = Place::new();
    fs::File::create(place.path("medium")).unwrap().set_len(8 << 20).unwrap();
    let answer = output("losetup", ["-f".as_ref(), "--show".as_ref(), place.path("medium").as_os_str()]);
    if !answer.status.success() {
        skip!("there is no loop device to be had");
    }
    let device = Loop(String::from_utf8(answer.stdout).unwrap().trim().to_owned());
    let Loop(name) = &device;
    place.ok("disk convert disk.raw disk.qcow2 -O qcow2");
    assert!(place.fails(&format!("disk convert disk.qcow2 {name} -O raw"), 3).contains("--force"));
    let how = place.output(&format!("disk convert disk.qcow2 {name} -O raw --force"));
    assert!(how.status.success());
    assert!(String::from_utf8_lossy(&how.stderr).contains("not all or nothing"));
    assert!(
        place.fails(&format!("disk convert disk.qcow2 {name} -O qcow2 --force"), 3).contains("not supported")
    );
    place.ok(&format!("disk convert {name} back.qcow2 -O qcow2"));
    let written = fs::read(place.path("medium")).unwrap();
    let disk = fs::read(place.path("disk.raw")).unwrap();
    assert!(written[..disk.len()] == disk[..], "the device differs");
    run(
        "qemu-img",
        ["compare".as_ref(), place.path("disk.raw").as_os_str(), place.path("back.qcow2").as_os_str()],
    );
    place.ok("disk create large.raw 9M -O raw");
    assert!(place.fails(&format!("disk convert large.raw {name} -O raw --force"), 1).contains("smaller"));
}
