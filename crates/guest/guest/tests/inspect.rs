//! What is found out about guests.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on panics")]

mod common;

use std::path::PathBuf;

use common::{Bench, system, whole_disk};
use vmwright_guest::{Guest, Inspection, OpenOptions, Password};
use vmwright_judges::{need, output, skip};

fn inspect(image: &std::path::Path) -> Inspection {
    Guest::open(&[image], &OpenOptions::default()).unwrap().inspect()
}

#[test]
fn a_debian_is_described_down_to_its_users() {
    need!("mke2fs", "sfdisk", "qemu-img", "mkfs.vfat");
    let bench = Bench::new();
    let (_, qcow2) = whole_disk(&bench);
    let found = inspect(&qcow2);
    assert_eq!((found.os.id.as_str(), found.os.version_id.as_deref()), ("debian", Some("12")));
    assert_eq!(found.os.pretty_name, "Debian GNU/Linux 12 (bookworm)");
    assert_eq!(found.architecture.as_deref(), Some("x86_64"));
    assert_eq!(found.hostname.as_deref(), Some("box"));
    assert_eq!(found.machine_id.as_deref(), Some("0123456789abcdef0123456789abcdef"));
    assert_eq!(found.init.as_deref(), Some("systemd"));
    assert_eq!(found.timezone.as_deref(), Some("Europe/Berlin"));
    assert_eq!(found.locale.as_deref(), Some("de_DE.UTF-8"));
    assert_eq!(found.disks[0].table.as_deref(), Some("gpt"));
    assert_eq!(found.fstab.len(), 7);
    let mounts: Vec<_> =
        found.mounts.iter().map(|mount| (mount.target.as_str(), mount.device.as_str())).collect();
    assert_eq!(mounts, [("/", "/dev/sda2"), ("/boot", "/dev/sda1"), ("/srv/data", "/dev/sda3")]);
    let kernel = &found.kernels[0];
    assert_eq!(kernel.path.as_deref(), Some("/boot/vmlinuz-6.1.0-9-amd64"));
    assert_eq!(kernel.initramfs.as_deref(), Some("/boot/initrd.img-6.1.0-9-amd64"));
    assert_eq!((kernel.modules.as_deref(), kernel.module_count), (Some("/lib/modules/6.1.0-9-amd64"), 2));
    assert_eq!(found.boot.loaders[0].name, "grub2");
    assert_eq!(found.boot.entries[0].options, "root=UUID=x ro");
    assert_eq!(found.boot.command_line.as_deref(), Some("console=ttyS0 quiet splash"));
    assert_eq!(found.boot.efi_system_partition.as_deref(), Some("/dev/sda4"));
    assert_eq!(found.boot.firmware, ["uefi"]);
    assert_eq!(found.packages.manager.as_deref(), Some("dpkg"));
    assert_eq!((found.packages.installed.len(), found.packages.installed[0].version.as_str()), (1, "5.2-1"));
    let users: Vec<_> = found.users.iter().map(|user| (user.name.as_str(), user.password)).collect();
    assert_eq!(users, [("root", Password::Locked), ("kim", Password::Set)]);
    assert_eq!(found.groups[1].members, ["kim", "root"]);
    assert_eq!(found.network[0].manager, "ifupdown");
    assert!(found.network[0].interfaces[0].dhcp);
    let cloud_init = found.cloud_init.as_ref().unwrap();
    assert!(cloud_init.enabled);
    assert_eq!(cloud_init.datasources, ["NoCloud", "None"]);
    assert_eq!(cloud_init.seeds, ["/var/lib/cloud/seed/nocloud"]);
    let json = serde_json::to_string(&found).unwrap();
    assert!(!json.contains("secret"), "a hash must never be shown");
    assert_eq!(serde_json::from_str::<Inspection>(&json).unwrap(), found);
    // Scripts rely on these names: adding is fine, renaming is not.
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    for name in [
        "root",
        "os",
        "architecture",
        "hostname",
        "machine_id",
        "init",
        "timezone",
        "locale",
        "disks",
        "volumes",
        "fstab",
        "mounts",
        "kernels",
        "boot",
        "packages",
        "users",
        "groups",
        "network",
        "cloud_init",
        "problems",
    ] {
        assert!(value.get(name).is_some(), "{name}");
    }
    assert_eq!(value["volumes"][1]["content"]["type"], "ext4");
    assert_eq!(value["users"][0]["password"], "locked");
    assert_eq!(value["packages"]["installed"][0]["name"], "bash");
}

#[test]
fn an_alpine_is_recognised_by_its_own_files() {
    need!("mke2fs");
    let bench = Bench::new();
    let files = [
        ("/etc/os-release", "ID=alpine\nNAME=\"Alpine Linux\"\nVERSION_ID=3.20.0\n"),
        ("/etc/hostname", "# comment\nalp\n"),
        ("/lib/apk/db/installed", "P:musl\nV:1.2.5-r0\nA:aarch64\n\n"),
        ("/sbin/init", "-> /bin/busybox"),
        ("/sbin/openrc", "x"),
        ("/bin/busybox", "\u{7f}ELF\u{2}\u{1}\u{1}\0\0\0\0\0\0\0\0\0\u{3}\0"),
        ("/boot/vmlinuz-lts", "k"),
        ("/boot/initramfs-lts", "i"),
        (
            "/boot/extlinux.conf",
            "LABEL lts\n  LINUX vmlinuz-lts\n  INITRD initramfs-lts\n  APPEND root=UUID=x\n",
        ),
        ("/lib/modules/6.6.31-0-lts/modules.dep", "a:\n"),
    ];
    let found = inspect(&bench.ext4("alpine.ext4", &bench.tree("root", &files), 16, &[]));
    assert_eq!((found.os.pretty_name.as_str(), found.hostname.as_deref()), ("Alpine Linux", Some("alp")));
    assert_eq!(found.init.as_deref(), Some("openrc"));
    assert_eq!(found.packages.manager.as_deref(), Some("apk"));
    assert_eq!(found.kernels.len(), 1);
    assert_eq!(found.kernels[0].path.as_deref(), Some("/boot/vmlinuz-lts"));
    assert_eq!(found.kernels[0].initramfs.as_deref(), Some("/boot/initramfs-lts"));
    assert_eq!(found.boot.entries[0].kernel, "vmlinuz-lts");
}

#[test]
fn hostile_files_lead_to_no_more_than_an_empty_answer() {
    need!("mke2fs");
    let bench = Bench::new();
    let garbage = "\u{0}\u{1}[[[{{{:::\n- - - -\n=\n'\"\n".repeat(50);
    let mut files: Vec<(&str, &str)> = system()
        .into_iter()
        .map(|(path, content)| {
            let keep = path.ends_with('/') || content.starts_with("-> ") && path != "/etc/localtime";
            if keep { (path, content) } else { (path, garbage.as_str()) }
        })
        .collect();
    files.extend([
        ("/etc/netplan/x.yaml", garbage.as_str()),
        ("/etc/systemd/network/x.network", garbage.as_str()),
        ("/boot/grub/grub.cfg", garbage.as_str()),
        ("/etc/fstab", garbage.as_str()),
        ("/usr/sbin/openrc", "-> openrc"),
    ]);
    let found = inspect(&bench.ext4("garbage.ext4", &bench.tree("root", &files), 16, &[]));
    assert_eq!((found.os.id.as_str(), found.architecture, found.machine_id), ("", None, None));
    assert!(found.users.is_empty() && found.packages.installed.is_empty());
    assert!(found.problems.iter().any(|problem| problem.contains("/etc/netplan/x.yaml")));
}

/// A real Debian, where its tar file is here: as `mke2fs` makes a volume of it, against what `dpkg` says.
#[test]
fn a_real_debian_is_described_as_its_own_tools_describe_it() {
    need!("mke2fs", "tar", "dpkg-query");
    let default = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../target/cache/debian.tar");
    let tar = std::env::var_os("VMWRIGHT_DEBIAN_TAR").map_or(default, PathBuf::from);
    if !tar.is_file() {
        skip!("{} is not there", tar.display());
    }
    let bench = Bench::new();
    let tree = bench.tree("root", &[]);
    // What inspection looks at is enough; devices would need root.
    let args = ["-xf".as_ref(), tar.as_os_str(), "-C".as_ref(), tree.as_os_str()];
    let wanted = [
        "./etc",
        "./boot",
        "./usr/lib/os-release",
        "./usr/bin/dash",
        "./usr/bin/sh",
        "./bin",
        "./sbin",
        "./lib",
        "./usr/sbin/init",
        "./sbin/init",
        "./var/lib/dpkg/status",
        "./var/lib/dpkg/info/format",
    ];
    // Some names are links in one release and directories in another: what is absent is not missed.
    output("tar", args.into_iter().chain(["--no-same-owner".as_ref()]).chain(wanted.map(AsRef::as_ref)));
    let found = inspect(&bench.ext4("debian.ext4", &tree, 256, &[]));
    assert_eq!(found.os.id, "debian");
    assert_eq!(found.architecture.as_deref(), Some("x86_64"));
    let admin = format!("--admindir={}", tree.join("var/lib/dpkg").display());
    let judged = output(
        "dpkg-query",
        [admin.as_str(), "-W", "-f", "${db:Status-Status} ${Package} ${Version} ${Architecture}\n"],
    );
    let text = String::from_utf8_lossy(&judged.stdout);
    let mut judged: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("installed ")).collect();
    let mut ours: Vec<_> = found
        .packages
        .installed
        .iter()
        .map(|package| format!("{} {} {}", package.name, package.version, package.architecture))
        .collect();
    judged.sort_unstable();
    ours.sort_unstable();
    assert!(ours.len() > 50, "{text}");
    assert_eq!(ours, judged);
    let passwd = std::fs::read_to_string(tree.join("etc/passwd")).unwrap();
    assert_eq!(found.users.len(), passwd.lines().count());
    assert!(!found.kernels.is_empty() || !tree.join("boot").is_dir());
}
