//! Copying into and out of guests, hostile ones among them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on panics")]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use vmwright_guest::ops::{self, CopyOptions, Operation, TABLE, Value};
use vmwright_guest::{ErrorKind, Result};
use vmwright_vfs::{DeviceNumber, FileSystem, MemoryFs, NewNode, NodeKind, Root, SetAttributes, Timestamp};

fn node(kind: NodeKind, mode: u16) -> NewNode {
    NewNode { kind, mode, uid: 12, gid: 34 }
}

fn tree() -> Root {
    let mut root = Root::new(Box::new(MemoryFs::default()));
    root.create_dir_all("/srv/www/deep", 0o750).unwrap();
    root.write_file("/srv/www/index", b"hello").unwrap();
    root.write_file("/srv/www/deep/\u{fc}", &[7; 3 << 20]).unwrap();
    root.create("/srv/www/link", &node(NodeKind::Symlink(b"/etc/passwd".to_vec()), 0o777)).unwrap();
    root.create("/srv/www/tool", &node(NodeKind::Regular, 0o6755)).unwrap();
    root.create("/srv/www/fifo", &node(NodeKind::Fifo, 0o644)).unwrap();
    let device = DeviceNumber { major: 1, minor: 3 };
    root.create("/srv/www/null", &node(NodeKind::CharDevice(device), 0o666)).unwrap();
    root
}

fn out(root: &Root, path: &str, to: &Path) -> Result<ops::CopySummary> {
    ops::copy_out(root, path.as_bytes(), to, &CopyOptions::default())
}

#[test]
fn a_directory_comes_out_whole_but_without_what_is_special() {
    let mut root = tree();
    let attributes = SetAttributes {
        modified: Some(Timestamp { seconds: 1_000_000, nanoseconds: 5 }),
        ..Default::default()
    };
    root.set_attributes("/srv/www/index", &attributes, true).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let summary = out(&root, "/srv/www", dir.path()).unwrap();
    let www = dir.path().join("www");
    assert_eq!(fs::read(www.join("index")).unwrap(), b"hello");
    assert_eq!(fs::metadata(www.join("index")).unwrap().mtime(), 1_000_000);
    assert_eq!(fs::read(www.join("deep/\u{fc}")).unwrap(), vec![7; 3 << 20]);
    assert_eq!(fs::read_link(www.join("link")).unwrap(), Path::new("/etc/passwd"));
    assert_eq!(fs::metadata(www.join("tool")).unwrap().permissions().mode() & 0o7777, 0o755);
    assert_eq!(fs::metadata(www.join("deep")).unwrap().permissions().mode() & 0o777, 0o750);
    assert!(!www.join("fifo").exists() && !www.join("null").exists());
    assert_eq!(summary.skipped, ["/srv/www/fifo", "/srv/www/null"]);
    assert_eq!((summary.entries, summary.bytes), (6, 5 + (3 << 20)));
    // A second time everything is replaced.
    out(&root, "/srv/www", dir.path()).unwrap();
    assert_eq!(fs::read(www.join("index")).unwrap(), b"hello");
}

#[test]
fn special_files_come_out_when_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut root = tree();
    root.remove("/srv/www/null").unwrap();
    let options = CopyOptions { special: true, ..CopyOptions::default() };
    let summary = ops::copy_out(&root, b"/srv/www", dir.path(), &options).unwrap();
    assert_eq!(summary.skipped_count, 0);
    assert_eq!(fs::metadata(dir.path().join("www/tool")).unwrap().permissions().mode() & 0o7777, 0o6755);
    assert!(std::os::unix::fs::FileTypeExt::is_fifo(
        &fs::metadata(dir.path().join("www/fifo")).unwrap().file_type()
    ));
}

#[test]
fn a_directory_that_may_not_be_written_is_still_filled() {
    let mut root = Root::new(Box::new(MemoryFs::default()));
    root.create_dir_all("/a/b", 0o555).unwrap();
    root.write_file("/a/b/file", b"x").unwrap();
    let dir = tempfile::tempdir().unwrap();
    out(&root, "/a", dir.path()).unwrap();
    assert_eq!(fs::read(dir.path().join("a/b/file")).unwrap(), b"x");
    assert_eq!(fs::metadata(dir.path().join("a")).unwrap().permissions().mode() & 0o777, 0o555);
    for name in ["a", "a/b"] {
        fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
}

#[test]
fn a_single_file_comes_out_under_the_name_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("renamed");
    out(&tree(), "/srv/../srv/www/index", &target).unwrap();
    assert_eq!(fs::read(&target).unwrap(), b"hello");
    out(&tree(), "/srv/www/index", dir.path()).unwrap();
    assert!(dir.path().join("index").is_file());
    assert_eq!(out(&tree(), "/srv/www/fifo", dir.path()).unwrap().skipped_count, 1);
    assert_eq!(out(&tree(), "/none", dir.path()).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(
        out(&tree(), "/srv/www/index", &dir.path().join("no/where")).unwrap_err().kind(),
        ErrorKind::NotFound
    );
}

#[test]
fn the_whole_guest_goes_into_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    out(&tree(), "/", dir.path()).unwrap();
    assert_eq!(fs::read(dir.path().join("srv/www/index")).unwrap(), b"hello");
}

/// The folder to copy into, beside one that must stay as it is.
fn victim() -> (tempfile::TempDir, std::path::PathBuf, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (target, outside) = (dir.path().join("target"), dir.path().join("outside"));
    fs::create_dir(&target).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), b"untouched").unwrap();
    (dir, target, outside)
}

fn assert_untouched(outside: &Path) {
    let names: Vec<_> = fs::read_dir(outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["file"]);
    assert_eq!(fs::read(outside.join("file")).unwrap(), b"untouched");
}

#[test]
fn a_link_that_was_there_before_leads_nothing_out_of_the_folder() {
    for link in ["../outside", "/"] {
        let (_dir, target, outside) = victim();
        // The guest's directory `d` would be written through the link `d` of an earlier copy.
        symlink(if link == "/" { outside.as_path() } else { Path::new(link) }, target.join("d")).unwrap();
        let mut root = Root::new(Box::new(MemoryFs::default()));
        root.create_dir_all("/x/d", 0o755).unwrap();
        root.write_file("/x/d/file", b"evil").unwrap();
        root.write_file("/x/d/other", b"evil").unwrap();
        assert_eq!(out(&root, "/x/d", &target.join("d")).err().map(|error| error.kind()), None);
        fs::remove_dir_all(outside.join("d")).unwrap();
        assert_untouched(&outside);
        // Into the folder that holds the link, nothing goes through it.
        assert!(out(&root, "/x/d", &target).is_err());
        assert_untouched(&outside);
    }
}

#[test]
fn a_link_to_a_file_is_replaced_and_not_written_through() {
    let (_dir, target, outside) = victim();
    symlink("../outside/file", target.join("file")).unwrap();
    let mut root = Root::new(Box::new(MemoryFs::default()));
    root.write_file("/file", b"evil").unwrap();
    out(&root, "/file", &target).unwrap();
    assert_untouched(&outside);
    assert_eq!(fs::read(target.join("file")).unwrap(), b"evil");
    assert!(!fs::symlink_metadata(target.join("file")).unwrap().is_symlink());
}

#[test]
fn names_that_point_elsewhere_are_refused() {
    for name in [&b".."[..], b"../outside", b"../outside/file", b"/etc/passwd", b".", b""] {
        let (_dir, target, outside) = victim();
        let mut evil = MemoryFs::default();
        let top = evil.create(evil.root(), b"top", &node(NodeKind::Directory, 0o755)).unwrap();
        let file = evil.create(evil.root(), b"payload", &node(NodeKind::Regular, 0o644)).unwrap();
        evil.write_at(file, b"evil", 0).unwrap();
        evil.force_name(top, name, file);
        let root = Root::new(Box::new(evil));
        assert_eq!(out(&root, "/top", &target).unwrap_err().kind(), ErrorKind::Corrupt);
        assert_untouched(&outside);
    }
}

#[test]
fn links_of_the_guest_are_followed_inside_it_and_nowhere_else() {
    let (_dir, target, outside) = victim();
    let mut root = Root::new(Box::new(MemoryFs::default()));
    root.create_dir_all("/etc", 0o755).unwrap();
    root.write_file("/etc/passwd", b"the guest's own").unwrap();
    for (name, to) in [("absolute", "/etc/passwd"), ("up", "../../../../../../etc/passwd"), ("loop", "loop")]
    {
        root.create(format!("/{name}"), &node(NodeKind::Symlink(to.into()), 0o777)).unwrap();
    }
    for name in ["/absolute", "/up"] {
        out(&root, name, &target.join("copied")).unwrap();
        assert_eq!(fs::read(target.join("copied")).unwrap(), b"the guest's own");
    }
    assert_eq!(out(&root, "/loop", &target).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_untouched(&outside);
}

#[test]
fn bytes_and_entries_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let mut root = tree();
    let location = root.write_file("/huge", b"").unwrap();
    root.filesystem_mut(location.mount).truncate(location.inode, 1 << 30).unwrap();
    let options = CopyOptions { max_bytes: 1 << 20, ..CopyOptions::default() };
    let error = ops::copy_out(&root, b"/huge", dir.path(), &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(!dir.path().join("huge").exists());
    let options = CopyOptions { max_entries: 3, ..CopyOptions::default() };
    assert_eq!(
        ops::copy_out(&root, b"/srv", dir.path(), &options).unwrap_err().kind(),
        ErrorKind::Unsupported
    );
    let local = tempfile::tempdir().unwrap();
    for name in ["a", "b", "c", "d"] {
        fs::write(local.path().join(name), [1; 100]).unwrap();
    }
    assert!(ops::copy_in(&mut root, local.path(), b"/in", &options).is_err());
    let options = CopyOptions { max_bytes: 250, ..CopyOptions::default() };
    assert!(ops::copy_in(&mut root, local.path(), b"/in2", &options).is_err());
}

#[test]
fn what_goes_in_comes_out_the_same() {
    let local = tempfile::tempdir().unwrap();
    let source = local.path().join("app");
    fs::create_dir_all(source.join("bin")).unwrap();
    fs::write(source.join("bin/run"), b"#!/bin/sh\n").unwrap();
    fs::set_permissions(source.join("bin/run"), fs::Permissions::from_mode(0o4755)).unwrap();
    let mut holes = vec![0; 5 << 20];
    holes[3 << 20] = 1;
    fs::write(source.join("holes"), &holes).unwrap();
    symlink("bin/run", source.join("start")).unwrap();
    let mut root = tree();
    let summary = ops::copy_in(&mut root, &source, b"/srv", &CopyOptions::default()).unwrap();
    assert_eq!((summary.entries, summary.skipped_count), (5, 0));
    let run = root.metadata("/srv/app/bin/run").unwrap();
    assert_eq!((run.mode, run.uid, run.gid), (0o755, 0, 0));
    assert_eq!(run.modified.seconds, fs::metadata(source.join("bin/run")).unwrap().mtime());
    assert_eq!(root.read_link("/srv/app/start").unwrap(), b"bin/run");
    let back = local.path().join("back");
    out(&root, "/srv/app", &back).unwrap();
    assert_eq!(fs::read(back.join("holes")).unwrap(), holes);
    assert_eq!(fs::read(back.join("bin/run")).unwrap(), b"#!/bin/sh\n");
}

#[test]
fn a_file_that_exists_in_the_guest_keeps_its_owner_and_mode() {
    let local = tempfile::tempdir().unwrap();
    let source = local.path().join("tool");
    fs::write(&source, b"new").unwrap();
    let mut root = tree();
    ops::copy_in(&mut root, &source, b"/srv/www", &CopyOptions::default()).unwrap();
    let tool = root.metadata("/srv/www/tool").unwrap();
    assert_eq!((tool.mode, tool.uid, tool.gid), (0o6755, 12, 34));
    assert_eq!(root.read_file("/srv/www/tool", 3).unwrap(), b"new");
    // A directory never gives way to a link.
    let links = local.path().join("srv");
    fs::create_dir(&links).unwrap();
    symlink("x", links.join("www")).unwrap();
    let error = ops::copy_in(&mut root, &links, b"/", &CopyOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exists);
    assert!(root.is_dir("/srv/www"));
}

#[test]
fn every_operation_of_the_table_works_by_name() {
    let local = tempfile::tempdir().unwrap();
    fs::write(local.path().join("in"), b"in").unwrap();
    let (input, output) = (local.path().join("in"), local.path().join("out"));
    let (input, output) = (input.to_str().unwrap(), output.to_str().unwrap());
    let mut root = tree();
    root.write_file("/passwd", b"kim:x:1000:1001::/:/bin/sh\n").unwrap();
    root.create_dir_all("/etc", 0o755).unwrap();
    root.rename("/passwd", "/etc/passwd", vmwright_vfs::RenameMode::NoReplace).unwrap();
    let calls: [(&str, &[&str]); 16] = [
        ("mkdir", &["/a/b"]),
        ("write", &["/a/f", "one two\n"]),
        ("edit", &["/a/f", "s/two/three/"]),
        ("cat", &["/a/f"]),
        ("chmod", &["/a/f", "600"]),
        ("chown", &["/a/f", "kim:"]),
        ("stat", &["/a/f"]),
        ("ln", &["/a/f", "/a/g"]),
        ("ln-s", &["f", "/a/l"]),
        ("mv", &["/a/g", "/a/b"]),
        ("cp-in", &[input, "/a"]),
        ("cp-out", &["/a/in", output]),
        ("ls", &["/a"]),
        ("find", &["/a"]),
        ("rm", &["/a/l"]),
        ("rm-r", &["/a"]),
    ];
    let mut called: Vec<_> = calls.iter().map(|(name, _)| *name).collect();
    let mut answers = std::collections::HashMap::new();
    for (name, arguments) in calls {
        let arguments: Vec<_> = arguments.iter().map(|argument| argument.as_bytes()).collect();
        let operation = Operation::find(name).unwrap();
        assert!(operation.call(&mut root, &arguments[1..]).is_err(), "{name} with too few arguments");
        answers.insert(name, operation.call(&mut root, &arguments).unwrap());
    }
    called.sort_unstable();
    let mut known: Vec<_> = TABLE.iter().map(|operation| operation.name).collect();
    known.sort_unstable();
    assert_eq!(called, known);
    assert_eq!(answers["cat"], Value::Bytes(b"one three\n".to_vec()));
    assert_eq!(answers["edit"], Value::Changed(true));
    let Value::Files(files) = &answers["stat"] else { panic!() };
    assert_eq!((files[0].mode, files[0].uid, files[0].gid), (0o600, 1000, 1001));
    let Value::Files(files) = &answers["find"] else { panic!() };
    let paths: Vec<_> = files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(paths, ["/a/b", "/a/b/g", "/a/f", "/a/in", "/a/l"]);
    assert_eq!(fs::read(output).unwrap(), b"in");
    assert!(!root.exists("/a"));
}

#[test]
fn a_new_owner_takes_set_id_bits_away() {
    let mut root = tree();
    let owner = ops::Owner { uid: Some(5), gid: None };
    ops::chown(&mut root, b"/srv/www", owner, true, true).unwrap();
    let tool = root.metadata("/srv/www/tool").unwrap();
    assert_eq!((tool.mode, tool.uid, tool.gid), (0o755, 5, 34));
    assert_eq!(root.symlink_metadata("/srv/www/link").unwrap().uid, 5);
    ops::chmod(&mut root, b"/srv/www", "go-rwx", true).unwrap();
    assert_eq!(root.metadata("/srv/www/deep").unwrap().mode, 0o700);
}
