//! Checks and repairs against those of qemu-img, on sound and on damaged images.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

mod support;

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use support::{Folder, qemu_img, qemu_io};
use vmwright_disk::{Disk, HostFile};
use vmwright_image::{CheckReport, Format, FormatChoice, Repair, check};
use vmwright_judges::{need, output};

const QCOW2: FormatChoice = FormatChoice::Exact(Format::Qcow2);

fn ours(path: &Path, repair: Repair) -> vmwright_image::Result<CheckReport> {
    let file: Arc<dyn Disk> = Arc::new(HostFile::open(path, repair == Repair::Nothing).unwrap());
    let report = check(file.clone(), QCOW2, repair)?;
    if repair != Repair::Nothing {
        file.flush().unwrap();
    }
    Ok(report)
}

/// What qemu-img reports; `None` where it gives up.
fn qemu(path: &Path, repair: &[&str]) -> Option<Value> {
    let mut args = vec!["check", "-f", "qcow2", "--output=json"];
    args.extend(repair);
    args.push(path.to_str().unwrap());
    let output = output("qemu-img", args);
    let mut value: Value = serde_json::from_slice(&output.stdout).ok()?;
    let object = value.as_object_mut().unwrap();
    object.remove("filename");
    object.remove("format");
    Some(value)
}

/// The bytes of an image, to be damaged.
struct Bytes(Vec<u8>);

impl Bytes {
    fn number(&self, at: u64) -> u64 {
        u64::from_be_bytes(self.0[at as usize..][..8].try_into().unwrap())
    }

    fn put(&mut self, at: u64, value: u64) {
        self.0[at as usize..][..8].copy_from_slice(&value.to_be_bytes());
    }

    fn cluster_size(&self) -> u64 {
        1 << self.0[23]
    }

    fn l1(&self) -> u64 {
        self.number(40)
    }

    fn reftable(&self) -> u64 {
        self.number(48)
    }

    fn block(&self) -> u64 {
        self.number(self.reftable())
    }

    fn l2(&self) -> u64 {
        self.number(self.l1()) & 0x00ff_ffff_ffff_fe00
    }

    /// Where the first L2 entry is that `like` accepts.
    fn entry(&self, like: impl Fn(u64) -> bool) -> u64 {
        let extended = self.0[79] & 16 != 0;
        let step = if extended { 16 } else { 8 };
        let mut entries = (self.l2()..self.l2() + self.cluster_size()).step_by(step);
        entries.find(|at| like(self.number(*at))).unwrap()
    }

    fn data(&self) -> u64 {
        self.entry(|raw| raw >> 62 & 1 == 0 && raw & !(1 << 63) > 1 && raw & 1 == 0)
    }

    fn zero(&self) -> u64 {
        self.entry(|raw| raw & 1 == 1 && raw >> 62 & 1 == 0)
    }

    fn compressed(&self) -> u64 {
        self.entry(|raw| raw >> 62 & 1 == 1)
    }

    fn count(&mut self, cluster: u64, change: i32) {
        // 16 bits each.
        let at = (self.block() + cluster * 2) as usize;
        let count = u16::from_be_bytes(self.0[at..at + 2].try_into().unwrap());
        let count = (i32::from(count) + change) as u16;
        self.0[at..at + 2].copy_from_slice(&count.to_be_bytes());
    }

    fn directory(&self) -> u64 {
        // The extension behind the header, wherever it is.
        let at = self.0.windows(4).position(|four| four == 0x2385_2875u32.to_be_bytes()).unwrap();
        self.number(at as u64 + 24)
    }
}

type Damage = (&'static str, fn(&mut Bytes));

const DAMAGES: &[Damage] = &[
    ("nothing", |_| {}),
    ("the dirty bit", |b| b.0[79] |= 1),
    ("the corrupt bit", |b| b.0[79] |= 2),
    ("a count too high", |b| {
        let cluster = (b.number(b.data()) & !(1 << 63)) / b.cluster_size();
        b.count(cluster, 1);
    }),
    ("a count too low", |b| {
        let cluster = (b.number(b.data()) & !(1 << 63)) / b.cluster_size();
        b.count(cluster, -1);
    }),
    ("a table's count too low", |b| b.count(b.l2() / b.cluster_size(), -1)),
    ("the header's count too high", |b| b.count(0, 3)),
    ("the L1 table's count too low", |b| b.count(b.l1() / b.cluster_size(), -1)),
    ("no refcount block", |b| b.put(b.reftable(), 0)),
    ("a refcount block that is not aligned past the end", |b| b.put(b.reftable(), 0x7fff_fe00)),
    ("a refcount block past the end", |b| b.put(b.reftable(), 1 << 40)),
    ("a refcount block at the end", |b| {
        b.put(b.reftable() + 8, (b.0.len() as u64).next_multiple_of(b.cluster_size()))
    }),
    ("a refcount table entry with reserved bits", |b| b.put(b.reftable(), b.block() | 1)),
    ("a refcount block in two places", |b| b.put(b.reftable() + 8, b.block())),
    ("a refcount block over the L1 table", |b| b.put(b.reftable() + 8, b.l1())),
    ("a refcount table over the L1 table", |b| b.put(48, b.l1())),
    ("a leaked tail", |b| {
        let clusters = (b.0.len() as u64).div_ceil(b.cluster_size());
        b.0.resize(((clusters + 3) * b.cluster_size()) as usize, 0);
        b.count(clusters, 1);
        b.count(clusters + 2, 1);
    }),
    ("an unused tail", |b| b.0.resize(b.0.len() + 1_000_000, 0)),
    ("no flag in an L2 entry", |b| b.put(b.data(), b.number(b.data()) & !(1 << 63))),
    ("no flag in an L1 entry", |b| b.put(b.l1(), b.number(b.l1()) & !(1 << 63))),
    ("a flag on a compressed cluster", |b| b.put(b.compressed(), b.number(b.compressed()) | 1 << 63)),
    ("an L2 entry past the end", |b| b.put(b.data(), 1 << 63 | 1 << 40)),
    ("a compressed cluster past the end", |b| b.put(b.compressed(), 1 << 62 | 1 << 40)),
    ("an L2 entry that is not aligned", |b| b.put(b.data(), b.number(b.data()) + 512)),
    ("a zero entry that is not aligned", |b| b.put(b.zero(), b.number(b.data()) + 513)),
    ("a zero entry over data", |b| b.put(b.zero(), b.number(b.data()) | 1)),
    ("an L2 entry with reserved bits", |b| b.put(b.data(), b.number(b.data()) | 1 << 57)),
    ("an L1 entry past the end", |b| b.put(b.l1(), 1 << 63 | 1 << 40)),
    ("an L1 entry that is not aligned", |b| b.put(b.l1(), b.number(b.l1()) + 512)),
    ("an L1 entry with reserved bits", |b| b.put(b.l1(), b.number(b.l1()) | 1 << 60)),
    ("two clusters in one place", |b| {
        let at = b.data();
        let next =
            b.entry(|raw| raw >> 62 & 1 == 0 && raw & !(1 << 63) > 1 && raw & 1 == 0 && raw != b.number(at));
        b.put(next, b.number(at));
    }),
    ("data over the header", |b| b.put(b.data(), 1 << 63)),
    ("data over a refcount block", |b| b.put(b.data(), 1 << 63 | b.block())),
    ("data over the L1 table", |b| b.put(b.data(), b.l1())),
    ("data over its own L2 table", |b| b.put(b.data(), 1 << 63 | b.l2())),
    ("an L1 entry at the refcount table", |b| b.put(b.l1(), 1 << 63 | b.reftable())),
    ("a file that lacks its end", |b| b.0.truncate(b.0.len() - 2 * 65536)),
];

const SNAPSHOT_DAMAGES: &[Damage] = &[
    ("a snapshot's L1 table that is not aligned", |b| b.put(b.number(64), b.number(b.number(64)) + 512)),
    ("a snapshot's L1 table past the end", |b| b.put(b.number(64), 1 << 40)),
    ("a snapshot's L1 table with another's place", |b| b.put(b.number(64), b.l1())),
    ("a snapshot's L1 table that is too large", |b| {
        let at = b.number(64) as usize + 8;
        b.0[at] = 0x7f;
    }),
    ("a snapshot's entry past the end", |b| {
        let table = b.number(b.number(64));
        b.put(table, 1 << 40);
    }),
    ("a snapshot table that is not aligned", |b| b.put(64, b.number(64) + 512)),
    ("more snapshots than there are", |b| b.0[63] += 1),
    ("no snapshots any more", |b| b.0[63] = 0),
    ("flags after a snapshot", |b| {
        let at = b.data();
        b.put(at, b.number(at) | 1 << 63);
        b.put(b.l1(), b.number(b.l1()) ^ 1 << 63);
    }),
];

const BITMAP_DAMAGES: &[Damage] = &[
    ("a bitmap's table that is not aligned", |b| b.put(b.directory(), b.number(b.directory()) + 512)),
    ("a bitmap's table past the end", |b| b.put(b.directory(), 1 << 40)),
    ("a bitmap's entry past the end", |b| b.put(b.number(b.directory()), 1 << 40)),
    ("a bitmap's entry with reserved bits", |b| b.put(b.number(b.directory()), 4)),
    ("a bitmap's entry that is not aligned", |b| {
        let table = b.number(b.directory());
        b.put(table, b.l2() + 512);
    }),
    ("a bitmap's data over an L2 table", |b| {
        let table = b.number(b.directory());
        b.put(table, b.l2());
    }),
    ("bitmaps that are out of date", |b| b.0[95] = 0),
];

const EXTENDED_DAMAGES: &[Damage] = &[
    ("a part both allocated and zero", |b| {
        let at = b.data();
        b.put(at + 8, b.number(at + 8) | 1 << 32);
    }),
    ("allocated parts without a cluster", |b| {
        let at = b.entry(|raw| raw == 0);
        b.put(at + 8, 1);
    }),
    ("zero parts that are not aligned", |b| {
        let at = b.entry(|raw| raw == 0);
        b.put(at, b.number(b.data()) + 512);
        b.put(at + 8, 0xff << 32);
    }),
    ("data that is not aligned", |b| b.put(b.data(), b.number(b.data()) + 512)),
    ("a compressed cluster with parts", |b| b.put(b.compressed() + 8, 1)),
];

/// An image with data, zeros and compressed clusters.
fn sample(folder: &Folder, options: &str) -> std::path::PathBuf {
    let (raw, path) = (folder.path("raw"), folder.path("sample"));
    let mut bytes = vec![0; 4 << 20];
    bytes[1_200_000..1_500_000].fill(7);
    std::fs::write(&raw, bytes).unwrap();
    qemu_img(&format!("convert -c -f raw -O qcow2 -o {options} {{}} {{}}"), &[&raw, &path]);
    qemu_io(
        &path,
        "qcow2",
        &["write -P 1 0 300k", "write -P 2 600k 70k", "write -P 3 500k 64k", "write -z 2M 128k"],
    );
    path
}

/// Compares with qemu-img what is found, and what is left after a repair by either.
fn compare(sound: &Path, damages: &[Damage]) {
    compare_repairs(sound, damages, &[("leaks", Repair::Leaks), ("all", Repair::All)]);
}

fn compare_repairs(sound: &Path, damages: &[Damage], repairs: &[(&str, Repair)]) {
    let folder = Folder::new();
    let (a, b) = (folder.path("a"), folder.path("b"));
    let mut wrong = Vec::new();
    for (name, damage) in damages {
        let mut bytes = Bytes(std::fs::read(sound).unwrap());
        damage(&mut bytes);
        std::fs::write(&a, &bytes.0).unwrap();
        let theirs = qemu(&a, &[]);
        let report = ours(&a, Repair::Nothing);
        assert!(std::fs::read(&a).unwrap() == bytes.0, "{name}: a check changed the image");
        if let Some(theirs) = theirs {
            let found = report.as_ref().ok().map(|report| serde_json::to_value(report).unwrap());
            if found.as_ref() != Some(&theirs) {
                wrong.push(format!("{name}: {report:?}\n    qemu-img: {theirs}"));
            }
        }
        for &(how, repair) in repairs {
            std::fs::write(&a, &bytes.0).unwrap();
            std::fs::write(&b, &bytes.0).unwrap();
            qemu(&a, &["-r", how]);
            let report = ours(&b, repair);
            let (theirs, ours) = (qemu(&a, &[]), qemu(&b, &[]));
            let left = |value: &Option<Value>, what: &str| {
                value.as_ref().map_or(u64::MAX, |value| value[what].as_u64().unwrap_or(0))
            };
            for what in ["corruptions", "leaks", "check-errors"] {
                if left(&ours, what) > left(&theirs, what) {
                    wrong.push(format!(
                        "{name} -r {how}: {report:?}\n    left: {ours:?}\n    by qemu-img: {theirs:?}"
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn damages_are_found_and_repaired_as_qemu_img_does() {
    need!("qemu-img", "qemu-io");
    let folder = Folder::new();
    let path = sample(&folder, "cluster_size=64k");
    compare(&path, DAMAGES);
}

#[test]
fn damaged_snapshots_are_found_and_repaired_as_qemu_img_does() {
    need!("qemu-img", "qemu-io");
    let folder = Folder::new();
    let path = sample(&folder, "cluster_size=64k");
    qemu_img("snapshot -c first {}", &[&path]);
    qemu_io(&path, "qcow2", &["write -P 5 100k 300k"]);
    qemu_img("snapshot -c second {}", &[&path]);
    compare(&path, &DAMAGES[..1]);
    compare(&path, SNAPSHOT_DAMAGES);
}

#[test]
fn damaged_bitmaps_are_found_and_repaired_as_qemu_img_does() {
    need!("qemu-img", "qemu-io");
    let folder = Folder::new();
    let path = sample(&folder, "cluster_size=64k");
    qemu_img("bitmap --add {} first", &[&path]);
    qemu_io(&path, "qcow2", &["write -P 5 100k 300k"]);
    compare(&path, &DAMAGES[..1]);
    // Giving space back never throws bitmaps away, as qemu-img does whenever it opens an image with a damaged one.
    compare_repairs(&path, BITMAP_DAMAGES, &[("all", Repair::All)]);
}

#[test]
fn damaged_extended_entries_are_found_and_repaired_as_qemu_img_does() {
    need!("qemu-img", "qemu-io");
    let folder = Folder::new();
    let path = sample(&folder, "cluster_size=64k,extended_l2=on");
    qemu_io(&path, "qcow2", &["write -P 5 3000k 5k"]);
    compare(&path, &DAMAGES[..5]);
    compare(&path, EXTENDED_DAMAGES);
}

#[test]
fn damages_of_an_image_with_a_data_file_are_found_and_repaired_as_qemu_img_does() {
    need!("qemu-img", "qemu-io");
    let folder = Folder::new();
    let (path, data) = (folder.path("sample"), folder.path("data"));
    let options = format!("cluster_size=64k,data_file={}", data.display());
    qemu_img(&format!("create -q -f qcow2 -o {options} {{}} 4M"), &[&path]);
    qemu_io(&path, "qcow2", &["write -P 1 0 300k", "write -P 2 600k 70k", "write -z 2M 128k"]);
    let damages: Vec<Damage> = DAMAGES
        .iter()
        .filter(|(name, _)| {
            ["nothing", "the dirty bit", "no flag", "a leaked", "the header"]
                .iter()
                .any(|a| name.starts_with(a))
        })
        .copied()
        .collect();
    assert!(damages.len() >= 6);
    compare(&path, &damages);
}

#[test]
fn a_check_of_a_large_sparse_image_is_instant_and_small() {
    need!("qemu-img", "qemu-io");
    let folder = Folder::new();
    let path = folder.path("image");
    qemu_img("create -q -f qcow2 {} 1T", &[&path]);
    qemu_io(&path, "qcow2", &["write 0 64k", "write 500G 64k", "write 1023G 64k"]);
    // Far behind everything, as after a preallocation: nothing there is looked at.
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1 << 42).unwrap();
    let start = std::time::Instant::now();
    let report = ours(&path, Repair::Nothing).unwrap();
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(report.allocated_clusters, Some(3));
    assert!(start.elapsed().as_secs() < 2, "{:?}", start.elapsed());
}
