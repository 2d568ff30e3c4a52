//! What clients are told about exports.
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

use std::sync::Arc;

use vmwright_disk::{HostFile, MemDisk, Result};
use vmwright_image::Format;
use vmwright_judges::{need, output, run};
use vmwright_server::nbd::{Config, Export, Listen, MetaContext, StatusRange};

use crate::support::{Folder, Running, new_image, sample};

#[test]
fn nbdinfo_lists_every_export_with_its_description() {
    need!("nbdinfo");
    let folder = Folder::new();
    let first = Export::new("first", Arc::new(MemDisk::new(1 << 20))).described("a disk in memory");
    let second =
        Export::new("the second", Arc::new(MemDisk::new(4097))).writable().preferring_blocks_of(2 << 20);
    let server = Running::start(Config::new(vec![first, second], Listen::Unix(folder.path("nbd.sock"))));
    let text = run("nbdinfo", ["--list", "--json", &server.uri("")]);
    for expected in [
        "\"protocol\": \"newstyle-fixed\"",
        "\"export-name\": \"first\"",
        "\"description\": \"a disk in memory\"",
        "\"export-name\": \"the second\"",
        "\"export-size\": 4097",
        "\"base:allocation\"",
        "\"is_read_only\": true",
        "\"is_read_only\": false",
        "\"can_multi_conn\": true",
        "\"can_fast_zero\": true",
        "\"block_size_minimum\": 1",
        "\"block_size_preferred\": 65536",
        "\"block_size_preferred\": 2097152",
        "\"block_size_maximum\": 33554432",
    ] {
        assert!(text.contains(expected), "{expected} in {text}");
    }
    assert!(!output("nbdinfo", [server.uri("third")]).status.success());
    server.stop().unwrap();
}

#[test]
fn nbdinfo_maps_an_image_as_it_maps_the_server_of_qemu() {
    need!("nbdinfo", "qemu-nbd", "qemu-img");
    for format in [Format::Raw, Format::Qcow2] {
        let folder = Folder::new();
        sample(&folder.path("source"), 5 << 20);
        let image = folder.path("image");
        drop(new_image(&image, format, 5 << 20));
        let name = format.qemu_name();
        let (source, target) = (folder.text("source"), folder.text("image"));
        run("qemu-img", ["convert", "-n", "-f", "raw", "-O", name, &source, &target]);
        let disk = crate::support::open_image(&image, format, true);
        let server = Running::one(&folder, Export::new("", disk));
        let ours = run("nbdinfo", ["--map", &server.uri("")]);
        server.stop().unwrap();
        // One that serves a single client on its standard input and output, so to say: nbdinfo starts it.
        let theirs = run("nbdinfo", ["--map", "--", "[", "qemu-nbd", "-r", "-f", name, &target, "]"]);
        assert_eq!(ours, theirs, "{format:?}");
        assert!(ours.contains("hole,zero") && ours.contains("data"), "{ours}");
    }
}

/// What a bitmap of an image would say: every second 64 KiB changed.
struct Bitmap;

impl MetaContext for Bitmap {
    fn name(&self) -> &str {
        "qemu:dirty-bitmap:backup"
    }

    fn status_at(&self, offset: u64) -> Result<StatusRange> {
        Ok(StatusRange { len: 65536 - offset % 65536, flags: (offset / 65536 % 2) as u32 })
    }
}

#[test]
fn clients_see_what_is_known_of_the_disk_besides() {
    need!("nbdinfo", "qemu-img");
    let folder = Folder::new();
    sample(&folder.path("source"), 256 << 10);
    let disk = Arc::new(HostFile::open(&folder.path("source"), true).unwrap());
    let export = Export::new("disk", disk).showing_depth().with_context(Arc::new(Bitmap));
    let server = Running::one(&folder, export);
    let map = run("nbdinfo", ["--map=qemu:dirty-bitmap:backup", &server.uri("disk")]);
    let flags: Vec<&str> = map.lines().map(|line| line.split_whitespace().nth(2).unwrap()).collect();
    assert_eq!(flags, ["0", "1", "0", "1"], "{map}");
    let depth = run("nbdinfo", ["--map=qemu:allocation-depth", &server.uri("disk")]);
    assert!(depth.contains("local"), "{depth}");
    // QEMU's own client reads the bitmap as if it were the map.
    let options = format!(
        "driver=nbd,export=disk,server.type=unix,server.path={},x-dirty-bitmap=qemu:dirty-bitmap:backup",
        server.socket().display()
    );
    let map = run("qemu-img", ["map", "--output=json", "--image-opts", &options]);
    assert_eq!(map.matches("\"data\": false").count(), 2, "{map}");
    server.stop().unwrap();
}
