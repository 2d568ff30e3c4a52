//! Directories that fold the case of names, judged by e2fsck: it hashes each name and looks for doubles.

use std::ops::ControlFlow;

use vmwright_ext4::Ext4;
use vmwright_judges::{need, run};
use vmwright_vfs::{ErrorKind, FileSystem, InodeNumber, NewNode, NodeKind, RenameMode};

use crate::images::{Image, named};
use crate::writing::open;

fn new(kind: NodeKind) -> NewNode {
    NewNode { kind, mode: 0o755, uid: 0, gid: 0 }
}

fn folding(image: &Image) -> (Ext4, InodeNumber) {
    let mut volume = open(image);
    let root = volume.root();
    let dir = volume.create(root, b"folding", &new(NodeKind::Directory)).unwrap();
    volume.set_casefold(dir, true).unwrap();
    (volume, dir)
}

fn names(volume: &Ext4, dir: InodeNumber) -> Vec<String> {
    let mut names = Vec::new();
    let mut push = |entry: vmwright_vfs::DirEntry| {
        names.push(String::from_utf8_lossy(&entry.name).into_owned());
        ControlFlow::Continue(())
    };
    volume.read_dir(dir, &mut push).unwrap();
    names.sort();
    names
}

fn sound(image: &Image, volume: &mut Ext4, when: &str) {
    volume.sync().unwrap();
    image.assert_sound(when);
}

#[test]
fn names_that_differ_in_case_are_one() {
    need!("mke2fs", "e2fsck", "debugfs");
    for kind in ["casefold", "casefold_1k", "casefold_inline"] {
        let image = Image::make(named(kind), 16);
        let (mut volume, dir) = folding(&image);
        let inode = volume.create(dir, "Straße".as_bytes(), &new(NodeKind::Regular)).unwrap();
        for spelling in ["straße", "STRASSE", "Straße"] {
            assert_eq!(volume.lookup(dir, spelling.as_bytes()).unwrap(), inode);
            let again = volume.create(dir, spelling.as_bytes(), &new(NodeKind::Fifo)).unwrap_err();
            assert_eq!(again.kind(), ErrorKind::Exists);
            assert_eq!(volume.link(inode, dir, spelling.as_bytes()).unwrap_err().kind(), ErrorKind::Exists);
        }
        assert_eq!(names(&volume, dir), ["Straße"], "the spelling is kept");
        for (from, to, mode) in
            [("STRASSE", "strasse", RenameMode::Replace), ("Strasse", "STRAßE", RenameMode::NoReplace)]
        {
            volume.rename((dir, from.as_bytes()), (dir, to.as_bytes()), mode).unwrap();
            assert_eq!(names(&volume, dir), [to]);
            assert_eq!(volume.lookup(dir, b"strasse").unwrap(), inode);
        }
        sound(&image, &mut volume, "with one name");
        volume.create(dir, b"other", &new(NodeKind::Regular)).unwrap();
        volume.rename((dir, b"OTHER"), (dir, b"straSSE"), RenameMode::Replace).unwrap();
        assert_eq!(names(&volume, dir), ["STRAßE"], "a name that is taken over keeps its spelling");
        let sub = volume.create(dir, b"sub", &new(NodeKind::Directory)).unwrap();
        volume.create(sub, b"A", &new(NodeKind::Regular)).unwrap();
        volume.lookup(sub, b"a").unwrap();
        assert_eq!(volume.set_casefold(sub, false).unwrap_err().kind(), ErrorKind::InvalidInput);
        volume.unlink(sub, b"a").unwrap();
        volume.set_casefold(sub, false).unwrap();
        volume.create(sub, b"A", &new(NodeKind::Regular)).unwrap();
        volume.create(sub, b"a", &new(NodeKind::Regular)).unwrap();
        volume.create(dir, b"\xffA", &new(NodeKind::Regular)).unwrap();
        volume.create(dir, b"\xffa", &new(NodeKind::Regular)).unwrap();
        sound(&image, &mut volume, "with names that are not UTF-8");
        volume.unlink(dir, b"STRASSE").unwrap();
        assert_eq!(volume.lookup(dir, "straße".as_bytes()).unwrap_err().kind(), ErrorKind::NotFound);
        sound(&image, &mut volume, "in the end");
    }
}

#[test]
fn folding_directories_of_many_names_are_hashed_as_e2fsck_hashes_them() {
    need!("mke2fs", "e2fsck", "debugfs");
    for kind in ["casefold", "casefold_1k"] {
        let image = Image::make(named(kind), 48);
        let (mut volume, dir) = folding(&image);
        let inode = volume.create(dir, b"first", &new(NodeKind::Regular)).unwrap();
        let name = |number: u32| format!("Ärger-ΣΊΣΥΦΟΣ-ﬁ-{number}-{}", "Ö".repeat(number as usize % 90));
        let other =
            |number: u32| format!("ärger-σίσυφοσ-FI-{number}-{}", "o\u{308}".repeat(number as usize % 90));
        for number in 0..4000 {
            volume.link(inode, dir, name(number).as_bytes()).unwrap();
        }
        sound(&image, &mut volume, "with all names");
        for number in 0..4000 {
            let other = other(number);
            if other.len() <= 255 {
                assert_eq!(volume.lookup(dir, other.as_bytes()).unwrap(), inode, "{other}");
            }
            if number % 3 > 0 {
                volume.unlink(dir, name(number).to_lowercase().as_bytes()).unwrap();
            }
        }
        assert_eq!(names(&volume, dir).len(), 1 + 4000_usize.div_ceil(3));
        sound(&image, &mut volume, "with a third of the names");
    }
}

#[test]
fn strict_volumes_refuse_names_that_are_not_utf8() {
    need!("mke2fs", "e2fsck", "debugfs");
    let image = Image::make(named("casefold_strict"), 16);
    let (mut volume, dir) = folding(&image);
    let root = volume.root();
    let file = volume.create(root, b"\xff", &new(NodeKind::Regular)).unwrap();
    let refused =
        |result: vmwright_vfs::Result<()>| assert_eq!(result.unwrap_err().kind(), ErrorKind::InvalidInput);
    refused(volume.create(dir, b"a\xff", &new(NodeKind::Regular)).map(drop));
    refused(volume.link(file, dir, b"\xc0\x80"));
    refused(volume.rename((root, b"\xff"), (dir, b"\xff"), RenameMode::Replace));
    // A code point that 12.1 had not assigned is UTF-8 all the same.
    volume.create(dir, "\u{377ff}\u{1acb}".as_bytes(), &new(NodeKind::Regular)).unwrap();
    sound(&image, &mut volume, "strict");
}

#[test]
fn only_volumes_with_the_feature_fold() {
    need!("mke2fs", "debugfs");
    let image = Image::make(named("default"), 8);
    let mut volume = open(&image);
    let root = volume.root();
    let dir = volume.create(root, b"dir", &new(NodeKind::Directory)).unwrap();
    assert_eq!(volume.set_casefold(dir, true).unwrap_err().kind(), ErrorKind::Unsupported);
    let image = Image::make(named("casefold"), 8);
    let (mut volume, dir) = folding(&image);
    volume.create(dir, b"A", &new(NodeKind::Fifo)).unwrap();
    volume.sync().unwrap();
    drop(volume);
    run("debugfs", ["-w".as_ref(), "-R".as_ref(), "ssv encoding 7".as_ref(), image.path().as_os_str()]);
    let mut volume = open(&image);
    volume.lookup(dir, b"A").unwrap();
    assert_eq!(volume.lookup(dir, b"a").unwrap_err().kind(), ErrorKind::NotFound);
    let error = volume.create(dir, b"b", &new(NodeKind::Fifo)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "an encoding that is not known");
}

#[test]
fn spellings_at_random_are_what_a_model_of_folded_names_has() {
    need!("mke2fs", "e2fsck", "debugfs");
    // Two spellings of one part in each pair, and what both fold to.
    let parts = [
        ("a", "A", "a"),
        ("\u{e9}", "E\u{301}", "\u{e9}"),
        ("ß", "Ss", "ss"),
        ("ﬁ", "FI", "fi"),
        ("Ω", "ω", "ω"),
    ];
    for kind in ["casefold_1k", "casefold_inline"] {
        let image = Image::make(named(kind), 16);
        let (mut volume, dir) = folding(&image);
        let mut model = std::collections::BTreeMap::<String, (String, InodeNumber)>::new();
        let steps = if std::env::var_os("VMWRIGHT_TORTURE").is_some() { 60_000 } else { 3000 };
        let bytes = crate::populate::noise(17, steps * 8);
        for (step, bytes) in bytes.chunks(8).enumerate() {
            let spelled = |bytes: &[u8]| {
                let (mut name, mut key) = (String::new(), String::new());
                for byte in &bytes[..usize::from(bytes[2] % 3) + 1] {
                    let (small, other, folded) = parts[usize::from(byte / 2) % parts.len()];
                    name += if byte % 2 == 0 { small } else { other };
                    key += folded;
                }
                (name, key)
            };
            let ((name, key), (to, to_key)) = (spelled(&bytes[..3]), spelled(&bytes[3..6]));
            let at = volume.lookup(dir, name.as_bytes()).ok();
            assert_eq!(at, model.get(&key).map(|known| known.1), "step {step}: {name}");
            match (bytes[6] % 3, at) {
                (0, None) => {
                    let inode = volume.create(dir, name.as_bytes(), &new(NodeKind::Fifo)).unwrap();
                    model.insert(key, (name, inode));
                }
                (1, Some(_)) => {
                    volume.unlink(dir, name.as_bytes()).unwrap();
                    model.remove(&key);
                }
                (2, Some(inode)) => {
                    volume.rename((dir, name.as_bytes()), (dir, to.as_bytes()), RenameMode::Replace).unwrap();
                    let before = model.remove(&key).unwrap().0;
                    let spelling = match model.remove(&to_key) {
                        Some((taken, _)) => taken,
                        // The same bytes are no other spelling.
                        None if name == to => before,
                        None => to,
                    };
                    model.insert(to_key, (spelling, inode));
                }
                _ => {}
            }
        }
        let mut expected: Vec<_> = model.into_values().map(|(name, _)| name).collect();
        expected.sort();
        assert_eq!(names(&volume, dir), expected);
        sound(&image, &mut volume, "after random spellings");
    }
}
