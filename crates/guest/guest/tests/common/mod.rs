//! Disks made by recipe, with tools that are not this project's.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use vmwright_judges::{run, tool};

pub(crate) const ROOT_UUID: &str = "5e2f4a9c-1b77-4d0e-9a53-0c6d8e21f7b4";
pub(crate) const BOOT_UUID: &str = "0a1b2c3d-0000-4d0e-9a53-0c6d8e21f7b4";

/// A folder to build in.
pub(crate) struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes the files of a tree: a path that ends in a slash is a directory, a text after `->` is a link.
    pub(crate) fn tree(&self, name: &str, files: &[(&str, &str)]) -> PathBuf {
        let top = self.path(name);
        fs::create_dir_all(&top).unwrap();
        for (path, content) in files {
            let path_on_host = top.join(path.trim_start_matches('/'));
            if path.ends_with('/') {
                fs::create_dir_all(path_on_host).unwrap();
                continue;
            }
            fs::create_dir_all(path_on_host.parent().unwrap()).unwrap();
            match content.strip_prefix("-> ") {
                Some(target) => std::os::unix::fs::symlink(target, path_on_host).unwrap(),
                None => fs::write(path_on_host, content).unwrap(),
            }
        }
        top
    }

    /// Makes an ext4 volume of a tree.
    pub(crate) fn ext4(&self, name: &str, tree: &Path, mib: u64, args: &[&str]) -> PathBuf {
        let volume = self.path(name);
        fs::File::create(&volume).unwrap().set_len(mib << 20).unwrap();
        let common = ["-q", "-t", "ext4", "-E", "root_owner=0:0", "-d"].map(AsRef::as_ref);
        let args = args.iter().map(AsRef::as_ref);
        run("mke2fs", common.into_iter().chain([tree.as_os_str()]).chain(args).chain([volume.as_os_str()]));
        volume
    }

    /// Puts volumes one after the other onto a disk; each comes with the fields that `sfdisk` gets for it.
    pub(crate) fn disk(&self, name: &str, label: &str, volumes: &[(&str, &Path)]) -> PathBuf {
        let disk = self.path(name);
        let mut script = format!("label: {label}\n");
        let mut starts = Vec::new();
        let mut end = 1 << 20;
        for (fields, volume) in volumes {
            let len = fs::metadata(volume).unwrap().len();
            script += &format!("start={}, size={}, {fields}\n", end >> 9, len >> 9);
            starts.push(end);
            end += len;
        }
        let mut image = fs::File::create(&disk).unwrap();
        image.set_len(end + (1 << 20)).unwrap();
        feed("sfdisk", &["-q".as_ref(), disk.as_os_str()], &script);
        for ((_, volume), start) in volumes.iter().zip(starts) {
            image.seek(SeekFrom::Start(start)).unwrap();
            std::io::copy(&mut fs::File::open(volume).unwrap(), &mut image).unwrap();
        }
        disk
    }

    /// Converts a raw disk to qcow2.
    pub(crate) fn qcow2(&self, raw: &Path) -> PathBuf {
        let qcow2 = raw.with_extension("qcow2");
        let args = ["convert", "-f", "raw", "-O", "qcow2"].map(AsRef::as_ref);
        run("qemu-img", args.into_iter().chain([raw.as_os_str(), qcow2.as_os_str()]));
        qcow2
    }

    /// Cuts the volume that begins at `start` out of an image of any format.
    pub(crate) fn cut(&self, image: &Path, start: u64, len: u64) -> PathBuf {
        let raw = self.path("cut.raw");
        let args = ["convert", "-O", "raw"].map(AsRef::as_ref);
        run("qemu-img", args.into_iter().chain([image.as_os_str(), raw.as_os_str()]));
        let volume = self.path("cut.volume");
        let bytes = fs::read(&raw).unwrap();
        fs::write(&volume, &bytes[start as usize..(start + len) as usize]).unwrap();
        volume
    }
}

pub(crate) fn feed(program: &str, args: &[&std::ffi::OsStr], text: &str) {
    let mut child = Command::new(tool(program).unwrap());
    child.args(args).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut child = child.spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{program}: {text}");
}

/// What a small Debian would have.
pub(crate) fn system() -> Vec<(&'static str, &'static str)> {
    vec![
        ("/etc/os-release", "-> ../usr/lib/os-release"),
        (
            "/usr/lib/os-release",
            "ID=debian\nNAME=\"Debian GNU/Linux\"\nVERSION_ID=\"12\"\nVERSION_CODENAME=bookworm\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n",
        ),
        ("/etc/hostname", "box\n"),
        ("/etc/machine-id", "0123456789abcdef0123456789abcdef\n"),
        ("/etc/localtime", "-> /usr/share/zoneinfo/Europe/Berlin"),
        ("/etc/default/locale", "LANG=\"de_DE.UTF-8\"\n"),
        (
            "/etc/default/grub",
            "GRUB_CMDLINE_LINUX_DEFAULT=\"quiet splash\"\nGRUB_CMDLINE_LINUX=\"console=ttyS0\"\n",
        ),
        (
            "/etc/passwd",
            "root:x:0:0:root:/root:/bin/bash\nkim:x:1000:1000:Kim,,,:/home/kim:/bin/sh\nbroken\n",
        ),
        ("/etc/shadow", "root:!:19000:0:99999:7:::\nkim:$y$j9T$secret:19000:0:99999:7:::\n"),
        ("/etc/group", "root:x:0:\nsudo:x:27:kim,root\n"),
        ("/etc/network/interfaces", "auto lo\niface lo inet loopback\nauto eth0\niface eth0 inet dhcp\n"),
        ("/etc/cloud/cloud.cfg", "users:\n - default\n"),
        ("/etc/cloud/cloud.cfg.d/90_dpkg.cfg", "datasource_list: [ NoCloud, None ]\n"),
        ("/var/lib/cloud/seed/nocloud/user-data", "#cloud-config\n"),
        (
            "/var/lib/dpkg/status",
            "Package: bash\nStatus: install ok installed\nArchitecture: amd64\nVersion: 5.2-1\nDescription: x\n y\n\n",
        ),
        ("/lib", "-> usr/lib"),
        ("/bin", "-> usr/bin"),
        ("/sbin", "-> usr/sbin"),
        ("/usr/sbin/init", "-> /lib/systemd/systemd"),
        ("/usr/lib/systemd/systemd", "x"),
        ("/usr/bin/sh", "\u{7f}ELF\u{2}\u{1}\u{1}\0\0\0\0\0\0\0\0\0\u{3}\0\u{3e}\0"),
        ("/usr/lib/modules/6.1.0-9-amd64/modules.dep", "kernel/a.ko:\nkernel/b.ko: kernel/a.ko\n"),
        ("/boot/", ""),
        ("/srv/data/", ""),
        ("/home/kim/", ""),
    ]
}

/// The files of a `/boot` of its own.
pub(crate) fn boot() -> Vec<(&'static str, &'static str)> {
    vec![
        ("/vmlinuz-6.1.0-9-amd64", "kernel"),
        ("/initrd.img-6.1.0-9-amd64", "initrd"),
        (
            "/grub/grub.cfg",
            "menuentry 'Debian' {\n\tlinux /vmlinuz-6.1.0-9-amd64 root=UUID=x ro\n\tinitrd /initrd.img-6.1.0-9-amd64\n}\n",
        ),
    ]
}

pub(crate) const FSTAB: &str = "UUID=5e2f4a9c-1b77-4d0e-9a53-0c6d8e21f7b4 / ext4 errors=remount-ro 0 1\n\
    LABEL=boot /boot ext4 defaults 0 2\n\
    /dev/vda3 /srv/data ext4 defaults 0 2\n\
    UUID=1234-5678 /nowhere vfat nofail 0 0\n\
    PARTLABEL=esp /boot/efi vfat umask=0077 0 1\n\
    UUID=ffffffff-0000-0000-0000-000000000000 /missing ext4 defaults 0 2\n\
    proc /proc proc defaults 0 0\n";

/// A disk with a root, a `/boot`, data and an EFI system partition, as raw and as qcow2 image.
pub(crate) fn whole_disk(bench: &Bench) -> (PathBuf, PathBuf) {
    let mut files = system();
    files.push(("/etc/fstab", FSTAB));
    let root = bench.ext4("root.ext4", &bench.tree("root", &files), 24, &["-U", ROOT_UUID, "-L", "root"]);
    let boot = bench.ext4("boot.ext4", &bench.tree("boot", &boot()), 8, &["-U", BOOT_UUID, "-L", "boot"]);
    let data = bench.ext4("data.ext4", &bench.tree("data", &[("/note", "data\n")]), 8, &[]);
    let esp = bench.path("esp.vfat");
    fs::File::create(&esp).unwrap().set_len(8 << 20).unwrap();
    run("mkfs.vfat", ["-n".as_ref(), "ESP".as_ref(), "-i".as_ref(), "aabbccdd".as_ref(), esp.as_os_str()]);
    let disk = bench.disk(
        "disk.raw",
        "gpt",
        &[
            ("type=L, name=boot", &boot),
            ("type=L, name=root", &root),
            ("type=L", &data),
            ("type=U, name=esp", &esp),
        ],
    );
    let qcow2 = bench.qcow2(&disk);
    (disk, qcow2)
}
