//! What becomes of volumes that we made: in the kernel's hands, in those of e2fsprogs, and on disks that held something.

use std::path::Path;
use std::sync::Arc;

use vmwright_disk::{Disk, MemDisk};
use vmwright_ext4::make::{Content, MakeOptions, add_journal_user, fit, make};
use vmwright_ext4::{ErrorKind, Ext4, Options};
use vmwright_judges::{Mount, can_mount, need, output, run, skip};
use vmwright_vfs::{FileSystem, NewNode, NodeKind};

use crate::making::{Folder, ID, assert_sound, open, options, ours};
use crate::populate;

/// Kinds of volumes that kernels mount.
const KINDS: &[&str] = &[
    "",
    "type=ext2",
    "type=ext3",
    "block_size=1K",
    "features=^flex_bg,^64bit",
    "features=bigalloc block_size=4K",
    "features=meta_bg,^resize_inode",
    "features=sparse_super2,^resize_inode",
    "features=^metadata_csum,uninit_bg",
    "features=inline_data,ea_inode",
    "features=fast_commit journal_size=8M",
    "features=^has_journal inode_size=1024",
    "packed_meta_blocks=on",
    "lazy_itable_init=on lazy_journal_init=on",
    "features=large_dir,stable_inodes",
];

#[test]
fn kernels_fill_what_we_make() {
    need!("mke2fs", "tune2fs");
    if !can_mount() {
        skip!("mounting is not allowed here");
    }
    let folder = Folder::new();
    for words in KINDS {
        let path = folder.image("volume", 128 << 20);
        ours(&path, &format!("inodes=8000 {words}"));
        populate::everything(Mount::new(&path, "noatime").path(), 300);
        assert_sound(&path, words);
        run("tune2fs", ["-l".as_ref(), path.as_os_str()]);
        let volume = Ext4::open(open(&path), Options::writable());
        volume.unwrap_or_else(|error| panic!("{words}: {error}"));
    }
}

#[test]
fn resize2fs_grows_and_shrinks_what_we_make() {
    need!("resize2fs");
    let folder = Folder::new();
    for words in KINDS.iter().step_by(2).filter(|words| !words.contains("bigalloc")) {
        let path = folder.image("volume", 200 << 20);
        ours(&path, &format!("length=70M inodes=2000 {words}"));
        for size in ["200M", "60M"] {
            if size == "60M" && words.contains("stable_inodes") {
                continue;
            }
            run("resize2fs", [path.as_os_str(), size.as_ref()]);
            assert_sound(&path, &format!("{words} at {size}"));
        }
    }
}

/// A disk full of what looks like data, with signatures of others at their places.
fn dirty(len: u64) -> Arc<MemDisk> {
    let disk = Arc::new(MemDisk::from_bytes(populate::noise(7, len as usize)));
    let marks: [(u64, &[u8]); 8] = [
        (0, b"XFSB"),
        (512, b"EFI PART"),
        (0x218, b"LVM2 001"),
        (4096, &[0xfc, 0x4e, 0x2b, 0xa9]),
        (65536 + 64, b"_BHRfS_M"),
        ((64 << 20) + 64, b"_BHRfS_M"),
        (8193 * 1024 + 56, &[0x53, 0xef]),
        (len - 65536, &[0xfc, 0x4e, 0x2b, 0xa9]),
    ];
    for (at, mark) in marks {
        disk.write_at(mark, at).unwrap();
    }
    disk
}

#[test]
fn what_a_disk_held_does_not_matter() {
    need!("e2fsck", "wipefs");
    let folder = Folder::new();
    for words in ["", "type=ext2", "features=bigalloc lazy_itable_init=on"] {
        let disk = dirty(66 << 20);
        make(disk.clone(), &options(&format!("discard=off {words}"))).unwrap();
        let path = folder.image("volume", 0);
        std::fs::write(&path, disk.to_bytes()).unwrap();
        assert_sound(&path, words);
        let told = output("wipefs", ["--parsable".as_ref(), path.as_os_str()]);
        let told = String::from_utf8(told.stdout).unwrap();
        let found: Vec<&str> = told.lines().filter(|line| !line.starts_with('#')).collect();
        assert!(found.len() == 1 && found[0].starts_with("0x438,"), "{words}: {told}");
        let mut mark = [0; 8];
        disk.read_at(&mut mark, (64 << 20) + 64).unwrap();
        assert_ne!(&mark, b"_BHRfS_M");
    }
}

#[test]
fn equal_options_make_equal_bytes() {
    for words in ["", "type=ext3", "features=quota,bigalloc,mmp,casefold"] {
        let bytes = |content: u8| {
            let disk = Arc::new(MemDisk::from_bytes(vec![content; 40 << 20]));
            make(disk.clone(), &options(words)).unwrap();
            disk.to_bytes()
        };
        assert!(bytes(0) == bytes(0), "{words}");
        let mut other = options(words);
        other.now.seconds += 1;
        let disk = Arc::new(MemDisk::new(40 << 20));
        make(disk.clone(), &other).unwrap();
        assert!(disk.to_bytes() != bytes(0), "{words}: the time is told");
    }
}

#[test]
fn what_cannot_be_made_is_refused_and_changes_nothing() {
    const MIB: u64 = 1 << 20;
    for (len, words, named) in [
        (16 << 10, "", "length"),
        (8 * MIB, "length=9M", "length"),
        (64 * MIB, "block_size=3000", "block_size"),
        (64 * MIB, "block_size=128K", "block_size"),
        (64 * MIB, "cluster_size=64K", "cluster_size"),
        (64 * MIB, "features=bigalloc cluster_size=1K block_size=4K", "cluster_size"),
        (64 * MIB, "features=bigalloc,^extent,^64bit", "bigalloc"),
        (64 * MIB, "blocks_per_group=100", "blocks_per_group"),
        (64 * MIB, "blocks_per_group=1001", "blocks_per_group"),
        (64 * MIB, "features=^flex_bg flex_bg_size=16", "flex_groups"),
        (64 * MIB, "flex_bg_size=12", "flex_groups"),
        (64 * MIB, "inode_size=100", "inode_size"),
        (64 * MIB, "inode_size=8192 block_size=4K", "inode_size"),
        (64 * MIB, "inode_size=128 features=project", "inode_size"),
        (64 * MIB, "inode_size=128 features=inline_data", "inode_size"),
        (64 * MIB, "inode_ratio=100", "inode_ratio"),
        (64 * MIB, "inodes=4000000", "inodes"),
        (64 * MIB, "features=^64bit desc_size=64", "descriptor_size"),
        (64 * MIB, "desc_size=96", "descriptor_size"),
        (64 * MIB, "reserved_percent=51", "reserved_percent"),
        (64 * MIB, "journal_size=100K", "journal_size"),
        (64 * MIB, "journal_size=60M", "journal_size"),
        (MIB, "journal_size=4M", "journal_size"),
        (64 * MIB, "fast_commit_size=1M", "fast_commit_size"),
        (64 * MIB, "journal_location=9999999", "journal_location"),
        (64 * MIB, "features=^has_journal orphan_file_size=1M", "orphan_file_size"),
        (64 * MIB, "encoding_flags=strict", "encoding_flags"),
        (64 * MIB, "resize=32M", "resize_limit"),
        (64 * MIB, "num_backup_sb=3", "backups"),
        (64 * MIB, "label=more-than-sixteen-bytes", "label"),
        (64 * MIB, "features=mmp mmp_update_interval=301", "mmp_update_interval"),
        (64 * MIB, "stride=70000", "stride"),
        (MIB, "features=none,journal_dev block_size=4K", "length"),
    ] {
        let disk = Arc::new(MemDisk::from_bytes(populate::noise(3, len as usize)));
        let before = disk.to_bytes();
        let Err(error) = make(disk.clone(), &options(words)) else { panic!("{words}: it was made") };
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{words}: {error}");
        assert!(error.to_string().contains(named), "{words}: {error}");
        assert!(disk.to_bytes() == before, "{words}: the disk was changed");
    }
    let folder = Folder::new();
    let huge = open(&folder.image("huge", 17 << 40));
    let error = make(huge.clone(), &options("features=^64bit block_size=4K")).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("64bit"), "{error}");
    let error = make(huge, &options("blocks_per_group=256 block_size=4K")).map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
}

/// What dumpe2fs tells of a superblock, without what need not be equal.
fn head(path: &Path) -> String {
    let told = output("dumpe2fs", ["-h".as_ref(), path.as_os_str()]);
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    let ignored = |line: &&str| !line.starts_with("Checksum:") && !line.starts_with("Lifetime");
    told.lines().filter(ignored).map(|line| line.to_owned() + "\n").collect()
}

#[test]
fn journals_have_devices_of_their_own() {
    need!("mke2fs", "dumpe2fs", "e2fsck");
    let folder = Folder::new();
    for (words, args) in [
        ("block_size=4K", "-b 4096 -t ext4 -O journal_dev"),
        ("block_size=1K", "-b 1024 -t ext4 -O journal_dev"),
        ("type=ext3 block_size=4K", "-b 4096 -t ext3 -O journal_dev"),
    ] {
        let (a, b) = (folder.image("ours", 16 << 20), folder.image("theirs", 16 << 20));
        ours(&a, &format!("features=journal_dev label=log {words}"));
        folder.theirs(&b, &format!("{args} -L log"), "");
        assert_eq!(head(&a), head(&b), "{words}");

        let volume = folder.image("volume", 64 << 20);
        ours(&volume, &format!("journal_device={ID} {words}"));
        for _ in 0..2 {
            add_journal_user(&*open(&a), ID.parse().unwrap()).unwrap();
        }
        assert!(head(&a).contains("Journal users:"), "{}", head(&a));
        let args = ["-fn".as_ref(), "-j".as_ref(), a.as_os_str(), volume.as_os_str()];
        let told = output("e2fsck", args);
        assert_eq!(told.status.code(), Some(0), "{}", String::from_utf8_lossy(&told.stdout));
    }
    let error = add_journal_user(&*open(&folder.image("none", 1 << 20)), ID.parse().unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

#[test]
fn the_root_directory_bears_its_label() {
    need!("e2fsck");
    let folder = Folder::new();
    let path = folder.image("volume", 16 << 20);
    ours(&path, "root_selinux=system_u:object_r:root_t:s0 root_owner=70000:3 root_perms=1770");
    assert_sound(&path, "labelled");
    let volume = Ext4::open(open(&path), Options::default()).unwrap();
    let label = volume.xattr(volume.root(), b"security.selinux").unwrap();
    assert_eq!(label, b"system_u:object_r:root_t:s0");
    let root = volume.metadata(volume.root()).unwrap();
    assert_eq!((root.uid, root.gid, root.mode), (70000, 3, 0o1770));
}

/// Puts files of these lengths into directories of 500, and answers what that takes.
fn fill(lengths: &[u64], words: &str) -> (Content, Vec<(u64, u64)>) {
    let mut content = Content::for_options(&options(words)).unwrap();
    let mut files = Vec::new();
    for (number, chunk) in (0_u64..).zip(lengths.chunks(500)) {
        content.add_directory(chunk.iter().map(|_| 12));
        for len in chunk {
            content.add_file(*len);
            files.push((number, *len));
        }
    }
    (content, files)
}

fn write_all(volume: &mut Ext4, files: &[(u64, u64)]) {
    let node = |kind| NewNode { kind, mode: 0o755, uid: 0, gid: 0 };
    let root = volume.root();
    let mut folder = None;
    for (index, (number, len)) in files.iter().enumerate() {
        let dir = match folder {
            Some((known, dir)) if known == *number => dir,
            _ => volume.create(root, format!("d{number}").as_bytes(), &node(NodeKind::Directory)).unwrap(),
        };
        folder = Some((*number, dir));
        let name = format!("file{index:08}");
        let file = volume.create(dir, name.as_bytes(), &node(NodeKind::Regular)).unwrap();
        let bytes = populate::noise(index as u64, *len as usize);
        volume
            .write_at(file, &bytes, 0)
            .unwrap_or_else(|error| panic!("file {index} of {}: {error}", files.len()));
    }
    volume.sync().unwrap();
}

#[test]
fn content_fits_and_little_is_left() {
    need!("e2fsck", "resize2fs");
    let many: Vec<u64> = (0..1500_u64).map(|number| number * 7919 % 20_000).collect();
    let few: Vec<u64> = vec![20 << 20, 5 << 20, 0, 100];
    let folder = Folder::new();
    for (words, lengths) in [
        ("", &many),
        ("", &few),
        ("features=^has_journal", &many),
        ("type=ext2", &few),
        ("type=ext3 block_size=1K", &many),
        ("features=bigalloc cluster_size=16K", &few),
    ] {
        let (content, files) = fill(lengths, words);
        let fitted: MakeOptions = fit(&content, &options(words), 0.0).unwrap();
        let len = fitted.length.unwrap();
        let path = folder.image("volume", len);
        let made = make(open(&path), &fitted).unwrap();
        assert!(made.free_blocks >= content.blocks() && u64::from(made.free_inodes) >= content.inodes());
        let mut volume = Ext4::open(open(&path), Options::writable()).unwrap();
        write_all(&mut volume, &files);
        drop(volume);
        assert_sound(&path, words);
        let told = output("resize2fs", ["-P".as_ref(), path.as_os_str()]);
        let told = String::from_utf8(told.stdout).unwrap();
        let least =
            told.trim().rsplit(' ').next().unwrap().parse::<u64>().unwrap() * u64::from(made.block_size);
        assert!(len <= least + least / 20, "{words}: {len} bytes, resize2fs says {least}");
        let wider = fit(&content, &options(words), 20.0).unwrap().length.unwrap();
        assert!(wider > len, "{words}: slack adds {wider} to {len}");
    }
}
