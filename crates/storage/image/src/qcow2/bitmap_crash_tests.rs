//! What a crash may do to dirty bitmaps: one that does not say that it is out of date is right.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

use std::sync::Arc;

use vmwright_disk::fault::{Fault, FaultDisk, Loss, VolatileDisk};
use vmwright_disk::{Disk, HostFile, MemDisk};
use vmwright_judges::{output, tool};

use crate::crash::is_torture;
use crate::{
    BackingFile, BitmapInfo, CreateOptions, DirtyRun, Format, FormatChoice, Image, Layout, OpenOptions,
    Qcow2Options, create_on,
};

const QCOW2: FormatChoice = FormatChoice::Exact(Format::Qcow2);
const SIZE: u64 = 300_032;

fn open(file: Arc<dyn Disk>) -> Image {
    let options =
        OpenOptions { cache_bytes: 1, backing: Some(Arc::new(MemDisk::new(0))), ..OpenOptions::default() };
    Image::open(file, QCOW2, options).unwrap()
}

type Act = fn(&Image) -> crate::Result<()>;
type Bitmaps = Vec<(BitmapInfo, Option<Vec<DirtyRun>>)>;

/// All bitmaps with what is dirty, where they are up to date.
fn bitmaps(image: &Image) -> Bitmaps {
    let bitmaps = image.bitmaps().unwrap();
    let list = bitmaps.list().unwrap().into_iter();
    list.map(|info| {
        let dirty = bitmaps.dirty(&info.name).ok();
        assert_eq!(dirty.is_none(), info.flags.contains(&"in-use"));
        (info, dirty)
    })
    .collect()
}

/// An image, with a name of a backing file behind its header extensions, after an act.
fn sample(cluster_size: u32, before: Act) -> Vec<u8> {
    let file = Arc::new(MemDisk::new(0));
    let qcow2 = Qcow2Options { cluster_size, ..Qcow2Options::default() };
    let mut options = CreateOptions::laid_out(Layout::Qcow2(qcow2), SIZE);
    options.backing = Some(BackingFile { name: "base".to_owned(), format: Some("raw".to_owned()) });
    create_on(&(file.clone() as Arc<dyn Disk>), &options).unwrap();
    let image = open(file.clone());
    before(&image).unwrap();
    image.flush().unwrap();
    file.to_bytes()
}

/// Crashes at every change of an act and hands what is left to a judge.
fn crash_everywhere(bytes: &[u8], act: Act, judge: &mut dyn FnMut(&Image, &str)) {
    let counter = Arc::new(FaultDisk::new(Arc::new(MemDisk::from_bytes(bytes.to_vec()))));
    act(&open(counter.clone())).unwrap();
    for nth in 0..=counter.changes() {
        for fault in [Fault::Stop, Fault::Tear(700)] {
            let file = Arc::new(VolatileDisk::new(bytes.to_vec()));
            let _ = act(&open(Arc::new(FaultDisk::with_fault(file.clone(), nth, fault))));
            for (index, loss) in Loss::choices(file.pending(), if is_torture() { 30 } else { 2 }).enumerate()
            {
                let about = format!("{fault:?} at change {nth}, {loss:?}");
                let crashed = file.after_crash(loss);
                if index == 0 && nth % 8 == 0 && fault == Fault::Stop {
                    qemu_judges(&crashed, &about);
                }
                let image = open(Arc::new(MemDisk::from_bytes(crashed)));
                let report = image.check().unwrap();
                assert!(report.is_safe(), "{about}: {report:?}");
                assert_eq!(image.backing_file().unwrap().name, "base", "{about}");
                judge(&image, &about);
            }
        }
    }
}

fn qemu_judges(bytes: &[u8], about: &str) {
    if tool("qemu-img").is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    HostFile::create(&folder.path().join("base"), 0).unwrap();
    HostFile::create(&path, bytes.len() as u64).unwrap().write_at(bytes, 0).unwrap();
    let output = output("qemu-img", ["check".as_ref(), path.as_os_str()]);
    assert!(matches!(output.status.code(), Some(0 | 3)), "{about}: {output:?}");
}

/// Whether a bitmap of 512 bytes a bit knows of every sector that is not zeros.
fn knows_all(content: &[u8], dirty: &[DirtyRun]) -> bool {
    let used = content.chunks(512).enumerate().filter(|(_, sector)| sector.iter().any(|byte| *byte != 0));
    used.map(|(index, _)| index as u64 * 512)
        .all(|at| dirty.iter().any(|run| (run.start..run.start + run.length).contains(&at)))
}

#[test]
fn after_a_crash_a_bitmap_is_right_or_says_that_it_is_not() {
    let before: Act = |image| image.bitmaps()?.add("b", Some(512));
    let act: Act = |image| {
        image.write_at(&[1; 9000], 5000)?;
        image.write_at(&[2; 100], 200_000)?;
        image.flush()?;
        image.write_at(&[3; 9000], 5000)?;
        image.write_at(&[4; 5000], 100_000)?;
        image.flush()?;
        image.zero_at(5000, 2000)?;
        image.write_at(&[5; 40_000], 220_000)?;
        Ok(image.flush()?)
    };
    for cluster_size in [512, 4096] {
        let mut seen = [0; 2];
        crash_everywhere(&sample(cluster_size, before), act, &mut |image, about| {
            let mut content = vec![0; SIZE as usize];
            image.read_at(&mut content, 0).unwrap();
            let all = bitmaps(image);
            assert_eq!(all.len(), 1, "{about}");
            seen[usize::from(all[0].1.is_some())] += 1;
            if let Some(dirty) = &all[0].1 {
                assert!(knows_all(&content, dirty), "{about}: a change is missing");
            }
        });
        assert!(seen[0] > 10 && seen[1] > 10, "{seen:?}");
    }
}

#[test]
fn a_crash_while_bitmaps_are_changed_leaves_them_as_before_or_after() {
    let before: Act = |image| {
        image.bitmaps()?.add("first", Some(512))?;
        image.bitmaps()?.add("second", Some(4096))?;
        Ok(image.write_at(&[1; 9000], 5000)?)
    };
    let none: Act = |_| Ok(());
    let acts: [(&str, Act, Act); 7] = [
        ("add the first", none, |image| image.bitmaps()?.add("first", None)),
        (
            "remove the last",
            |image| image.bitmaps()?.add("first", None),
            |image| image.bitmaps()?.remove("first"),
        ),
        ("add", before, |image| image.bitmaps()?.add("third", None)),
        ("remove", before, |image| image.bitmaps()?.remove("first")),
        ("clear", before, |image| image.bitmaps()?.clear("first")),
        ("disable", before, |image| image.bitmaps()?.disable("first")),
        ("merge", before, |image| image.bitmaps()?.merge("first", "second")),
    ];
    for (name, before, act) in acts {
        for cluster_size in [1024, 4096] {
            let bytes = sample(cluster_size, before);
            let states = |bytes: &[u8]| bitmaps(&open(Arc::new(MemDisk::from_bytes(bytes.to_vec()))));
            let old = states(&bytes);
            let file = Arc::new(MemDisk::from_bytes(bytes.clone()));
            act(&open(file.clone())).unwrap();
            let new = states(&file.to_bytes());
            assert_ne!(old, new, "{name}");
            // Where the extension spans two sectors, nobody believes the bitmaps meanwhile.
            let spans = (0..bytes.len() - 4)
                .find(|at| bytes[*at..at + 4] == 0x2385_2875u32.to_be_bytes())
                .is_some_and(|at| (at + 8) / 512 != (at + 31) / 512);
            let mut seen = [0; 2];
            crash_everywhere(&bytes, act, &mut |image, about| {
                let now = bitmaps(image);
                seen[usize::from(now == new)] += 1;
                assert!(now == old || now == new || spans && now.is_empty(), "{name}, {about}: {now:?}");
            });
            assert!(seen[0] > 0 && seen[1] > 0, "{name}: {seen:?}");
        }
    }
}

#[test]
fn a_bitmap_that_could_not_be_stored_at_once_is_stored_whole_later() {
    // An entry of the table stands for 4 MiB.
    const LARGE: u64 = 17 << 20;
    let create = || {
        let file = Arc::new(MemDisk::new(0));
        let qcow2 = Qcow2Options { cluster_size: 1024, ..Qcow2Options::default() };
        let options = CreateOptions::laid_out(Layout::Qcow2(qcow2), LARGE);
        create_on(&(file.clone() as Arc<dyn Disk>), &options).unwrap();
        open(file.clone()).bitmaps().unwrap().add("b", Some(512)).unwrap();
        file
    };
    let (mut nth, mut failed) = (0, true);
    while failed {
        let file = create();
        let faulty = Arc::new(FaultDisk::new(file.clone()));
        let image = open(faulty.clone());
        for at in (0..LARGE).step_by(4 << 20) {
            image.write_at(&[1; 512], at).unwrap();
        }
        faulty.set_fault(faulty.changes() + nth, Fault::Fail);
        failed = image.flush().is_err();
        // After a failed flush of the file nothing may be written any more.
        let stored = image.flush().is_ok();
        let again = open(file.clone());
        match again.bitmaps().unwrap().dirty("b") {
            Ok(runs) => assert_eq!(runs.len(), 5, "change {nth}: {runs:?}"),
            Err(error) => assert!(!stored, "change {nth}: {error}"),
        }
        nth += 1;
    }
    assert!(nth > 10, "{nth}");
}
