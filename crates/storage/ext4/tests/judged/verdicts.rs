//! The verdict of a check, held against that of e2fsck on volumes that are damaged on purpose.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use vmwright_disk::HostFile;
use vmwright_ext4::{CheckOptions, Report, check};
use vmwright_judges::{corpus, need, output, run, skip};

use crate::images::{Image, KINDS, named};
use crate::random::effort;
use crate::seals::Layout;

/// What e2fsck says of a volume.
struct Verdict {
    damaged: bool,
    text: String,
}

/// Runs e2fsck for a while at most: there are volumes that it never finishes with.
fn limited(how: &str, path: &Path) -> std::process::Output {
    let e2fsck = vmwright_judges::tool("e2fsck").unwrap();
    output("timeout", ["20".as_ref(), e2fsck.as_os_str(), how.as_ref(), path.as_os_str()])
}

/// Lets e2fsck check without changing anything.
///
/// It answers its own questions with no, and forgets those about superblock, descriptors, resize inode and
/// journal, which it asks before its first pass: they count here, since kernels refuse such volumes.
fn theirs(path: &Path) -> Verdict {
    let output = limited("-fn", path);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let early = text.split("Pass 1:").next().unwrap_or_default();
    // Times are left alone: there is no clock here.
    let questions = early.matches("? no").count() - early.matches("is in the future.\nFix? no").count();
    let asked = questions > 0 || early.contains("trying backup blocks");
    let too_deep = text.contains("extent tree could be more shallow");
    Verdict { damaged: output.status.code() != Some(0) || asked || too_deep, text }
}

/// What we say; a volume that cannot be checked at all is damaged.
fn ours(path: &Path) -> Option<Report> {
    let disk = Arc::new(HostFile::open(path, true).unwrap());
    check(disk, &CheckOptions::default()).ok()
}

pub(crate) fn told(report: Option<&Report>) -> String {
    match report {
        Some(report) => report.findings.iter().take(12).map(|finding| format!("  {finding}\n")).collect(),
        None => "  it cannot be checked\n".to_owned(),
    }
}

/// Compares both verdicts; answers the difference in words.
fn difference(path: &Path) -> Option<String> {
    let (ours, theirs) = (ours(path), theirs(path));
    let damaged = ours.as_ref().is_none_or(|report| !report.clean);
    let stricter = !theirs.damaged && ours.as_ref().is_some_and(only_kernels_mind);
    (damaged != theirs.damaged && !stricter)
        .then(|| format!("we find:\n{}e2fsck finds:\n{}", told(ours.as_ref()), theirs.text))
}

/// Whether all that is wrong is something that kernels refuse and e2fsck does not look at.
fn only_kernels_mind(report: &Report) -> bool {
    let damage = || report.findings.iter().filter(|finding| finding.kind.is_damage());
    // A name that ends in a zero byte is the same to e2fsck.
    let inline = damage().any(|finding| finding.kind.code() == "inline-data");
    damage().all(|finding| match finding.kind.code() {
        // The depth of a node beneath the root.
        "extent-tree" => finding.field == "depth",
        // Holes, and what is kept of its inode behind the first 128 bytes.
        "journal-inode" | "journal-superblock" | "orphan-list" => true,
        "inline-data" | "inode-size" => inline,
        _ => false,
    })
}

/// Files of which all but some bytes are holes, so that what is not zero on the volume is mostly metadata.
fn files(dir: &Path) {
    let eight: Vec<u64> = (0..8).map(|number| number * 20_000).collect();
    for (name, places) in [("empty", &[][..]), ("small", &[0]), ("holes", &eight), ("far", &[5_000_000])] {
        let file = std::fs::File::create(dir.join(name)).unwrap();
        for place in places {
            file.write_at(b"x", *place).unwrap();
        }
    }
}

/// Makes a small volume of a kind, with content.
pub(crate) fn sample(kind: &str, mebibytes: u64) -> Image {
    let image = Image::make(named(kind), mebibytes);
    let dir = tempfile::tempdir().unwrap();
    files(dir.path());
    let mut script = String::new();
    for entry in ["empty", "small", "holes", "far"] {
        script += &format!("write {}/{entry} {entry}\n", dir.path().display());
    }
    script += "symlink short small\n";
    script += &format!("symlink long {}\n", "long/".repeat(30));
    script += "mkdir one\nmkdir one/two\nmkdir many\nmknod pipe p\nmknod device c 4 64\n";
    for number in 0..120 {
        let name = format!("many/a_name_that_is_rather_long_{number}");
        script += &format!("write {}/empty {name}\n", dir.path().display());
    }
    script += "ea_set small user.one value\n";
    script += &format!("ea_set holes user.two {}\n", "v".repeat(200));
    script += &format!("ea_set far user.three {}\n", "w".repeat(600));
    script += "rm empty\n";
    let commands = dir.path().join("commands");
    std::fs::write(&commands, script).unwrap();
    run("debugfs", ["-w".as_ref(), "-f".as_ref(), commands.as_os_str(), image.path().as_os_str()]);
    let _ = output("e2fsck", ["-fyD".as_ref(), image.path().as_os_str()]);
    image.assert_sound("before it is damaged");
    image
}

#[test]
fn a_sound_volume_of_every_kind_is_clean() {
    need!("mke2fs", "e2fsck", "debugfs");
    for kind in KINDS {
        let image = sample(kind.name, 48);
        let report = ours(image.path());
        assert!(
            report.as_ref().is_some_and(|r| r.clean && r.total == 0),
            "{}:\n{}",
            kind.name,
            told(report.as_ref())
        );
        let report = report.unwrap();
        assert!(
            report.stats.directories >= 4 && report.stats.symlinks >= 2,
            "{}: {:?}",
            kind.name,
            report.stats
        );
    }
}

/// Changes bytes of an image, tells whether the verdicts differ, and puts the bytes back.
fn judge(image: &Image, layout: Option<&Layout>, changes: &[(u64, Vec<u8>)]) -> Option<String> {
    let file = std::fs::File::options().read(true).write(true).open(image.path()).unwrap();
    let mut saved: Vec<(u64, Vec<u8>)> = Vec::new();
    let mut put = |offset: u64, bytes: &[u8]| {
        let mut before = vec![0; bytes.len()];
        file.read_exact_at(&mut before, offset).unwrap();
        saved.push((offset, before));
        file.write_all_at(bytes, offset).unwrap();
    };
    for (offset, bytes) in changes {
        put(*offset, bytes);
    }
    if let Some(layout) = layout {
        for (offset, bytes) in layout.seals(&file, changes) {
            put(offset, &bytes);
        }
    }
    let difference = difference(image.path());
    for (offset, before) in saved.iter().rev() {
        file.write_all_at(before, *offset).unwrap();
    }
    difference
}

/// What a word of four bytes becomes.
pub(crate) fn mutations(word: [u8; 4]) -> Vec<[u8; 4]> {
    let number = u32::from_le_bytes(word);
    let all = [0, !0, number ^ 1, number ^ 0x1_0000, number.wrapping_add(1), number ^ 0x8000_0000];
    let mut all: Vec<[u8; 4]> = all.into_iter().map(u32::to_le_bytes).filter(|new| *new != word).collect();
    all.dedup();
    all
}

/// Damages words of structures, one at a time, with the checksums right.
fn field_by_field(kind: &str, share: usize) -> Vec<String> {
    let image = sample(kind, 8);
    let layout = Layout::of(image.path());
    let bytes = std::fs::read(image.path()).unwrap();
    let mut cases = Vec::new();
    for (what, at) in layout.words() {
        let word: [u8; 4] = bytes[at..at + 4].try_into().unwrap();
        cases.extend(mutations(word).into_iter().map(|new| (what.clone(), at, new)));
    }
    let mut differences = Vec::new();
    let step = (share / effort() as usize).max(1);
    for (what, at, new) in cases.into_iter().step_by(step) {
        if let Some(difference) = judge(&image, Some(&layout), &[(at as u64, new.to_vec())]) {
            differences.push(format!("{kind}: {what} at {at:#x} becomes {new:02x?}: {difference}"));
        }
    }
    differences
}

#[test]
fn damage_to_each_field_is_judged_as_e2fsck_judges_it() {
    need!("mke2fs", "e2fsck", "debugfs", "timeout");
    let mut differences = Vec::new();
    // How many cases are left out for each that is tried: all together take some seconds.
    for (kind, share) in
        [("1k", 97), ("ext2_1k", 61), ("default", 97), ("inline", 97), ("uninit", 89), ("bigalloc_1k", 97)]
    {
        differences.extend(field_by_field(kind, share));
    }
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
}

#[test]
fn random_damage_is_judged_as_e2fsck_judges_it() {
    need!("mke2fs", "e2fsck", "debugfs", "timeout");
    for kind in ["1k", "ext2_1k", "plain", "inline", "meta_bg"] {
        let image = sample(kind, 8);
        let bytes = std::fs::read(image.path()).unwrap();
        let chunks = bytes.chunks(32).enumerate().filter(|(_, chunk)| chunk.iter().any(|byte| *byte != 0));
        let places: Vec<usize> = chunks.map(|(number, _)| number * 32).filter(|at| *at >= 1024).collect();
        let change = (0..places.len(), 0..32_usize, any::<u8>());
        let cases = 40 * effort();
        let config = Config { cases, failure_persistence: None, max_shrink_iters: 40, ..Config::default() };
        TestRunner::new(config)
            .run(&prop::collection::vec(change, 1..3), |changes| {
                let changes: Vec<(u64, Vec<u8>)> = changes
                    .iter()
                    .map(|(place, at, new)| ((places[*place] + at) as u64, vec![*new]))
                    .collect();
                let difference = judge(&image, None, &changes);
                prop_assert!(difference.is_none(), "{kind}: {changes:x?}: {}", difference.unwrap());
                Ok(())
            })
            .unwrap();
    }
}

/// Images of e2fsprogs whose verdicts differ, and why.
const EXPLAINED: &[(&str, &str)] = &[
    ("f_clear_orphan_file", "e2fsck replays the journal alone and leaves the orphan file as it is"),
    ("f_ea_inode_no_feature", "kernels refuse values in inodes of their own without the feature"),
    ("f_ea_zero_size", "kernels refuse values of no length in inodes of their own"),
    ("f_jnl_errno", "e2fsck asks because it cannot write in spite of -n"),
    ("f_journal", "the journal's inode is only in the journal: kernels refuse the volume"),
];

/// The images of a folder.
fn images(folder: &Path, suffix: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.to_string_lossy().ends_with(suffix));
    paths.sort();
    paths
}

/// Where e2fsck would replay a journal first, what it says after that.
fn difference_after_replay(image: &Image) -> Option<String> {
    let first = theirs(image.path());
    if !first.text.contains("skipping journal recovery") {
        return difference(image.path());
    }
    let copy = image.copy();
    let replay = limited("-yEjournal_only", copy.path());
    let said = String::from_utf8_lossy(&[replay.stdout, replay.stderr].concat()).into_owned();
    let failed = ["replay was aborted", "Journal checksum error", "Journal corrupted", "while recovering"];
    let failed = failed.iter().any(|words| said.contains(words));
    let ours = ours(image.path());
    let damaged = ours.as_ref().is_none_or(|report| !report.clean);
    let theirs = theirs(copy.path());
    (damaged != (theirs.damaged || failed))
        .then(|| format!("we find:\n{}e2fsck finds:\n{said}\n{}", told(ours.as_ref()), theirs.text))
}

#[test]
fn samples_of_others_are_judged_as_e2fsck_judges_them() {
    need!("gzip", "sh", "e2fsck", "timeout");
    let Some(corpus) = corpus() else { skip!("no corpus here") };
    let mut differences = Vec::new();
    for path in images(&corpus.join("ext4"), ".img.gz") {
        let image = Image::from_bytes(&[]);
        run("sh", ["-c", &format!("gzip -dc '{}' > '{}'", path.display(), image.path().display())]);
        differences.extend(difference_after_replay(&image).map(|text| format!("{}: {text}", path.display())));
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn images_of_a_folder_are_judged_as_e2fsck_judges_them() {
    let Some(folder) = std::env::var_os("VMWRIGHT_E2FS_IMAGES") else {
        skip!("VMWRIGHT_E2FS_IMAGES names no folder of images");
    };
    need!("e2fsck", "timeout");
    let mut differences = Vec::new();
    let explained = |path: &PathBuf| {
        EXPLAINED.iter().any(|(name, _)| path.file_stem().is_some_and(|stem| stem.to_string_lossy() == *name))
    };
    for path in images(Path::new(&folder), ".img").into_iter().filter(|path| !explained(path)) {
        let image = Image::from_bytes(&std::fs::read(&path).unwrap());
        differences.extend(difference_after_replay(&image).map(|text| format!("{}: {text}", path.display())));
    }
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
}
