//! The verbs on disks, as a user calls them, judged by other people's tools.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on panics")]

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use vmwright_judges::{need, run};

/// A folder with a small Linux on a partitioned qcow2, and a state folder.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        for directory in ["etc", "usr/bin", "var", "srv", "bin"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        fs::write(root.join("etc/os-release"), "ID=debian\nPRETTY_NAME=\"Test Linux\"\n").unwrap();
        fs::write(root.join("etc/hostname"), "before\n").unwrap();
        fs::write(root.join("etc/fstab"), "/dev/sda1 / ext4 defaults 0 1\n").unwrap();
        let raw = folder.path().join("disk.raw");
        fs::File::create(&raw).unwrap().set_len(24 << 20).unwrap();
        let layout = folder.path().join("layout");
        fs::write(&layout, "label: gpt\nstart=1MiB, size=22MiB, type=linux\n").unwrap();
        let script = format!("sfdisk -q {} < {}", raw.display(), layout.display());
        run("sh", ["-c", &format!("PATH=$PATH:/sbin:/usr/sbin {script}")]);
        let args = ["-q", "-t", "ext4", "-E", "offset=1048576", "-d"].map(OsStr::new);
        run("mke2fs", args.into_iter().chain([root.as_os_str(), raw.as_os_str(), OsStr::new("22M")]));
        let qcow2 = folder.path().join("disk.qcow2");
        run(
            "qemu-img",
            ["convert", "-O", "qcow2"]
                .map(OsStr::new)
                .into_iter()
                .chain([raw.as_os_str(), qcow2.as_os_str()]),
        );
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn vmwright<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmwright"));
        command.args(args).current_dir(self.folder.path()).env("VMWRIGHT_HOME", self.path("home"));
        command.output().unwrap()
    }

    /// Runs a command line that must succeed, and answers what it printed.
    fn ok(&self, line: &str) -> String {
        let output = self.vmwright(line.split(' '));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "vmwright {line}: {}\n{errors}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command line that must fail with an exit code, and answers its error.
    fn fails(&self, line: &str, code: i32) -> String {
        let output = self.vmwright(line.split(' '));
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "vmwright {line}: {errors}");
        errors
    }

    /// Lets qemu-img and e2fsck judge the disk.
    fn judge(&self) {
        let (qcow2, raw, part) = (self.path("disk.qcow2"), self.path("judged.raw"), self.path("judged.part"));
        run("qemu-img", [OsStr::new("check"), qcow2.as_os_str()]);
        run(
            "qemu-img",
            ["convert", "-O", "raw"].map(OsStr::new).into_iter().chain([qcow2.as_os_str(), raw.as_os_str()]),
        );
        let bytes = fs::read(&raw).unwrap();
        fs::write(&part, &bytes[1 << 20..23 << 20]).unwrap();
        run("e2fsck", [OsStr::new("-fn"), part.as_os_str()]);
    }
}

macro_rules! place {
    () => {{
        need!("mke2fs", "e2fsck", "sfdisk", "qemu-img");
        Place::new()
    }};
}

#[test]
fn every_edit_is_seen_by_the_next_command_and_leaves_a_sound_disk() {
    let place = place!();
    fs::write(place.path("local.txt"), "from here").unwrap();
    place.ok("guest write disk.qcow2 /etc/hostname --text after");
    place.ok("guest edit disk.qcow2 /etc/fstab -e s,/dev/sda1,/dev/vda1,");
    place.ok("guest mkdir disk.qcow2 /srv/a/b -p");
    place.ok("guest cp local.txt disk.qcow2:/srv/a/b/file");
    place.ok("guest chmod disk.qcow2 640 /srv/a/b/file");
    place.ok("guest chown disk.qcow2 12:34 /srv/a/b/file");
    place.ok("guest ln disk.qcow2 /srv/a/b/file /srv/hard");
    place.ok("guest ln disk.qcow2 -s a/b/file /srv/soft");
    place.ok("guest mv disk.qcow2 /srv/a/b /srv/moved");
    place.judge();
    assert_eq!(place.ok("guest cat disk.qcow2 /etc/hostname"), "after\n");
    assert_eq!(place.ok("guest cat disk.qcow2 /etc/fstab"), "/dev/vda1 / ext4 defaults 0 1\n");
    assert_eq!(place.ok("guest cat disk.qcow2 /srv/hard"), "from here");
    let listed: serde_json::Value =
        serde_json::from_str(&place.ok("guest stat disk.qcow2 /srv/moved/file --json")).unwrap();
    assert_eq!((&listed["mode"], &listed["uid"], &listed["gid"]), (&0o640.into(), &12.into(), &34.into()));
    assert_eq!(place.ok("guest ls disk.qcow2 /srv"), "a\nhard\nmoved\nsoft\n");
    place.ok("guest cp disk.qcow2:/srv/moved .");
    assert_eq!(fs::read_to_string(place.path("moved/file")).unwrap(), "from here");
    place.ok("guest rm disk.qcow2 -r /srv/moved /srv/soft");
    place.judge();
}

#[test]
fn a_dry_run_changes_no_byte() {
    let place = place!();
    let before = fs::read(place.path("disk.qcow2")).unwrap();
    let plan = place.ok("guest write disk.qcow2 /etc/hostname --text after --dry-run");
    assert!(plan.starts_with("would write "), "{plan}");
    assert_eq!(fs::read(place.path("disk.qcow2")).unwrap(), before);
    let converted = place.ok("disk convert disk.qcow2 copy.raw -O raw --dry-run");
    assert!(converted.starts_with("would write copy.raw"), "{converted}");
    assert!(!place.path("copy.raw").exists());
}

/// Lets a commit die after its redo is durable: the limit on the size of files lets everything pass but the growth of
/// the image.
fn interrupt_an_edit(place: &Place, options: &str, redo_folder: &str) {
    fs::write(place.path("big"), vec![7; 300_000]).unwrap();
    let blocks = fs::metadata(place.path("disk.qcow2")).unwrap().len().div_ceil(512);
    let verb = format!("guest write disk.qcow2 /srv/big --from big{options}");
    let script = format!("ulimit -c 0; ulimit -f {blocks}; exec {} {verb}", env!("CARGO_BIN_EXE_vmwright"));
    let mut command = Command::new("sh");
    command.args(["-c", &script]).current_dir(place.folder.path()).env("VMWRIGHT_HOME", place.path("home"));
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    let redo = fs::read_dir(place.path(redo_folder))
        .unwrap()
        .flatten()
        .find(|entry| entry.path().extension().is_some_and(|extension| extension == "vmwright-redo"));
    assert!(redo.is_some(), "{}: {errors}", output.status);
}

#[test]
fn a_dry_run_leaves_an_interrupted_edit_to_others() {
    let place = place!();
    interrupt_an_edit(&place, "", ".");
    let before = fs::read(place.path("disk.qcow2")).unwrap();
    let refused = place.fails("guest write disk.qcow2 /etc/hostname --text after --dry-run", 3);
    assert!(refused.contains("disk recover"), "{refused}");
    assert_eq!(fs::read(place.path("disk.qcow2")).unwrap(), before);
    assert!(place.path("disk.qcow2.vmwright-redo").exists());
    assert_eq!(place.ok("guest cat disk.qcow2 /srv/big").len(), 300_000);
    place.ok("guest write disk.qcow2 /etc/hostname --text after");
    place.judge();
    assert_eq!(place.ok("guest cat disk.qcow2 /srv/big").len(), 300_000);
}

#[test]
fn an_edit_that_changes_nothing_does_not_touch_the_image() {
    let place = place!();
    let disk = place.path("disk.qcow2");
    let long_ago = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
    fs::File::options().write(true).open(&disk).unwrap().set_modified(long_ago).unwrap();
    let before = fs::read(&disk).unwrap();
    for more in ["", " --dry-run", " --ordered"] {
        place.ok(&format!("guest edit disk.qcow2 /etc/hostname -e s/absent/present/{more}"));
        assert_eq!(fs::read(&disk).unwrap(), before, "{more}");
        assert_eq!(fs::metadata(&disk).unwrap().modified().unwrap(), long_ago, "{more}");
    }
}

#[test]
fn an_interrupted_edit_in_a_folder_for_redo_files_shows_through_it() {
    let place = place!();
    fs::create_dir(place.path("redo")).unwrap();
    fs::hard_link(place.path("disk.qcow2"), place.path("other")).unwrap();
    interrupt_an_edit(&place, " --redo-dir redo", "redo");
    assert_eq!(place.ok("guest cat disk.qcow2 /srv/big --redo-dir redo").len(), 300_000);
}

#[test]
fn what_an_image_is_shows_through_an_interrupted_edit() {
    let place = place!();
    interrupt_an_edit(&place, "", ".");
    place.ok("disk info disk.qcow2");
    fs::write(place.path("disk.qcow2.vmwright-redo"), "VMWREDO1 and nothing that makes sense").unwrap();
    place.fails("disk info disk.qcow2", 4);
    place.fails("disk create -b disk.qcow2 overlay.qcow2", 4);
}

#[test]
fn an_overlay_cannot_replace_its_own_base() {
    let place = place!();
    let before = fs::read(place.path("disk.qcow2")).unwrap();
    place.fails("disk create -b disk.qcow2 disk.qcow2 --force", 3);
    assert_eq!(fs::read(place.path("disk.qcow2")).unwrap(), before);
}

#[test]
fn an_inspection_names_the_system_and_its_volumes() {
    let place = place!();
    let text = place.ok("guest inspect disk.qcow2");
    assert!(text.contains("Test Linux") && text.contains("/dev/sda1"), "{text}");
    let json: serde_json::Value = serde_json::from_str(&place.ok("guest inspect disk.qcow2 --json")).unwrap();
    assert_eq!(json["os"]["id"], "debian");
    assert_eq!(json["hostname"], "before");
}

#[test]
fn a_converted_disk_compares_equal() {
    let place = place!();
    for (name, args) in
        [("copy.raw", "-O raw"), ("small.qcow2", "-O qcow2 -c"), ("old.qcow2", "-O qcow2 -o compat=0.10")]
    {
        place.ok(&format!("disk convert disk.qcow2 {name} {args}"));
        run(
            "qemu-img",
            [OsStr::new("compare"), place.path("disk.qcow2").as_os_str(), place.path(name).as_os_str()],
        );
    }
    let refused = place.fails("disk convert disk.qcow2 copy.raw -O raw", 3);
    assert!(refused.contains("--force"), "{refused}");
}

#[test]
fn what_is_made_is_what_other_tools_see() {
    let place = place!();
    place.ok("disk create -b disk.qcow2 overlay.qcow2");
    let args = ["info", "--output=json"].map(OsStr::new).into_iter();
    let theirs = run("qemu-img", args.chain([place.path("overlay.qcow2").as_os_str()]));
    let theirs: serde_json::Value = serde_json::from_str(&theirs).unwrap();
    let ours: serde_json::Value = serde_json::from_str(&place.ok("disk info overlay.qcow2 --json")).unwrap();
    for field in ["virtual-size", "format", "cluster-size", "backing-filename", "backing-filename-format"] {
        assert_eq!(ours[field], theirs[field], "{field}");
    }
    assert_eq!(place.ok("guest cat overlay.qcow2 /etc/hostname"), "before\n");
}

#[test]
fn exit_codes_tell_refusal_damage_and_misuse_apart() {
    let place = place!();
    place.fails("guest cat disk.qcow2 /absent", 1);
    place.fails("guest cat absent.qcow2 /etc/hostname", 1);
    place.fails("guest cat disk.qcow2", 2);
    place.fails("disk create new.qcow2", 2);
    place.fails("disk create disk.qcow2 1G", 3);
    let mut damaged = fs::read(place.path("disk.qcow2")).unwrap();
    damaged[40..48].copy_from_slice(&u64::MAX.to_be_bytes());
    fs::write(place.path("damaged.qcow2"), damaged).unwrap();
    place.fails("guest cat damaged.qcow2 /etc/hostname", 4);
}

#[test]
fn a_disk_in_use_is_refused_and_read_only_when_asked() {
    let place = place!();
    need!("qemu-io");
    let mut qemu = Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", "sleep 20000"])
        .arg(place.path("disk.qcow2"))
        .spawn()
        .unwrap();
    let refused = (0..100).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(50));
        place.vmwright(["guest", "write", "disk.qcow2", "/etc/motd", "--text", "no"]).status.code() == Some(3)
    });
    assert!(refused, "the disk that QEMU writes to was changed");
    place.fails("guest cat disk.qcow2 /etc/hostname", 3);
    assert_eq!(place.ok("guest cat -U disk.qcow2 /etc/hostname"), "before\n");
    qemu.kill().unwrap();
    qemu.wait().unwrap();
    place.ok("guest cat disk.qcow2 /etc/hostname");
}

#[test]
fn a_backing_file_elsewhere_needs_permission() {
    let place = place!();
    fs::create_dir(place.path("elsewhere")).unwrap();
    fs::rename(place.path("disk.qcow2"), place.path("elsewhere/base.qcow2")).unwrap();
    fs::create_dir(place.path("here")).unwrap();
    place.ok("disk create -b ../elsewhere/base.qcow2 here/overlay.qcow2");
    place.fails("guest cat here/overlay.qcow2 /etc/hostname", 3);
    assert_eq!(place.ok("guest cat --backing-in elsewhere here/overlay.qcow2 /etc/hostname"), "before\n");
}

#[test]
fn a_raw_disk_that_claims_to_be_an_overlay_shows_nothing_of_its_neighbours() {
    let place = place!();
    place.ok("disk create -b disk.qcow2 claim.qcow2");
    fs::rename(place.path("claim.qcow2"), place.path("claim.raw")).unwrap();
    place.fails("guest cat claim.raw /etc/hostname", 3);
    place.fails("disk convert claim.raw copy.raw -O raw", 3);
    place.fails("vm create --disk claim.raw --name spy", 3);
    assert_eq!(place.ok("guest cat -f qcow2 claim.raw /etc/hostname"), "before\n");
}

#[test]
fn completions_know_the_verbs() {
    let output = Command::new(env!("CARGO_BIN_EXE_vmwright")).args(["completion", "bash"]).output().unwrap();
    assert!(String::from_utf8(output.stdout).unwrap().contains("reconcile"));
}

#[test]
fn every_verb_has_help() {
    for line in
        ["disk create", "disk convert", "guest edit", "guest cp", "run", "vm create", "vm exec", "doctor"]
    {
        let output = Command::new(env!("CARGO_BIN_EXE_vmwright"))
            .args(line.split(' '))
            .arg("--help")
            .output()
            .unwrap();
        assert!(output.status.success(), "{line}");
    }
}

#[test]
fn a_guest_is_edited_in_place_in_every_format() {
    let place = place!();
    let formats = [
        ("vmdk", "-O vmdk"),
        ("vmdk", "-O vmdk -o subformat=twoGbMaxExtentFlat"),
        ("vpc", "-O vhd"),
        ("vpc", "-O vhd -o subformat=fixed"),
        ("vhdx", "-O vhdx"),
        ("vdi", "-O vdi"),
        ("qcow2", "-O qcow2 -o extended_l2=on"),
        ("qcow2", "-O qcow2 -c --compression zstd"),
    ];
    for (index, (qemu, options)) in formats.into_iter().enumerate() {
        // The ending says which format it is, so that the parts of an image may be opened.
        let name = format!("copy{index}.{}", if qemu == "vpc" { "vhd" } else { qemu });
        place.ok(&format!("disk convert disk.qcow2 {name} {options}"));
        place.ok(&format!("guest write {name} /etc/hostname --text {name}"));
        place.ok(&format!("guest mkdir {name} /srv/new -p"));
        assert_eq!(place.ok(&format!("guest cat {name} /etc/hostname")), format!("{name}\n"), "{options}");
        let (image, raw) = (place.path(&name), place.path("judged.raw"));
        let args = ["convert", "-f", qemu, "-O", "raw"].map(OsStr::new);
        run("qemu-img", args.into_iter().chain([image.as_os_str(), raw.as_os_str()]));
        let bytes = fs::read(&raw).unwrap();
        let part = place.path("judged.part");
        fs::write(&part, &bytes[1 << 20..23 << 20]).unwrap();
        run("e2fsck", [OsStr::new("-fn"), part.as_os_str()]);
        assert!(
            run("debugfs", [OsStr::new("-R"), OsStr::new("cat /etc/hostname"), part.as_os_str()])
                .contains(&name)
        );
    }
}

#[test]
fn a_guest_on_an_encrypted_disk_is_edited_with_the_passphrase() {
    let place = place!();
    fs::write(place.path("key"), "open sesame").unwrap();
    place.ok("disk encrypt disk.qcow2 disk.luks --new-passphrase-file key -o version=1 -o iterations=1000");
    place.ok("guest write disk.luks /etc/hostname --text hidden --passphrase-file key");
    assert_eq!(place.ok("guest cat disk.luks /etc/hostname --passphrase-file key"), "hidden\n");
    place.fails("guest cat disk.luks /etc/hostname", 2);
    place.ok("disk decrypt disk.luks disk.qcow2 -O qcow2 --passphrase-file key --force");
    place.judge();
    assert_eq!(place.ok("guest cat disk.qcow2 /etc/hostname"), "hidden\n");
}
