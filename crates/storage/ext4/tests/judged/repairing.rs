//! Repairs of volumes that are damaged on purpose: e2fsck finds nothing where all is said to be put right, and
//! nothing that could be read before is lost.

use std::collections::{BTreeMap, HashSet};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use vmwright_disk::{Disk, MemDisk};
use vmwright_ext4::{CheckOptions, Ext4, Options, Report, check};
use vmwright_judges::{need, run};
use vmwright_vfs::{FileSystem, FileType, InodeNumber};

use crate::images::Image;
use crate::random::effort;
use crate::seals::Layout;
use crate::verdicts::{mutations, sample, told};

/// The most that is read of a file, and the most paths that are followed.
const CONTENT: usize = 256 << 10;
const PATHS: usize = 4000;

/// A file or link that can be read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Readable {
    inode: InodeNumber,
    content: Vec<u8>,
}

/// Whatever can be read of a volume, past anything that cannot.
pub(crate) fn readable(bytes: &[u8]) -> BTreeMap<Vec<u8>, Readable> {
    let mut found = BTreeMap::new();
    let disk = Arc::new(MemDisk::from_bytes(bytes.to_vec()));
    let Ok(fs) = Ext4::open(disk, Options::default()) else { return found };
    let (mut entered, mut waiting) = (HashSet::new(), vec![(Vec::new(), fs.root())]);
    while let Some((path, inode)) = waiting.pop() {
        // What the volume keeps for itself is nobody's content, even where a damaged name leads to it.
        if inode.0 < 11 && inode != fs.root() {
            continue;
        }
        let Ok(metadata) = fs.metadata(inode) else { continue };
        match metadata.file_type {
            FileType::Directory if entered.insert(inode) => {
                let _ = fs.read_dir(inode, &mut |entry| {
                    waiting.push(([&path[..], b"/", &entry.name].concat(), entry.inode));
                    if waiting.len() < PATHS { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                });
            }
            FileType::Regular => {
                let mut content = vec![0; metadata.size.min(CONTENT as u64) as usize];
                if fs.read_at(inode, &mut content, 0).is_ok() {
                    found.insert(path, Readable { inode, content });
                }
            }
            FileType::Symlink => {
                if let Ok(content) = fs.read_link(inode) {
                    found.insert(path, Readable { inode, content });
                }
            }
            _ => {}
        }
        if found.len() > PATHS {
            break;
        }
    }
    found
}

/// What could be read before and cannot any more. A file may have another name, and a longer end.
fn lost(before: &BTreeMap<Vec<u8>, Readable>, after: &BTreeMap<Vec<u8>, Readable>) -> Option<String> {
    let same = |one: &Readable, other: &Readable| {
        one.inode == other.inode && other.content.starts_with(&one.content)
    };
    let gone = before.iter().find(|(path, one)| {
        !after.get(*path).is_some_and(|other| same(one, other))
            && !after.values().any(|other| same(one, other))
    });
    gone.map(|(path, one)| format!("{} (inode {:?})", path.escape_ascii(), one.inode))
}

fn repair(bytes: Vec<u8>) -> (vmwright_ext4::Result<Report>, Vec<u8>) {
    let disk = Arc::new(MemDisk::from_bytes(bytes));
    let report =
        check(disk.clone() as Arc<dyn Disk>, &CheckOptions { repair: true, ..CheckOptions::default() });
    (report, disk.to_bytes())
}

/// Repairs a damaged volume; answers what is wrong with that in words.
fn judge(damaged: Vec<u8>) -> Option<String> {
    let before = readable(&damaged);
    let (report, repaired) = repair(damaged.clone());
    let Ok(report) = report else {
        return (repaired != damaged).then(|| "what cannot be checked was changed".to_owned());
    };
    let told = told(Some(&report));
    if let Some(lost) = lost(&before, &readable(&repaired)) {
        return Some(format!("{lost} is lost:\n{told}"));
    }
    if report.clean {
        let complaints = Image::from_bytes(&repaired).complaints();
        return complaints.map(|complaints| format!("we found:\n{told}e2fsck finds:\n{complaints}"));
    }
    let (again, unchanged) = repair(repaired.clone());
    if unchanged != repaired || again.is_ok_and(|again| again.clean) {
        return Some(format!("a second repair goes on:\n{told}"));
    }
    None
}

/// A volume, its bytes, and how it is laid out.
fn prepared(kind: &str) -> (Image, Layout, Vec<u8>) {
    let image = sample(kind, 8);
    let layout = Layout::of(image.path());
    let bytes = std::fs::read(image.path()).unwrap();
    (image, layout, bytes)
}

/// The bytes of a volume after a change, with the checksums right.
fn sealed(image: &Image, layout: &Layout, bytes: &[u8], changes: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let file = std::fs::File::options().read(true).write(true).open(image.path()).unwrap();
    let mut damaged = bytes.to_vec();
    for (at, new) in changes {
        damaged[*at as usize..*at as usize + new.len()].copy_from_slice(new);
        file.write_all_at(new, *at).unwrap();
    }
    for (at, seal) in layout.seals(&file, changes) {
        damaged[at as usize..at as usize + seal.len()].copy_from_slice(&seal);
    }
    for (at, new) in changes {
        file.write_all_at(&bytes[*at as usize..*at as usize + new.len()], *at).unwrap();
    }
    damaged
}

#[test]
fn damage_to_each_field_is_repaired_or_told_and_loses_nothing() {
    need!("mke2fs", "e2fsck", "debugfs");
    for (kind, share) in [("1k", 411), ("ext2_1k", 331), ("default", 411), ("inline", 411), ("uninit", 397)] {
        let (image, layout, bytes) = prepared(kind);
        let mut cases = Vec::new();
        for (what, at) in layout.words() {
            let word: [u8; 4] = bytes[at..at + 4].try_into().unwrap();
            cases.extend(mutations(word).into_iter().map(|new| (what.clone(), at, new)));
        }
        let mut failures = Vec::new();
        for (what, at, new) in cases.into_iter().step_by((share / effort() as usize).max(1)) {
            let damaged = sealed(&image, &layout, &bytes, &[(at as u64, new.to_vec())]);
            if let Some(failure) = judge(damaged) {
                failures.push(format!("{kind}: {what} at {at:#x} becomes {new:02x?}: {failure}"));
            }
        }
        assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    }
}

#[test]
fn random_damage_is_repaired_or_told_and_loses_nothing() {
    need!("mke2fs", "e2fsck", "debugfs");
    for kind in ["1k", "ext2_1k", "plain", "inline", "quota", "large_dir"] {
        let (_image, _, bytes) = prepared(kind);
        let chunks = bytes.chunks(32).enumerate().filter(|(_, chunk)| chunk.iter().any(|byte| *byte != 0));
        let places: Vec<usize> = chunks.map(|(number, _)| number * 32).filter(|at| *at >= 1024).collect();
        let change = (0..places.len(), 0..32_usize, any::<u8>());
        let cases = 10 * effort();
        let config = Config { cases, failure_persistence: None, max_shrink_iters: 40, ..Config::default() };
        TestRunner::new(config)
            .run(&prop::collection::vec(change, 1..4), |changes| {
                let mut damaged = bytes.clone();
                for (place, at, new) in &changes {
                    damaged[places[*place] + at] = *new;
                }
                let failure = judge(damaged);
                prop_assert!(failure.is_none(), "{kind}: {changes:x?}: {}", failure.unwrap());
                Ok(())
            })
            .unwrap();
    }
}

/// Damages a volume with debugfs, repairs it, and answers what was found and the bytes afterwards.
fn after(kind: &str, requests: &[&str]) -> (Report, Vec<u8>) {
    let (image, _, _) = prepared(kind);
    for request in requests {
        run("debugfs", ["-w".as_ref(), "-R".as_ref(), request.as_ref(), image.path().as_os_str()]);
    }
    assert!(image.complaints().is_some(), "{kind}: {requests:?} is no damage");
    let (report, repaired) = repair(std::fs::read(image.path()).unwrap());
    let report = report.unwrap();
    let told = told(Some(&report));
    assert!(report.clean && report.repaired == report.total, "{kind}: {requests:?}:\n{told}");
    let complaints = Image::from_bytes(&repaired).complaints();
    assert!(complaints.is_none(), "{kind}: {requests:?}:\n{told}{}", complaints.unwrap());
    (report, repaired)
}

#[test]
fn what_debugfs_breaks_is_whole_again() {
    need!("mke2fs", "e2fsck", "debugfs");
    let cases: &[(&str, &[&str])] = &[
        ("link-count", &["sif small links_count 7"]),
        ("inode-blocks", &["sif far blocks 2"]),
        ("deleted-time", &["sif small dtime 1700000000"]),
        ("unattached", &["unlink small"]),
        ("unconnected", &["unlink one"]),
        ("entry-unused", &["clri small"]),
        ("group-free-blocks", &["set_bg 0 free_blocks_count 1", "set_bg 0 checksum calc"]),
        ("group-directories", &["set_bg 0 used_dirs_count 99", "set_bg 0 checksum calc"]),
        ("block-bitmap", &["freeb 30 2"]),
        ("inode-bitmap", &["seti <900>"]),
        ("state-not-clean", &["ssv state 2", "sif small links_count 2"]),
        ("link-count", &["ln small small2"]),
    ];
    for kind in ["default", "1k", "ext2_1k", "plain"] {
        for (code, requests) in cases {
            let (report, _) = after(kind, requests);
            let codes: HashSet<&str> = report.findings.iter().map(|finding| finding.kind.code()).collect();
            assert!(codes.contains(code), "{kind}: {requests:?} finds {codes:?}");
        }
    }
}

#[test]
fn what_lost_its_name_is_found_in_lost_and_found() {
    need!("mke2fs", "e2fsck", "debugfs");
    for kind in ["default", "ext2_1k", "inline"] {
        let (image, _, bytes) = prepared(kind);
        let before = readable(&bytes);
        let small = before.get(&b"/small"[..]).unwrap().inode;
        drop(image);
        let (_, repaired) = after(kind, &["unlink small", "unlink one"]);
        let found = readable(&repaired);
        let path = format!("/lost+found/#{}", small.0);
        assert_eq!(
            found.get(path.as_bytes()).map(|found| &found.content),
            Some(&before[&b"/small"[..]].content)
        );
        assert!(found.len() >= before.len(), "{kind}");
    }
}

#[test]
fn nothing_is_written_to_a_sound_volume() {
    need!("mke2fs", "e2fsck", "debugfs");
    for kind in ["default", "ext2_1k", "inline", "quota", "meta_bg"] {
        let (_image, _, bytes) = prepared(kind);
        let (report, unchanged) = repair(bytes.clone());
        assert!(report.is_ok_and(|report| report.clean && report.total == 0), "{kind}");
        assert!(unchanged == bytes, "{kind} was changed");
    }
}
