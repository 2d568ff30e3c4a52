//! What must hold for any bytes taken as a volume. Fuzzing and property tests share it.
#![allow(clippy::unwrap_used, clippy::panic)]
#![allow(dead_code, reason = "each of those who share it needs a part")]

pub(crate) mod judge;
pub(crate) mod making;
pub(crate) mod samples;
pub(crate) mod steps;

use std::collections::{BTreeMap, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmwright_disk::MemDisk;
use vmwright_ext4::{CheckOptions, ErrorKind, Ext4, Options, Report, check};
use vmwright_vfs::conformance::Op;
use vmwright_vfs::{FileSystem, FileType, InodeNumber, Result, Timestamp};

use judge::{Judge, Verdict};

/// The most paths that are walked: damage can lead one directory into another.
const PATHS: usize = 4000;

/// Opens bytes as a volume and walks it, content looked at in a few places.
///
/// Answers each path with what is known of it. Fails unless errors say that the volume is damaged or not
/// supported, answers agree with each other, and nothing was written.
pub(crate) fn walk(bytes: &[u8]) -> Result<BTreeMap<Vec<u8>, String>, ErrorKind> {
    let disk = Arc::new(MemDisk::from_bytes(bytes.to_vec()));
    let outcome = Ext4::open(disk.clone(), Options::default())
        .map_err(vmwright_vfs::Error::from)
        .and_then(|volume| paths(&volume));
    assert!(disk.to_bytes() == bytes, "reading changed the volume");
    outcome.map_err(|error| {
        let kind = error.kind();
        assert!(matches!(kind, ErrorKind::Corrupt | ErrorKind::Unsupported), "{kind:?}: {error}");
        assert_named(&error);
        kind
    })
}

fn paths(fs: &dyn FileSystem) -> Result<BTreeMap<Vec<u8>, String>> {
    let (mut paths, mut entered) = (BTreeMap::new(), HashSet::new());
    let mut waiting = vec![(Vec::new(), fs.root())];
    fs.statfs()?;
    while let Some((path, inode)) = waiting.pop() {
        let metadata = fs.metadata(inode)?;
        let mut known = format!("{metadata:?}");
        for name in fs.xattr_names(inode)? {
            known += &format!(" {name:?}={:?}", fs.xattr(inode, &name)?);
        }
        match metadata.file_type {
            FileType::Directory if entered.insert(inode) => {
                let mut names = Vec::new();
                fs.read_dir(inode, &mut |entry| {
                    names.push(entry);
                    if names.len() < PATHS { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                })?;
                for entry in names {
                    waiting.push(([&path[..], b"/", &entry.name].concat(), entry.inode));
                }
            }
            FileType::Regular => sample(fs, inode, metadata.size)?,
            FileType::Symlink => drop(fs.read_link(inode)?),
            _ => {}
        }
        paths.insert(path, known);
        if paths.len() > PATHS {
            break;
        }
    }
    Ok(paths)
}

/// Reads at the beginning, around the middle and at the end, and asks where that is kept.
fn sample(fs: &dyn FileSystem, inode: InodeNumber, size: u64) -> Result<()> {
    let mut buf = vec![0; 5000];
    for at in [0, size / 2, size.saturating_sub(5000), size] {
        let len = fs.read_at(inode, &mut buf, at)?;
        assert_eq!(len as u64, size.saturating_sub(at).min(5000));
        if at < size {
            let extent = fs.extent_at(inode, at)?;
            assert!(extent.start == at && extent.len > 0 && extent.end() <= size, "{extent:?} of {size}");
        }
    }
    Ok(())
}

/// Opens bytes as a volume for writing and applies operations; whatever they answer, the program goes on.
pub(crate) fn change(bytes: &[u8], words: &[[u32; 4]]) {
    let disk = Arc::new(MemDisk::from_bytes(bytes.to_vec()));
    let Ok(mut volume) = Ext4::open(disk, Options::writable()) else { return };
    volume.set_now(Timestamp { seconds: 1_700_000_000, nanoseconds: 0 });
    for words in words {
        let _ = Op::from_words(*words, 100_000).apply(&mut volume);
    }
    let _ = volume.sync();
}

/// The longest that anything may take with a volume of some megabytes, slow machines and builds included.
const LONGEST: Duration = Duration::from_secs(60);

/// What is corrupt has a place.
pub(crate) fn assert_named(error: &vmwright_vfs::Error) {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    let places = ["superblock", "block group ", "block ", "inode "];
    let is_named = places.iter().any(|place| text.contains(place));
    assert!(error.kind() != ErrorKind::Corrupt || is_named, "nobody knows where: {text}");
}

/// Checks without changing anything; `None` where there is nothing that could be checked.
pub(crate) fn report(bytes: &[u8]) -> Option<Report> {
    let disk = Arc::new(MemDisk::from_bytes(bytes.to_vec()));
    let outcome = check(disk.clone(), &CheckOptions::default());
    assert!(disk.to_bytes() == bytes, "a check changed the volume");
    match outcome {
        Ok(report) => Some(report),
        Err(error) => {
            let kind = error.kind();
            assert!(matches!(kind, ErrorKind::Corrupt | ErrorKind::Unsupported), "{kind:?}: {error}");
            assert_named(&error.into());
            None
        }
    }
}

/// Everything that must hold for bytes taken as a volume, and for what becomes of them.
pub(crate) fn hold(bytes: &[u8], words: &[[u32; 4]], judge: Option<&Judge>) {
    let started = Instant::now();
    let report = report(bytes);
    let walked = walk(bytes);
    let clean = report.as_ref().is_some_and(|report| report.clean);
    assert!(!clean || walked.is_ok(), "clean, but: {walked:?}");
    let before = judge.map(|judge| judge.verdict(bytes));
    if let (Some(before), Err(kind)) = (&before, &walked) {
        // Where only kernels mind, the check says so too.
        assert!(!before.clean || !clean, "{kind:?}, but e2fsck finds nothing:\n{}", before.text);
    }
    let disk = Arc::new(MemDisk::from_bytes(bytes.to_vec()));
    let corrupt = steps::apply(&disk, words);
    let after = disk.to_bytes();
    if clean {
        assert_eq!(corrupt, None, "the volume was clean");
        let left = self::report(&after).map(|report| report.findings);
        assert!(left.as_ref().is_some_and(Vec::is_empty) || !strictly(report.as_ref()), "{left:#?}");
    }
    if let (Some(judge), Some(before)) = (judge, before)
        && after != bytes
    {
        assert_no_worse(&before, &judge.verdict(&after), clean);
    }
    let took = started.elapsed();
    assert!(took < LONGEST, "{took:?}");
}

/// Whether a report has nothing at all, no notices either.
fn strictly(report: Option<&Report>) -> bool {
    report.is_some_and(|report| report.total == 0)
}

fn assert_no_worse(before: &Verdict, after: &Verdict, clean: bool) {
    let told = || format!("before:\n{}\nafter:\n{}", before.text, after.text);
    if before.clean && clean {
        assert!(after.clean, "e2fsck finds something now; {}", told());
    } else if before.complete {
        let new = after.beyond(before);
        assert!(new.is_empty(), "new: {new:#?}; {}", told());
    }
}

/// What must hold for a repair, and for one after that.
pub(crate) fn repair(bytes: &[u8], judge: Option<&Judge>) {
    let known = walk(bytes);
    let disk = Arc::new(MemDisk::from_bytes(bytes.to_vec()));
    let options = CheckOptions { repair: true, ..CheckOptions::default() };
    let Ok(first) = check(disk.clone(), &options) else { return };
    let repaired = disk.to_bytes();
    let after = report(&repaired).expect("it could be checked before");
    assert_eq!(first.clean, after.clean, "{:#?}\nafterwards: {:#?}", first.findings, after.findings);
    let second = check(disk.clone(), &options).expect("it could be repaired before");
    assert_eq!(second.repaired, 0, "{:#?}\nafterwards: {:#?}", first.findings, second.findings);
    assert!(disk.to_bytes() == repaired, "nothing was repaired, but something was written");
    if let Ok(known) = known {
        let left = walk(&repaired).expect("it could be read before");
        let lost = known.keys().find(|path| !left.contains_key(*path));
        assert!(known.len() > PATHS || lost.is_none(), "{lost:?} is lost: {:#?}", first.findings);
    }
    if let (true, Some(judge)) = (after.clean, judge) {
        let verdict = judge.verdict(&repaired);
        assert!(verdict.clean, "{:#?}\n{}", first.findings, verdict.text);
    }
}
