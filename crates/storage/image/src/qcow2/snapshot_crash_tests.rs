//! What a crash may do while snapshots are made, applied and deleted.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

use std::sync::Arc;

use vmwright_disk::fault::{Fault, FaultDisk, Loss, VolatileDisk};
use vmwright_disk::{Disk, HostFile, MemDisk};
use vmwright_judges::{output, tool};

use crate::crash::is_torture;
use crate::{
    Compat, CreateOptions, Format, FormatChoice, Image, Layout, OpenOptions, Qcow2Options, Repair, create_on,
};

const QCOW2: FormatChoice = FormatChoice::Exact(Format::Qcow2);
const SIZE: u64 = 300_032;

fn open(file: Arc<dyn Disk>, snapshot: Option<&str>) -> crate::Result<Image> {
    let snapshot = snapshot.map(str::to_owned);
    Image::open(file, QCOW2, OpenOptions { snapshot, cache_bytes: 1, ..OpenOptions::default() })
}

fn content(image: &Image) -> Vec<u8> {
    let mut bytes = vec![0; image.len() as usize];
    image.read_at(&mut bytes, 0).unwrap();
    bytes
}

/// An image with a snapshot, changed since.
fn sample(compat: Compat) -> Vec<u8> {
    let file = Arc::new(MemDisk::new(0));
    let qcow2 = Qcow2Options { cluster_size: 4096, compat, ..Qcow2Options::default() };
    create_on(&(file.clone() as Arc<dyn Disk>), &CreateOptions::laid_out(Layout::Qcow2(qcow2), SIZE))
        .unwrap();
    let image = open(file.clone(), None).unwrap();
    image.write_at(&[1; 50_000], 0).unwrap();
    image.write_at(&[2; 9000], 200_000).unwrap();
    image.snapshots().unwrap().create("old").unwrap();
    image.write_at(&[3; 20_000], 30_000).unwrap();
    image.zero_at(200_000, 50_000).unwrap();
    image.flush().unwrap();
    file.to_bytes()
}

/// What the disk holds, and what each snapshot shows.
type States = (Vec<u8>, Vec<(String, Vec<u8>)>);

type Act = fn(&Image) -> crate::Result<()>;

/// Lets an act crash at every change: the disk and all snapshots are as before or as after.
fn crash_everywhere(compat: Compat, act: Act) {
    let bytes = sample(compat);
    let states = |bytes: Vec<u8>| {
        let file: Arc<dyn Disk> = Arc::new(MemDisk::from_bytes(bytes));
        let image = open(file.clone(), None).unwrap();
        let names = image.snapshots().unwrap().list().unwrap().into_iter().map(|one| one.name);
        let shown = names.map(|name| {
            let shown = content(&open(file.clone(), Some(&name)).unwrap());
            (name, shown)
        });
        (content(&image), shown.collect::<Vec<_>>())
    };
    let counter = Arc::new(FaultDisk::new(Arc::new(MemDisk::from_bytes(bytes.clone()))));
    act(&open(counter.clone(), None).unwrap()).unwrap();
    let after_all = MemDisk::from_bytes(bytes.clone());
    let after_all = Arc::new(after_all);
    act(&open(after_all.clone(), None).unwrap()).unwrap();
    let (before, after) = (states(bytes.clone()), states(after_all.to_bytes()));
    assert_ne!(before, after);
    let mut seen = [false; 2];
    for nth in 0..=counter.changes() {
        for fault in [Fault::Stop, Fault::Tear(700)] {
            if fault != Fault::Stop && nth % 3 != 0 && !is_torture() {
                continue;
            }
            let file = Arc::new(VolatileDisk::new(bytes.clone()));
            let image = open(Arc::new(FaultDisk::with_fault(file.clone(), nth, fault)), None).unwrap();
            let _ = act(&image);
            for (index, loss) in Loss::choices(file.pending(), if is_torture() { 30 } else { 2 }).enumerate()
            {
                let about = format!("{compat:?} {fault:?} at change {nth}, {loss:?}");
                let crashed = file.after_crash(loss);
                let now = states(crashed.clone());
                assert!(now == before || now == after, "{about}: neither as before nor as after");
                seen[usize::from(now == after)] = true;
                judge(&crashed, &now, &states, &about);
                if index == 0 && nth % 6 == 0 && fault == Fault::Stop {
                    qemu_repairs(&crashed, &now.0, &about);
                }
            }
        }
    }
    assert!(seen[0] && seen[1]);
}

/// What is in doubt after a crash is said to be so, repaired before the first change, and repaired by a repair.
fn judge(bytes: &[u8], now: &States, states: &dyn Fn(Vec<u8>) -> States, about: &str) {
    let file = Arc::new(MemDisk::from_bytes(bytes.to_vec()));
    let dynamic: Arc<dyn Disk> = file.clone();
    let image = open(dynamic.clone(), None).unwrap();
    let (report, info) = (image.check().unwrap(), image.info().unwrap());
    // Only the flags of entries may be wrong, and only where the dirty bit says so, or in version 2, which has none.
    let only_flags = report.findings.iter().all(|text| text.contains("exclusive") || text.contains("leaked"));
    assert!(report.is_safe() || only_flags, "{about}: {report:?}");
    let v2 = bytes[7] == 2;
    assert!(report.is_safe() || info.dirty_flag || v2, "{about}: {report:?}");
    drop(image);
    let report = crate::check(dynamic.clone(), QCOW2, Repair::All).unwrap();
    assert!(report.is_clean(), "{about}: {report:?}");
    assert!(states(file.to_bytes()) == *now, "{about}: a repair changed what is kept");

    // Without a repair: what is written goes where it should and nowhere else.
    let file = Arc::new(MemDisk::from_bytes(bytes.to_vec()));
    let image = open(file.clone(), None).unwrap();
    image.write_at(&[9; 100_000], 20_000).unwrap();
    image.flush().unwrap();
    let report = image.check().unwrap();
    assert!(
        report.is_safe()
            || v2 && report.findings.iter().all(|text| text.contains("exclusive") || text.contains("leaked")),
        "{about}: {report:?}"
    );
    let mut expected = now.clone();
    expected.0[20_000..120_000].fill(9);
    assert!(states(file.to_bytes()) == expected, "{about}: writing changed what is kept");
}

fn qemu_repairs(bytes: &[u8], active: &[u8], about: &str) {
    if tool("qemu-img").is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let raw = folder.path().join("raw");
    HostFile::create(&path, bytes.len() as u64).unwrap().write_at(bytes, 0).unwrap();
    let name = path.to_str().unwrap();
    let output = |args: &[&str]| output("qemu-img", args);
    assert!(output(&["check", "-q", "-r", "all", name]).status.success(), "{about}");
    assert!(output(&["check", "-q", name]).status.success(), "{about}");
    assert!(output(&["convert", "-O", "raw", name, raw.to_str().unwrap()]).status.success(), "{about}");
    let raw = HostFile::open(&raw, true).unwrap();
    let mut bytes = vec![0; raw.len() as usize];
    raw.read_at(&mut bytes, 0).unwrap();
    assert!(bytes == active, "{about}");
}

#[test]
fn a_crash_while_a_snapshot_is_made_loses_nothing() {
    for compat in [Compat::V1_1, Compat::V0_10] {
        crash_everywhere(compat, |image| image.snapshots()?.create("new").map(|_| ()));
    }
}

#[test]
fn a_crash_while_a_snapshot_is_applied_leaves_the_old_disk_or_the_new() {
    for compat in [Compat::V1_1, Compat::V0_10] {
        crash_everywhere(compat, |image| image.snapshots()?.apply("old"));
    }
}

#[test]
fn a_crash_while_a_snapshot_is_deleted_loses_nothing_else() {
    for compat in [Compat::V1_1, Compat::V0_10] {
        crash_everywhere(compat, |image| image.snapshots()?.delete("old"));
    }
}
