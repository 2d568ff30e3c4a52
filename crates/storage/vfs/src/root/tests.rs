use std::ops::ControlFlow;

use super::Root;
use crate::memory::MemoryFs;
use crate::{
    ErrorKind, FileSystem, FileType, NewNode, NodeKind, RenameMode, SetAttributes, Timestamp, XattrMode,
};

fn node(kind: NodeKind) -> NewNode {
    NewNode { kind, mode: 0o755, uid: 0, gid: 0 }
}

fn symlink(root: &mut Root, path: &str, target: &str) {
    root.create(path, &node(NodeKind::Symlink(target.into()))).unwrap();
}

/// `/etc/passwd`, `/usr/lib/os-release`, and links among them.
fn tree() -> Root {
    let mut root = Root::new(Box::new(MemoryFs::default()));
    for dir in ["/etc", "/usr/lib", "/var/log", "/home/user"] {
        root.create_dir_all(dir, 0o755).unwrap();
    }
    root.write_file("/etc/passwd", b"root").unwrap();
    root.write_file("/usr/lib/os-release", b"ID=test").unwrap();
    symlink(&mut root, "/lib", "usr/lib");
    symlink(&mut root, "/etc/os-release", "../usr/lib/os-release");
    root
}

fn kind<T>(result: crate::Result<T>) -> ErrorKind {
    result.err().expect("an error").kind()
}

#[test]
fn absolute_and_relative_links_resolve_inside_the_guest() {
    let mut root = tree();
    symlink(&mut root, "/home/user/absolute", "/etc/passwd");
    symlink(&mut root, "/home/user/relative", "../../etc/passwd");
    symlink(&mut root, "/home/user/chain", "absolute");
    for name in ["absolute", "relative", "chain"] {
        let path = format!("/home/user/{name}");
        assert_eq!(root.read_file(&path, 100).unwrap(), b"root");
        assert_eq!(root.resolve(&path, true).unwrap().path, b"/etc/passwd");
        assert_eq!(root.resolve(&path, false).unwrap().path, path.as_bytes());
    }
    assert_eq!(root.read_file("/etc/os-release", 100).unwrap(), b"ID=test");
    assert_eq!(root.read_file("lib/os-release", 100).unwrap(), b"ID=test");
    assert_eq!(root.read_link("/lib").unwrap(), b"usr/lib");
    assert_eq!(kind(root.read_link("/etc")), ErrorKind::InvalidInput);
}

#[test]
fn dot_dot_never_leaves_the_guest() {
    let mut root = tree();
    symlink(&mut root, "/escape", "../../../../../../../etc/passwd");
    for path in ["/../../etc/passwd", "../etc/passwd", "/escape", "/etc/../../etc/./passwd"] {
        assert_eq!(root.read_file(path, 100).unwrap(), b"root", "{path}");
    }
    assert_eq!(root.resolve("/..", true).unwrap().path, b"/");
    // `..` after a link goes up from where the link leads, not from where it lies.
    assert_eq!(root.resolve("/lib/..", true).unwrap().path, b"/usr");
}

#[test]
fn loops_of_links_are_refused() {
    let mut root = tree();
    symlink(&mut root, "/a", "b");
    symlink(&mut root, "/b", "a");
    symlink(&mut root, "/self", "self/x");
    for path in ["/a", "/a/x", "/self"] {
        assert_eq!(kind(root.resolve(path, true)), ErrorKind::InvalidInput);
    }
    assert!(root.resolve("/a", false).is_ok());
}

#[test]
fn forty_links_are_followed_and_one_more_is_not() {
    let mut root = tree();
    symlink(&mut root, "/l0", "etc/passwd");
    for index in 1..=40 {
        symlink(&mut root, &format!("/l{index}"), &format!("l{}", index - 1));
    }
    assert!(root.resolve("/l39", true).is_ok());
    assert_eq!(kind(root.resolve("/l40", true)), ErrorKind::InvalidInput);
}

#[test]
fn a_trailing_slash_demands_a_directory_and_follows_links() {
    let root = tree();
    assert_eq!(root.resolve("/lib/", false).unwrap().path, b"/usr/lib");
    assert_eq!(root.resolve("//usr//lib//", true).unwrap().path, b"/usr/lib");
    assert_eq!(kind(root.resolve("/etc/passwd/", true)), ErrorKind::InvalidInput);
    assert_eq!(kind(root.resolve("/etc/passwd/x", true)), ErrorKind::InvalidInput);
    assert_eq!(kind(root.resolve("/etc/none/x", true)), ErrorKind::NotFound);
    assert_eq!(kind(root.resolve("", true)), ErrorKind::InvalidInput);
    assert_eq!(kind(root.resolve("/a\0b", true)), ErrorKind::InvalidInput);
}

#[test]
fn names_need_not_be_utf8() {
    let mut root = tree();
    root.write_file(b"/etc/\xff\xfe", b"odd").unwrap();
    assert_eq!(root.read_file(b"/etc/\xff\xfe", 3).unwrap(), b"odd");
    assert!(root.read_dir("/etc").unwrap().iter().any(|entry| entry.name == b"\xff\xfe"));
}

#[test]
fn reading_is_bounded_and_only_of_regular_files() {
    let mut root = tree();
    assert_eq!(kind(root.read_file("/etc/passwd", 3)), ErrorKind::Unsupported);
    assert_eq!(kind(root.read_file("/etc", 100)), ErrorKind::InvalidInput);
    root.create("/fifo", &node(NodeKind::Fifo)).unwrap();
    assert_eq!(kind(root.read_file("/fifo", 100)), ErrorKind::InvalidInput);
    assert_eq!(kind(root.read_file("/none", 100)), ErrorKind::NotFound);
}

#[test]
fn a_listing_is_sorted() {
    let names: Vec<_> = tree().read_dir("/").unwrap().into_iter().map(|entry| entry.name).collect();
    let expected: [&[u8]; 5] = [b"etc", b"home", b"lib", b"usr", b"var"];
    assert_eq!(names, expected);
}

fn walked(root: &Root, path: &str) -> Vec<String> {
    let mut paths = Vec::new();
    root.walk(path, &mut |entry| {
        paths.push(String::from_utf8(entry.path.clone()).unwrap());
        ControlFlow::Continue(())
    })
    .unwrap();
    paths
}

#[test]
fn paths_cross_into_mounts_and_back_out() {
    let mut root = tree();
    let mut data = MemoryFs::default();
    let dir = data.create(data.root(), b"dir", &node(NodeKind::Directory)).unwrap();
    data.create(dir, b"up", &node(NodeKind::Symlink(b"../../../etc/passwd".to_vec()))).unwrap();
    let id = root.mount("/var/log/", Box::new(data)).unwrap();
    assert_eq!(root.mount_path(id), b"/var/log");
    assert_eq!(root.resolve("/var/log", true).unwrap().location.mount, id);
    assert_eq!(root.resolve("/var/log/..", true).unwrap().path, b"/var");
    assert_eq!(root.resolve("/var/log/dir/../..", true).unwrap().location.mount, super::MountId(0));
    assert_eq!(root.read_file("/var/log/dir/up", 10).unwrap(), b"root");
    assert_eq!(walked(&root, "/var"), ["/var/log", "/var/log/dir", "/var/log/dir/up"]);
    assert_eq!(kind(root.remove_all("/var/log")), ErrorKind::InUse);
    assert_eq!(kind(root.remove_all("/var")), ErrorKind::InUse);
    assert_eq!(kind(root.rename("/etc/passwd", "/var/log/x", RenameMode::Replace)), ErrorKind::Unsupported);
    assert_eq!(kind(root.link("/etc/passwd", "/var/log/x")), ErrorKind::Unsupported);
}

#[test]
fn replacing_content_keeps_everything_but_content_and_times() {
    let mut root = tree();
    root.set_now(Timestamp { seconds: 100, nanoseconds: 5 });
    let location = root.resolve("/etc/passwd", true).unwrap().location;
    let attributes = SetAttributes { mode: Some(0o4640), uid: Some(7), gid: Some(8), ..Default::default() };
    root.set_attributes("/etc/passwd", &attributes, true).unwrap();
    let fs = root.filesystem_mut(location.mount);
    fs.set_xattr(location.inode, b"security.selinux", b"label", XattrMode::Create).unwrap();
    root.link("/etc/passwd", "/etc/second").unwrap();
    symlink(&mut root, "/etc/through", "passwd");
    let before = root.metadata("/etc/passwd").unwrap();
    root.set_now(Timestamp { seconds: 200, nanoseconds: 6 });
    assert_eq!(root.write_file("/etc/through", b"new").unwrap(), location);
    let after = root.metadata("/etc/passwd").unwrap();
    assert_eq!((after.mode, after.uid, after.gid, after.links), (0o4640, 7, 8, 2));
    assert_eq!((after.created, after.accessed), (before.created, before.accessed));
    assert_eq!(after.modified.seconds, 200);
    assert_eq!(root.read_file("/etc/second", 10).unwrap(), b"new");
    let fs = root.filesystem(location.mount);
    assert_eq!(fs.xattr(location.inode, b"security.selinux").unwrap(), b"label");
}

#[test]
fn writing_through_a_dangling_link_makes_its_target_inside_the_guest() {
    let mut root = tree();
    symlink(&mut root, "/etc/dangling", "../../../usr/lib/made");
    root.write_file("/etc/dangling", b"x").unwrap();
    assert_eq!(root.read_file("/usr/lib/made", 1).unwrap(), b"x");
    assert_eq!(kind(root.create("/etc/dangling", &node(NodeKind::Regular))), ErrorKind::Exists);
    assert_eq!(kind(root.write_file("/etc/none/x", b"")), ErrorKind::NotFound);
    assert_eq!(kind(root.write_file("/etc/slash/", b"")), ErrorKind::InvalidInput);
}

#[test]
fn parents_are_made_through_links_and_existing_ones_kept() {
    let mut root = tree();
    root.create_dir_all("/lib/a/../b//c/", 0o700).unwrap();
    assert!(root.is_dir("/usr/lib/a") && root.is_dir("/usr/lib/b/c"));
    assert_eq!(root.metadata("/usr/lib/b").unwrap().mode, 0o700);
    assert_eq!(root.metadata("/usr").unwrap().mode, 0o755);
    assert_eq!(kind(root.create_dir_all("/etc/passwd/x", 0o755)), ErrorKind::InvalidInput);
}

#[test]
fn removing_a_tree_does_not_follow_links() {
    let mut root = tree();
    root.create_dir_all("/home/user/a/b", 0o755).unwrap();
    root.write_file("/home/user/a/b/file", b"").unwrap();
    symlink(&mut root, "/home/user/a/out", "/etc");
    assert_eq!(kind(root.remove("/home/user")), ErrorKind::InvalidInput);
    root.remove_all("/home/user").unwrap();
    assert!(walked(&root, "/home").is_empty());
    assert!(root.exists("/etc/passwd"));
    root.remove_all("/lib").unwrap();
    assert!(root.exists("/usr/lib/os-release"));
    for path in ["/", "/etc/..", "/etc/."] {
        assert_eq!(kind(root.remove_all(path)), ErrorKind::InvalidInput, "{path}");
    }
}

#[test]
fn a_directory_cannot_move_into_itself() {
    let mut root = tree();
    assert_eq!(kind(root.rename("/usr", "/usr/lib/usr", RenameMode::Replace)), ErrorKind::InvalidInput);
    root.rename("/usr/lib/os-release", "/etc/moved", RenameMode::NoReplace).unwrap();
    assert_eq!(root.read_file("/etc/moved", 10).unwrap(), b"ID=test");
    assert_eq!(root.symlink_metadata("/lib").unwrap().file_type, FileType::Symlink);
}

#[test]
fn an_error_names_the_path() {
    assert_eq!(tree().read_file("/x/y", 1).unwrap_err().to_string(), "/x/y: no such file or directory");
}

#[test]
fn names_that_would_change_a_path_are_corrupt() {
    for name in [&b".."[..], b".", b"", b"a/b", b"../../etc", b"a\0"] {
        let mut fs = MemoryFs::default();
        let file = fs.create(fs.root(), b"file", &node(NodeKind::Regular)).unwrap();
        fs.force_name(fs.root(), name, file);
        assert_eq!(kind(Root::new(Box::new(fs)).read_dir("/")), ErrorKind::Corrupt);
    }
}

#[test]
fn a_directory_within_itself_ends_a_walk() {
    let mut fs = MemoryFs::default();
    let dir = fs.create(fs.root(), b"dir", &node(NodeKind::Directory)).unwrap();
    fs.force_name(dir, b"again", dir);
    let mut root = Root::new(Box::new(fs));
    assert_eq!(kind(root.walk("/", &mut |_| ControlFlow::Continue(()))), ErrorKind::Corrupt);
    assert_eq!(kind(root.remove_all("/dir")), ErrorKind::Corrupt);
}
