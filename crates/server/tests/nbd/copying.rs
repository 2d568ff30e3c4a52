//! Whole disks in and out.
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

use vmwright_image::Format;
use vmwright_judges::{need, run};
use vmwright_server::nbd::{Config, Export, Listen};

use crate::support::{Folder, Running, new_image, open_image, qemu_img, sample};

const SIZE: u64 = 9 << 20;

#[test]
fn nbdcopy_reads_what_the_image_holds_and_writes_what_it_is_given() {
    need!("nbdcopy", "qemu-img");
    for format in [Format::Raw, Format::Qcow2] {
        let folder = Folder::new();
        let expected = sample(&folder.path("source"), SIZE);
        let disk = new_image(&folder.path("image"), format, SIZE);
        let server = Running::one(&folder, Export::new("disk", disk).writable());
        run("nbdcopy", ["--flush", &folder.text("source"), &server.uri("disk")]);
        run("nbdcopy", [&server.uri("disk"), &folder.text("copy")]);
        assert!(std::fs::read(folder.path("copy")).unwrap() == expected, "{format:?}");
        let report = server.stop().unwrap();
        assert_eq!(report.broken, 0);
        assert!(report.bytes_written > 0 && report.bytes_read > 0, "{report:?}");
        let name = format.qemu_name();
        qemu_img(&format!("compare -f raw -F {name} {} {}", folder.text("source"), folder.text("image")));
        if format == Format::Qcow2 {
            qemu_img(&format!("check -q -f qcow2 {}", folder.text("image")));
        }
    }
}

#[test]
fn qemu_img_converts_compares_and_maps_over_tcp() {
    need!("qemu-img");
    let folder = Folder::new();
    sample(&folder.path("source"), SIZE);
    let disk = new_image(&folder.path("image"), Format::Qcow2, SIZE);
    let listen = Listen::Tcp("127.0.0.1:0".parse().unwrap());
    let server = Running::start(Config::new(vec![Export::new("disk", disk).writable()], listen));
    let (source, uri) = (folder.text("source"), server.uri("disk"));
    qemu_img(&format!("convert -n -f raw -O raw {source} {uri}"));
    qemu_img(&format!("compare -f raw -F raw {source} {uri}"));
    qemu_img(&format!("convert -f raw -O qcow2 {uri} {}", folder.text("copy")));
    qemu_img(&format!("compare -f raw -F qcow2 {source} {}", folder.text("copy")));
    let map = qemu_img(&format!("map --output=json -f raw {uri}"));
    assert!(map.contains("\"zero\": true, \"data\": false"), "{map}");
    assert!(map.contains("\"zero\": false, \"data\": true"), "{map}");
    server.stop().unwrap();
    qemu_img(&format!("compare -f raw -F qcow2 {source} {}", folder.text("image")));
    qemu_img(&format!("check -q -f qcow2 {}", folder.text("image")));
    drop(open_image(&folder.path("image"), Format::Qcow2, true));
}
