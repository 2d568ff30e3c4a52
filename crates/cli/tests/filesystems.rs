//! The verbs on filesystems as wholes, as a user calls them, judged by e2fsprogs.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on panics")]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use vmwright_judges::{need, output, run};

/// A folder to work in.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    /// A folder with a raw image of 64 MiB that holds ext4 and a file.
    fn with_volume() -> Self {
        let place = Self::new();
        place.ok("fs make a.img --size 64M -L data -b 1K");
        place.ok("guest mkdir a.img /dir");
        fs::write(place.path("text"), "a secret that nobody else knows\n".repeat(4000)).unwrap();
        place.ok("guest cp text a.img:/dir/file");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn output(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmwright"));
        command.args(line.split(' ').map(|word| if word == "''" { "" } else { word }));
        command.current_dir(self.folder.path()).env("VMWRIGHT_HOME", self.path("home"));
        command.stdin(Stdio::null());
        command
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

    /// What dumpe2fs says of a volume that e2fsck finds sound.
    fn sound(&self, name: &str) -> String {
        let path = self.path(name);
        let output = output("e2fsck", ["-fn".as_ref(), path.as_os_str()]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        run("dumpe2fs", ["-h".as_ref(), path.as_os_str()])
    }

    /// The bytes of a partition, as a file of their own.
    fn cut_out(&self, image: &str, to: &str, start: usize, len: usize) {
        let bytes = fs::read(self.path(image)).unwrap();
        fs::write(self.path(to), &bytes[start..start + len]).unwrap();
    }
}

#[test]
fn filesystems_are_made_in_images_of_any_format() {
    need!("e2fsck", "dumpe2fs", "qemu-img");
    let place = Place::new();
    assert!(place.fails("fs make a.img", 2).contains("--size"));
    place.ok("fs make a.img --size 32M --dry-run");
    assert!(!place.path("a.img").exists());
    let errors = place.fails("fs make a.img --size 32M -o colour=red", 2);
    assert!(errors.contains("inode_ratio"), "{errors}");
    let errors = place.fails("fs make a.img --size 32M -b 512", 1);
    assert!(errors.contains("block"), "{errors}");
    assert!(!place.path("a.img").exists(), "an image that nothing came of is left");
    let uuid = "11112222-3333-4444-8555-666677778888";
    let made = place.json(&format!("fs make a.img --size 32M -t ext3 -L old --uuid {uuid} --json"));
    assert_eq!((&made["type"], &made["uuid"]), (&"ext3".into(), &uuid.into()));
    let text = place.sound("a.img");
    assert!(text.contains(uuid) && text.contains("Filesystem volume name:   old"), "{text}");
    let errors = place.fails("fs make a.img -t ext4", 3);
    assert!(errors.contains("ext3") && errors.contains("--replace"), "{errors}");
    place.ok("fs make a.img -t ext2 --replace -o features=^resize_inode");
    assert!(!place.sound("a.img").contains("has_journal"));
    fs::write(place.path("key"), "open sesame\n").unwrap();
    place.ok("fs make c.luks -O luks --size 20M --passphrase-file key -L hidden");
    assert_eq!(place.ok("fs label c.luks --passphrase-file key"), "hidden\n");
    place.ok("fs make b.qcow2 -O qcow2 --size 32M -o inodes=500");
    assert_eq!(place.json("disk info b.qcow2 --json")["format"], "qcow2");
    run(
        "qemu-img",
        [
            "convert".as_ref(),
            "-Oraw".as_ref(),
            place.path("b.qcow2").as_os_str(),
            place.path("b.raw").as_os_str(),
        ],
    );
    assert!(place.sound("b.raw").contains("Inode count:              5"));
}

#[test]
fn partitions_are_chosen_by_number_or_name_and_listed_where_many_could_be_meant() {
    need!("sfdisk", "e2fsck", "dumpe2fs");
    let place = Place::new();
    fs::File::create(place.path("disk.img")).unwrap().set_len(80 << 20).unwrap();
    let script = "label: gpt\nstart=2048, size=65536\nstart=67584, size=65536\n";
    fs::write(place.path("script"), script).unwrap();
    let mut sfdisk = Command::new(vmwright_judges::tool("sfdisk").unwrap());
    sfdisk.arg("-q").arg(place.path("disk.img")).stdin(fs::File::open(place.path("script")).unwrap());
    assert!(sfdisk.status().unwrap().success());
    let errors = place.fails("fs make disk.img", 2);
    assert!(errors.contains("/dev/sda1, /dev/sda2, with --part"), "{errors}");
    place.ok("fs make disk.img --part 1 -L first");
    assert_eq!(place.ok("fs label disk.img"), "first\n", "the only filesystem is meant");
    place.ok("fs make disk.img --part sda2 -L second -t ext2");
    let errors = place.fails("fs label disk.img", 2);
    assert!(errors.contains("/dev/sda1, /dev/sda2, with --part"), "{errors}");
    assert_eq!(place.ok("fs label disk.img --part LABEL=second"), "second\n");
    assert_eq!(place.json("fs info disk.img -p 2 --json")["volume"]["device"], "/dev/sda2");
    place.fails("fs info disk.img --part 3", 1);
    place.ok("fs resize disk.img -p 1 --size 20M");
    assert!(place.fails("fs resize disk.img -p 1 --size 40M", 3).contains("partition has only 32 MiB"));
    place.cut_out("disk.img", "one", 1 << 20, 32 << 20);
    place.cut_out("disk.img", "two", 33 << 20, 32 << 20);
    assert!(place.sound("one").contains("volume name:   first"));
    assert!(place.sound("two").contains("volume name:   second"));
    // A table with nothing known on it has no filesystem to work on.
    place.ok("disk create empty.img 10M -O raw");
    assert!(place.fails("fs info empty.img", 3).contains("nothing known"));
}

#[test]
fn labels_and_uuids_are_read_and_changed() {
    need!("e2fsck", "dumpe2fs");
    let place = Place::with_volume();
    assert_eq!(place.ok("fs label a.img"), "data\n");
    let before = fs::read(place.path("a.img")).unwrap();
    assert!(place.ok("fs label a.img other --dry-run").contains("would write"));
    assert!(place.ok("fs uuid a.img random --dry-run").contains("would write"));
    assert!(fs::read(place.path("a.img")).unwrap() == before);
    assert_eq!(place.ok("fs label a.img other"), "");
    assert!(place.sound("a.img").contains("volume name:   other"));
    place.fails("fs label a.img more-than-sixteen-bytes", 1);
    place.ok("fs label a.img ''");
    assert!(place.sound("a.img").contains("volume name:   <none>"));
    let old = place.ok("fs uuid a.img");
    let mut seen = vec![old.clone()];
    for new in ["random", "time", "random"] {
        let uuid = place.ok(&format!("fs uuid a.img {new}"));
        assert!(!seen.contains(&uuid));
        assert!(place.sound("a.img").contains(uuid.trim()));
        assert_eq!(uuid.as_bytes()[14], if new == "time" { b'1' } else { b'4' });
        seen.push(uuid);
    }
    assert_eq!(place.json("fs uuid a.img --json")["uuid"], seen[3].trim());
    place.fails("fs uuid a.img nonsense", 2);
    assert_eq!(place.ok("guest cat a.img /dir/file").len(), 4000 * 32);
}

#[test]
fn filesystems_shrink_and_grow_within_their_image() {
    need!("e2fsck", "dumpe2fs");
    let place = Place::with_volume();
    let before = place.json("fs info a.img --json");
    let minimum = before["minimum"].as_u64().unwrap();
    assert!(minimum < 32 << 20);
    let tried = place.ok("fs resize a.img --size min --dry-run");
    assert!(tried.contains("would go from 64 MiB"), "{tried}");
    let done = place.json("fs resize a.img --size min --json");
    assert_eq!(done["old_size"], 64 << 20);
    assert!(done["new_size"].as_u64().unwrap() < 32 << 20);
    place.sound("a.img");
    place.ok("fs resize a.img --size +10M");
    place.sound("a.img");
    assert!(place.ok("fs resize a.img").contains("to 64 MiB"));
    assert!(place.ok("fs resize a.img --size max").contains("already"));
    place.sound("a.img");
    place.fails("fs resize a.img --size 65M", 3);
    place.fails("fs resize a.img --size -65M", 2);
    assert_eq!(place.ok("guest cat a.img /dir/file").len(), 4000 * 32);
}

#[test]
fn settings_are_tuned() {
    need!("e2fsck", "dumpe2fs");
    let place = Place::with_volume();
    place.fails("fs tune a.img", 2);
    place.fails("fs tune a.img -r much", 2);
    place.ok("fs tune a.img -O ^orphan_file,^has_journal");
    assert!(!place.sound("a.img").contains("has_journal"));
    assert!(place.ok("fs tune a.img -O has_journal").contains("has_journal"));
    assert!(place.sound("a.img").contains("Journal inode:            8"));
    place.ok("fs tune a.img -r 1% -e remount-ro -c 30 -i 7 -o ^acl --name-hash tea");
    let text = place.sound("a.img");
    for line in [
        "Reserved block count:     655",
        "Errors behavior:          Remount read-only",
        "Maximum mount count:      30",
        "Check interval:           604800",
        "Default mount options:    user_xattr\n",
        "Default directory hash:   tea",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
}

#[test]
fn damage_is_found_and_answered_by_the_exit_code() {
    need!("debugfs", "e2fsck", "dumpe2fs");
    let place = Place::with_volume();
    assert!(place.ok("fs check a.img").contains("the filesystem is sound"));
    assert_eq!(place.json("fs check a.img --json")["clean"], true);
    run(
        "debugfs",
        [
            "-w".as_ref(),
            "-R".as_ref(),
            "sif /dir/file links_count 7".as_ref(),
            place.path("a.img").as_os_str(),
        ],
    );
    let before = fs::read(place.path("a.img")).unwrap();
    let output = place.output("fs check a.img");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(4), "{text}");
    assert!(text.contains("inode") && text.contains('7'), "{text}");
    let output = place.output("fs check a.img --json");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &report["clean"]), (Some(4), &false.into()));
    assert!(fs::read(place.path("a.img")).unwrap() == before, "looking changes nothing");
    place.ok("fs check a.img --repair --dry-run");
    assert!(fs::read(place.path("a.img")).unwrap() == before);
    assert!(place.ok("fs check a.img --repair").contains("repaired"));
    place.sound("a.img");
    assert_eq!(place.json("fs check a.img --json")["total"], 0);
    // Where not even a superblock is left, there is nothing to look at.
    fs::write(place.path("none.img"), vec![0; 1 << 20]).unwrap();
    place.fails("fs check none.img", 3);
    place.fails("fs check none.img -t ext4", 4);
}

#[test]
fn a_filesystem_without_its_superblock_is_checked_and_repaired() {
    need!("e2fsck", "dumpe2fs");
    let place = Place::with_volume();
    let whole = fs::read(place.path("a.img")).unwrap();
    let mut damaged = whole.clone();
    // The superblock and the block of descriptors behind it.
    damaged[..3072].fill(0);
    fs::write(place.path("a.img"), &damaged).unwrap();
    place.fails("fs check a.img", 3);
    let output = place.output("fs check a.img -t ext4");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(4), "{text}");
    assert!(text.contains("a copy of it was used instead"), "{text}");
    assert!(fs::read(place.path("a.img")).unwrap() == damaged, "looking changes nothing");
    assert!(place.ok("fs check a.img -t ext4 --repair").contains("repaired"));
    place.sound("a.img");
    assert!(place.ok("guest cat a.img /dir/file").starts_with("a secret"));
    // In the only partition of a disk.
    let mut disk = vec![0; (1 << 20) + whole.len()];
    disk[446 + 4] = 0x83;
    disk[446 + 8..446 + 12].copy_from_slice(&2048_u32.to_le_bytes());
    disk[446 + 12..446 + 16].copy_from_slice(&((whole.len() / 512) as u32).to_le_bytes());
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk[1 << 20..].copy_from_slice(&damaged);
    fs::write(place.path("disk.img"), &disk).unwrap();
    for part in ["", " --part 1"] {
        let output = place.output(&format!("fs check disk.img -t ext4{part}"));
        assert_eq!(output.status.code(), Some(4), "{}", String::from_utf8_lossy(&output.stderr));
    }
    place.ok("fs check disk.img -t ext4 --repair");
    place.cut_out("disk.img", "part.img", 1 << 20, whole.len());
    place.sound("part.img");
    // What was made into something else is not made ext4 again.
    damaged[..4].copy_from_slice(b"XFSB");
    fs::write(place.path("xfs.img"), &damaged).unwrap();
    place.fails("fs check xfs.img -t ext4 --repair", 3);
    assert!(fs::read(place.path("xfs.img")).unwrap() == damaged);
}

#[test]
fn free_space_is_given_back_or_zeroed() {
    need!("e2fsck", "dumpe2fs");
    let place = Place::with_volume();
    place.ok("guest rm a.img /dir/file");
    let holds_secret = || {
        let bytes = fs::read(place.path("a.img")).unwrap();
        bytes.windows(16).any(|window| window == b"secret that nobo")
    };
    let allocated = || fs::metadata(place.path("a.img")).unwrap().blocks() * 512;
    assert!(holds_secret());
    fs::copy(place.path("a.img"), place.path("copy")).unwrap();
    let dry = place.json("fs trim a.img --dry-run --json");
    assert!(holds_secret() && dry["bytes_treated"].as_u64().unwrap() >= 4000 * 32, "{dry}");
    let before = allocated();
    let freed = place.json("fs trim a.img --json");
    assert!(freed["bytes_free"].as_u64().unwrap() > 50 << 20, "{freed}");
    assert!(!holds_secret() && allocated() <= before - 100_000);
    place.sound("a.img");
    fs::copy(place.path("copy"), place.path("a.img")).unwrap();
    assert!(holds_secret());
    assert!(place.ok("fs trim a.img --zero").contains("overwritten with zeros"));
    assert!(!holds_secret());
    place.sound("a.img");
}

#[test]
fn inodes_and_paths_lead_to_one_another() {
    let place = Place::with_volume();
    place.ok("guest ln a.img /dir/file /second");
    let inode = place.ok("fs inode a.img /dir/file");
    assert_eq!(place.ok(&format!("fs path a.img {}", inode.trim())), "/second\n/dir/file\n");
    assert_eq!(place.ok("fs path a.img 2"), "/\n");
    assert!(place.fails("fs path a.img 999", 1).contains("no path"));
    place.fails("fs inode a.img /none", 1);
    let all = place.json("fs frag a.img --json");
    assert!(all["files"].as_u64().unwrap() >= 3 && all["score"].as_f64().unwrap() <= 30.0, "{all}");
    let one = place.json("fs frag a.img /dir/file --json");
    assert_eq!((&one[0]["blocks"], &one[0]["pieces"]), (&125.into(), &1.into()));
    assert_eq!(place.json("fs frag a.img / -R --json").as_array().unwrap().len(), 5);
    assert!(place.ok("fs undelete a.img").contains("nothing is left"));
    place.ok("guest rm a.img /second");
    place.ok("guest rm a.img /dir/file");
    let removed = place.json("fs undelete a.img --json");
    assert_eq!(removed[0]["inode"].to_string(), inode.trim());
}

#[test]
fn disks_are_made_of_directories_and_archives() {
    need!("e2fsck", "sfdisk", "tar");
    let place = Place::new();
    let top = place.path("top");
    fs::create_dir_all(top.join("etc")).unwrap();
    fs::write(top.join("etc/hostname"), "made\n").unwrap();
    fs::write(top.join("data"), vec![7; 3 << 20]).unwrap();
    run(
        "tar",
        ["-czf".as_ref(), place.path("top.tgz").as_os_str(), "-C".as_ref(), top.as_os_str(), ".".as_ref()],
    );
    let fixed = "--uuid 11111111-2222-3333-4444-555555555555";
    let make = |name: &str, rest: &str| {
        let mut command = place.command(&format!("disk make {name} {rest}"));
        let output = command.env("SOURCE_DATE_EPOCH", "1700000000").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    make("a.raw", &format!("--from top.tgz -O raw {fixed} --owner 0:0"));
    make("b.raw", &format!("--from top.tgz -O raw {fixed} --owner 0:0"));
    let bytes = fs::read(place.path("a.raw")).unwrap();
    assert!(bytes == fs::read(place.path("b.raw")).unwrap(), "equal sources make different disks");
    run("sfdisk", ["--verify".as_ref(), "-q".as_ref(), place.path("a.raw").as_os_str()]);
    run("e2fsck", ["-fn", &format!("{}?offset=1048576", place.path("a.raw").display())]);
    assert_eq!(place.ok("guest cat a.raw /etc/hostname"), "made\n");
    make("c.qcow2", "--from top --size 64M --partition none -L whole");
    assert_eq!(place.ok("fs label c.qcow2").trim(), "whole");
    assert!(place.fails("disk make c.qcow2 --from top", 3).contains("--force"));
    assert!(place.fails("disk make small.raw --from top --size 2M -O raw", 1).contains("small.raw"));
    assert!(!place.path("small.raw").exists());
    place.ok("fs make d.img --from top --size auto -t ext2");
    run("e2fsck", ["-fn".as_ref(), place.path("d.img").as_os_str()]);
    assert_eq!(place.ok("guest cat d.img /etc/hostname"), "made\n");
}
