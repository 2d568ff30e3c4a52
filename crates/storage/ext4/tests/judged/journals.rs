//! Volumes caught in the middle of being used: what the journal holds counts.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use vmwright_ext4::{Ext4, Options};
use vmwright_judges::{Mount, can_mount, need, skip};
use vmwright_vfs::FileSystem;

use crate::images::{Image, named};
use crate::populate::noise;
use crate::tree;

/// Copies an image while the kernel has it mounted and has committed `work`, but not written it in place.
fn caught(kind: &str, options: &str, work: impl FnOnce(&Path) -> Vec<File>) -> Image {
    let image = Image::make(named(kind), 64);
    let mount = Mount::new(image.path(), &format!("noatime,{options}"));
    let open = work(mount.path());
    // The commit is made by syncing one file; syncing the volume would also empty the journal in time.
    let last = File::create(mount.path().join("last")).unwrap();
    last.sync_all().unwrap();
    let copy = image.copy();
    drop(open);
    copy
}

/// Fails unless reading the dirty image shows what the kernel shows after recovery, and opening it for writing
/// leaves a volume that is sound and shows the same.
fn recovers_like_the_kernel(dirty: &Image, when: &str) {
    let before = std::fs::read(dirty.path()).unwrap();
    let read = tree::of_ours(&dirty.open());
    assert!(std::fs::read(dirty.path()).unwrap() == before, "{when}: reading changed the image");
    let recovered = dirty.copy();
    let kernel = tree::of_kernel(Mount::new(recovered.path(), "noatime").path());
    assert!(kernel.len() > 3, "{when}");
    tree::assert_equal(&read, &kernel, &format!("{when}, read"));
    let mut volume = Ext4::open(dirty.disk(false), Options::writable()).unwrap();
    tree::assert_equal(&tree::of_ours(&volume), &kernel, &format!("{when}, opened for writing"));
    volume.sync().unwrap();
    drop(volume);
    dirty.assert_sound(when);
    // A journal superblock left with a wrong checksum shows at the second mount, not at the first.
    for _ in 0..2 {
        let mount = Mount::new(dirty.path(), "noatime");
        tree::assert_equal(&read, &tree::of_kernel(mount.path()), &format!("{when}, by the kernel"));
    }
    dirty.assert_sound(when);
}

/// Many small changes over several transactions: names made, removed, made again, and blocks freed in between.
fn busy(top: &Path) -> Vec<File> {
    for round in 0..6_u64 {
        let dir = top.join(format!("round-{round}"));
        std::fs::create_dir(&dir).unwrap();
        for number in 0..120 {
            std::fs::write(dir.join(format!("file-{number}")), noise(number, 3000)).unwrap();
            std::fs::create_dir(dir.join(format!("dir-{number}"))).unwrap();
        }
        File::create(top.join("marker")).unwrap().sync_all().unwrap();
        // Directories that were journalled and are freed must be revoked before file data reuses their blocks.
        for number in 0..120 {
            std::fs::remove_dir(dir.join(format!("dir-{number}"))).unwrap();
        }
        let reuse = File::create(dir.join("reuse")).unwrap();
        reuse.write_all_at(&noise(round, 900_000), 0).unwrap();
        reuse.sync_all().unwrap();
    }
    Vec::new()
}

#[test]
fn dirty_journals_are_followed_and_replayed_as_the_kernel_does() {
    need!("mke2fs", "e2fsck", "debugfs");
    if !can_mount() {
        skip!("mounting is not allowed here");
    }
    let cases = [
        ("default", "commit=300"),
        ("1k", "commit=300"),
        ("ext3", "commit=300"),
        ("32bit", "commit=300"),
        ("seed", "commit=300"),
        ("uninit", "commit=300,journal_checksum"),
        ("uninit", "commit=300,data=writeback,journal_async_commit"),
        ("default", "commit=300,data=writeback,journal_async_commit"),
        ("default", "commit=300,data=journal"),
        ("1k", "commit=300,data=journal"),
        ("plain", "commit=300,nodelalloc"),
        ("inline", "commit=300"),
        ("meta_bg", "commit=300"),
    ];
    for (kind, options) in cases {
        let dirty = caught(kind, options, busy);
        recovers_like_the_kernel(&dirty, &format!("{kind} with {options}"));
    }
}

#[test]
fn content_that_looks_like_the_journal_is_unescaped() {
    need!("mke2fs", "e2fsck", "debugfs");
    if !can_mount() {
        skip!("mounting is not allowed here");
    }
    let mut content = noise(1, 4096 * 8);
    for block in content.chunks_mut(4096) {
        block[..4].copy_from_slice(&[0xc0, 0x3b, 0x39, 0x98]);
    }
    let dirty = caught("default", "commit=300,data=journal", |top| {
        std::fs::write(top.join("escaped"), &content).unwrap();
        Vec::new()
    });
    recovers_like_the_kernel(&dirty, "escaped blocks");
}

#[test]
fn files_removed_while_open_are_cleaned_up() {
    need!("mke2fs", "e2fsck", "debugfs");
    if !can_mount() {
        skip!("mounting is not allowed here");
    }
    for kind in ["default", "1k", "ext3", "orphan_file", "inline"] {
        let dirty = caught(kind, "commit=300", |top| {
            let mut open = Vec::new();
            for number in 0..40 {
                let path = top.join(format!("orphan-{number}"));
                let mut file = File::create(&path).unwrap();
                file.write_all(&noise(number, 2500 * number as usize)).unwrap();
                rustix::fs::setxattr(
                    &path,
                    "user.large",
                    &noise(number, 700),
                    rustix::fs::XattrFlags::empty(),
                )
                .ok();
                std::fs::remove_file(path).unwrap();
                open.push(file);
            }
            std::fs::write(top.join("stays"), noise(7, 9000)).unwrap();
            open
        });
        recovers_like_the_kernel(&dirty, &format!("orphans on {kind}"));
    }
}

#[test]
fn a_torn_last_transaction_is_dropped() {
    need!("mke2fs", "e2fsck", "debugfs");
    if !can_mount() {
        skip!("mounting is not allowed here");
    }
    let dirty = caught("default", "commit=300", busy);
    let log =
        vmwright_judges::run("debugfs", ["-R".as_ref(), "logdump -a".as_ref(), dirty.path().as_os_str()]);
    // "Found expected sequence 9, type 2 (commit block) at block 57"
    let mut commits = log.lines().filter(|line| line.contains("(commit block)"));
    let last: u64 = commits.next_back().unwrap().rsplit(' ').next().unwrap().parse().unwrap();
    let blocks = vmwright_judges::run(
        "debugfs",
        ["-R".as_ref(), format!("bmap <8> {last}").as_ref(), dirty.path().as_os_str()],
    );
    let block: u64 = blocks.trim().parse().unwrap();
    let file = File::options().write(true).open(dirty.path()).unwrap();
    file.write_all_at(&[0; 4096], block * 4096).unwrap();
    let read = tree::of_ours(&dirty.open());
    assert!(!read.contains_key(&b"/last"[..]), "the dropped transaction made this file");
    recovers_like_the_kernel(&dirty, "torn");
}

/// Changes that are each made durable by a fast commit.
fn quick(top: &Path) -> Vec<File> {
    let dir = top.join("quick");
    std::fs::create_dir(&dir).unwrap();
    let grows = File::create(dir.join("grows")).unwrap();
    for name in ["cut", "punched", "removed", "renamed", "moved", "linked", "overwritten"] {
        std::fs::write(dir.join(name), noise(1, 50_000)).unwrap();
        // The kernel's replay leaves the attributes of what was removed to whatever takes its inode.
        if name != "removed" {
            let none = rustix::fs::XattrFlags::empty();
            rustix::fs::setxattr(dir.join(name), "user.kept", b"not told by fast commits", none).unwrap();
        }
    }
    for name in ["tiny", "tiny-grown"] {
        std::fs::write(dir.join(name), noise(1, 50)).unwrap();
    }
    // A full commit, so that what follows can be a fast one.
    rustix::fs::syncfs(&grows).unwrap();
    let durable = |name: &str| {
        let file =
            File::options().read(true).write(true).create(true).truncate(false).open(dir.join(name)).unwrap();
        file.sync_all().unwrap();
        file
    };
    for round in 0..5 {
        grows.write_all_at(&noise(round, 9000), round * 30_000).unwrap();
        grows.sync_all().unwrap();
        durable(&format!("new-{round}")).write_all_at(&noise(round, 5000), 0).unwrap();
        durable(&format!("new-{round}"));
    }
    durable("tiny").write_all_at(&noise(2, 70), 3).unwrap();
    durable("tiny");
    durable("tiny-grown").write_all_at(&noise(3, 6000), 10).unwrap();
    durable("tiny-grown");
    durable("tiny-new").write_all_at(&noise(4, 80), 0).unwrap();
    durable("tiny-new");
    durable("cut").set_len(10_000).unwrap();
    durable("cut");
    durable("overwritten").write_all_at(&noise(9, 20_000), 40_000).unwrap();
    durable("overwritten");
    std::fs::remove_file(dir.join("removed")).unwrap();
    std::fs::rename(dir.join("renamed"), dir.join("other name")).unwrap();
    std::fs::rename(dir.join("moved"), top.join("moved")).unwrap();
    std::fs::hard_link(dir.join("linked"), dir.join("linked again")).unwrap();
    std::fs::create_dir(dir.join("subdirectory")).unwrap();
    std::fs::write(dir.join("subdirectory/file"), noise(4, 3000)).unwrap();
    durable("linked");
    Vec::new()
}

#[test]
fn fast_commits_are_followed_and_replayed_as_the_kernel_does() {
    need!("mke2fs", "e2fsck", "debugfs");
    if !can_mount() {
        skip!("mounting is not allowed here");
    }
    for kind in ["fast_commit", "fast_commit_meta_bg", "fast_commit_inline", "bigalloc_64k"] {
        let dirty = caught(kind, "commit=300", quick);
        let settled = |tree| settled(tree, kind.starts_with("bigalloc"));
        let log = ["-R".as_ref(), "logdump -a".as_ref(), dirty.path().as_os_str()];
        let log = vmwright_judges::run("debugfs", log);
        assert!(log.contains("tag TAIL"), "the kernel made no fast commits: {log}");
        let before = std::fs::read(dirty.path()).unwrap();
        let read = settled(tree::of_ours(&dirty.open()));
        assert!(std::fs::read(dirty.path()).unwrap() == before, "reading changed the image");
        let recovered = dirty.copy();
        let mut kernel = settled(tree::of_kernel(Mount::new(recovered.path(), "noatime").path()));
        if kind == "fast_commit_inline" {
            // The kernel's replay forgets content that outgrew its inode.
            let path = &b"/quick/tiny-grown"[..];
            let grown = [&noise(1, 50)[..10], &noise(3, 6000)].concat();
            assert_eq!(read[path].content, tree::Content::Hash(blake3::hash(&grown)));
            kernel.insert(path.to_vec(), read[path].clone());
        }
        tree::assert_equal(&read, &kernel, "read");
        let mut volume = Ext4::open(dirty.disk(false), Options::writable()).unwrap();
        volume.sync().unwrap();
        tree::assert_equal(&settled(tree::of_ours(&volume)), &kernel, "opened for writing");
        drop(volume);
        dirty.assert_sound("after fast commits");
        for _ in 0..2 {
            let mount = Mount::new(dirty.path(), "noatime");
            tree::assert_equal(&read, &settled(tree::of_kernel(mount.path())), "by the kernel");
        }
        dirty.assert_sound("after the kernel mounted it");
    }
}

/// A tree without what the kernel's own replay of fast commits gets wrong: times of directories become those of
/// the mount, and a new directory's links and space are not counted, which e2fsck would put right. On volumes of clusters
/// it counts the space of files in blocks, which e2fsck calls wrong too.
fn settled(mut tree: tree::Tree, clusters: bool) -> tree::Tree {
    for node in tree.values_mut() {
        if clusters {
            node.allocated = 0;
        }
        if node.file_type == vmwright_vfs::FileType::Directory {
            (node.links, node.allocated) = (0, 0);
            (node.accessed, node.modified) = ((0, 0), (0, 0));
        }
        node.changed = (0, 0);
    }
    tree
}
