//! Reading volumes that mke2fs made, judged by what went into them.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use vmwright_disk::HostFile;
use vmwright_ext4::{Ext4, Options, is_ext};
use vmwright_judges::{need, run};
use vmwright_vfs::{FileSystem, FileType, InodeNumber};

fn make(image: &Path, tree: &Path, options: &[&str]) {
    std::fs::File::create(image).unwrap().set_len(64 << 20).unwrap();
    let mut args = vec!["-q", "-F", "-d", tree.to_str().unwrap()];
    args.extend(options);
    args.push(image.to_str().unwrap());
    run("mke2fs", args);
}

fn compare(volume: &Ext4, inode: InodeNumber, path: &Path) {
    let mut names = Vec::new();
    volume
        .read_dir(inode, &mut |entry| {
            names.push(entry.clone());
            ControlFlow::Continue(())
        })
        .unwrap();
    names.retain(|entry| entry.name != b"lost+found");
    assert_eq!(names.len(), std::fs::read_dir(path).unwrap().count(), "{}", path.display());
    for entry in names {
        assert_eq!(volume.lookup(inode, &entry.name).unwrap(), entry.inode);
        let path = path.join(std::str::from_utf8(&entry.name).unwrap());
        let metadata = volume.metadata(entry.inode).unwrap();
        assert_eq!(metadata.file_type, entry.file_type);
        match entry.file_type {
            FileType::Directory => compare(volume, entry.inode, &path),
            FileType::Symlink => {
                let target = std::fs::read_link(&path).unwrap();
                assert_eq!(volume.read_link(entry.inode).unwrap(), target.as_os_str().as_encoded_bytes());
            }
            _ => {
                let expected = std::fs::read(&path).unwrap();
                let mut content = vec![0; expected.len() + 1];
                assert_eq!(volume.read_at(entry.inode, &mut content, 0).unwrap(), expected.len());
                assert!(content[..expected.len()] == expected, "{}", path.display());
            }
        }
    }
}

#[test]
fn what_mke2fs_put_in_is_read_back() {
    need!("mke2fs");
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    std::fs::create_dir_all(tree.join("deep/er")).unwrap();
    std::fs::create_dir(tree.join("many")).unwrap();
    for i in 0..1500 {
        std::fs::write(tree.join(format!("many/file number {i}")), format!("{i}")).unwrap();
    }
    let big: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(tree.join("deep/big"), &big).unwrap();
    std::os::unix::fs::symlink("short", tree.join("deep/er/fast")).unwrap();
    std::os::unix::fs::symlink("l/".repeat(100), tree.join("deep/er/slow")).unwrap();
    let image = dir.path().join("image");
    for options in [
        &["-t", "ext4"][..],
        &["-t", "ext2"],
        &["-t", "ext3"],
        &["-t", "ext4", "-b", "1024"],
        &["-t", "ext2", "-b", "1024"],
        &["-t", "ext4", "-O", "^64bit"],
        &["-t", "ext4", "-O", "metadata_csum_seed"],
        &["-O", "^metadata_csum,uninit_bg", "-t", "ext4"],
        &["-t", "ext4", "-O", "meta_bg,^resize_inode"],
    ] {
        make(&image, &tree, options);
        let disk = Arc::new(HostFile::open(&image, true).unwrap());
        assert!(is_ext(&*disk));
        let volume = Ext4::open(disk, Options::default()).unwrap();
        compare(&volume, volume.root(), &tree);
    }
}
