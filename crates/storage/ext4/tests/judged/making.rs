//! Volumes that we make, held against those that mke2fs makes with the same options.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vmwright_disk::{Disk, HostFile};
use vmwright_ext4::make::{Made, MakeOptions, make};
use vmwright_judges::{need, output, run};

pub(crate) const ID: &str = "11112222-3333-4444-5555-666677778888";
const TIME: i64 = 1_700_000_000;

/// The configuration of mke2fs that e2fsprogs comes with; distributions change it.
const CONFIG: &str = "[defaults]
base_features = sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr
default_mntopts = acl,user_xattr
enable_periodic_fsck = 0
blocksize = 4096
inode_size = 256
inode_ratio = 16384
[fs_types]
ext3 = {
features = has_journal
}
ext4 = {
features = has_journal,extent,huge_file,flex_bg,metadata_csum,metadata_csum_seed,64bit,dir_nlink,extra_isize,orphan_file
}
small = {
blocksize = 1024
inode_ratio = 4096
}
floppy = {
blocksize = 1024
inode_ratio = 8192
}
big = {
inode_ratio = 32768
}
huge = {
inode_ratio = 65536
}
news = {
inode_ratio = 4096
}
largefile = {
inode_ratio = 1048576
blocksize = -1
}
largefile4 = {
inode_ratio = 4194304
blocksize = -1
}
hurd = {
blocksize = 4096
inode_size = 128
}
";

/// A length in MiB, our options, those of mke2fs, its extended options.
type Case = (u64, &'static str, &'static str, &'static str);

const CASES: &[Case] = &[
    (1, "", "-t ext4", ""),
    (2, "", "-t ext4", ""),
    (3, "", "-t ext4", ""),
    (8, "", "-t ext4", ""),
    (9, "", "-t ext4", ""),
    (64, "", "-t ext4", ""),
    (129, "", "-t ext4", ""),
    (511, "", "-t ext4", ""),
    (512, "", "-t ext4", ""),
    (1024, "", "-t ext4", ""),
    (1049, "", "-t ext4", ""),
    (5 << 10, "", "-t ext4", ""),
    (70 << 10, "", "-t ext4", ""),
    (64, "type=ext2", "-t ext2", ""),
    (1024, "type=ext2", "-t ext2", ""),
    (64, "type=ext3", "-t ext3", ""),
    (1024, "type=ext3", "-t ext3", ""),
    (3000, "type=ext3 block_size=1K", "-t ext3 -b 1024", ""),
    (136, "block_size=4K", "-t ext4 -b 4096", ""),
    (100, "block_size=1K", "-t ext4 -b 1024", ""),
    (100, "block_size=2K", "-t ext4 -b 2048", ""),
    (256, "block_size=8K", "-t ext4 -b 8192", ""),
    (500, "block_size=64K", "-t ext4 -b 65536", ""),
    (900, "block_size=64K", "-t ext4 -b 65536", ""),
    (1024, "features=^64bit", "-t ext4 -O ^64bit", ""),
    (1024, "features=^flex_bg", "-t ext4 -O ^flex_bg", ""),
    (1024, "features=^flex_bg,^resize_inode", "-t ext4 -O ^flex_bg,^resize_inode", ""),
    (1024, "features=meta_bg,^resize_inode", "-t ext4 -O meta_bg,^resize_inode", ""),
    (
        1024,
        "features=meta_bg,^resize_inode,^flex_bg block_size=1K",
        "-t ext4 -O meta_bg,^resize_inode,^flex_bg -b 1024",
        "",
    ),
    (1024, "features=bigalloc", "-t ext4 -O bigalloc", ""),
    (1024, "features=bigalloc cluster_size=1M", "-t ext4 -O bigalloc -C 1M", ""),
    (
        2048,
        "features=bigalloc,^resize_inode cluster_size=64K",
        "-t ext4 -O bigalloc,^resize_inode -C 64K",
        "",
    ),
    (1024, "features=bigalloc,^flex_bg", "-t ext4 -O bigalloc,^flex_bg", ""),
    (1024, "features=^metadata_csum", "-t ext4 -O ^metadata_csum", ""),
    (1024, "features=^metadata_csum,uninit_bg", "-t ext4 -O ^metadata_csum,uninit_bg", ""),
    (1024, "features=^has_journal", "-t ext4 -O ^has_journal", ""),
    (1024, "features=sparse_super2", "-t ext4 -O sparse_super2", ""),
    (
        1024,
        "features=sparse_super2,^resize_inode num_backup_sb=1",
        "-t ext4 -O sparse_super2,^resize_inode",
        "num_backup_sb=1",
    ),
    (
        1024,
        "features=sparse_super2,^resize_inode num_backup_sb=0",
        "-t ext4 -O sparse_super2,^resize_inode",
        "num_backup_sb=0",
    ),
    (1024, "features=^sparse_super,^resize_inode", "-t ext4 -O ^sparse_super,^resize_inode", ""),
    (1024, "features=quota", "-t ext4 -O quota", ""),
    (1024, "features=quota,project", "-t ext4 -O quota,project", ""),
    (
        1024,
        "features=quota quotatype=usr root_owner=1000:50",
        "-t ext4 -O quota",
        "quotatype=usr,root_owner=1000:50",
    ),
    (1024, "features=mmp mmp_update_interval=20", "-t ext4 -O mmp", "mmp_update_interval=20"),
    (1024, "features=inline_data", "-t ext4 -O inline_data", ""),
    (
        1024,
        "features=ea_inode,large_dir,encrypt,verity,stable_inodes",
        "-t ext4 -O ea_inode,large_dir,encrypt,verity,stable_inodes",
        "",
    ),
    (1024, "features=casefold", "-t ext4 -O casefold", ""),
    (1024, "encoding=utf8 encoding_flags=strict", "-t ext4", "encoding=utf8,encoding_flags=strict"),
    (1024, "features=fast_commit", "-t ext4 -O fast_commit", ""),
    (1024, "journal_size=16M", "-t ext4 -J size=16", ""),
    (1024, "journal_size=16M journal_location=100000", "-t ext4 -J size=16,location=100000", ""),
    (1024, "blocks_per_group=8192", "-t ext4 -g 8192", ""),
    (1024, "flex_bg_size=1", "-t ext4 -G 1", ""),
    (1024, "flex_bg_size=64 blocks_per_group=1024", "-t ext4 -G 64 -g 1024", ""),
    (3072, "flex_bg_size=4", "-t ext4 -G 4", ""),
    (1024, "inode_size=128", "-t ext4 -I 128", ""),
    (1024, "inode_size=1024", "-t ext4 -I 1024", ""),
    (1024, "inode_ratio=4096", "-t ext4 -i 4096", ""),
    (1024, "inode_ratio=1024 block_size=1K", "-t ext4 -i 1024 -b 1024", ""),
    (1024, "inodes=12", "-t ext4 -N 12", ""),
    (1024, "inodes=100000", "-t ext4 -N 100000", ""),
    (1024, "stride=16 stripe_width=64", "-t ext4", "stride=16,stripe_width=64"),
    (1024, "stride=16 features=^flex_bg", "-t ext4 -O ^flex_bg", "stride=16"),
    (1024, "resize=4G", "-t ext4", "resize=1048576"),
    (1024, "resize=1T", "-t ext4", "resize=268435456"),
    (1024, "desc_size=128", "-t ext4", "desc_size=128"),
    (1024, "packed_meta_blocks=on", "-t ext4", "packed_meta_blocks=1"),
    (1024, "label=hello last_mounted=/mnt root_owner=1:2", "-t ext4 -L hello -M /mnt", "root_owner=1:2"),
    (1024, "reserved_percent=1.5 errors=panic", "-t ext4 -m 1.5 -e panic", ""),
    (1024, "usage=news", "-t ext4 -T news", ""),
    (1024, "usage=largefile", "-t ext4 -T largefile", ""),
    (1024, "usage=largefile4", "-t ext4 -T largefile4", ""),
    (1024, "usage=small", "-t ext4 -T small", ""),
    (1024, "usage=floppy", "-t ext4 -T floppy", ""),
    (1024, "usage=big", "-t ext4 -T big", ""),
    (1024, "usage=huge", "-t ext4 -T huge", ""),
    (1024, "test_fs=on", "-t ext4", "test_fs"),
    (1024, "orphan_file_size=1M", "-t ext4", "orphan_file_size=256"),
    (1024, "features=none", "-t ext4 -O none", ""),
    (1024, "features=none,sparse_super,filetype", "-t ext4 -O none,sparse_super,filetype", ""),
];

/// Volumes that take long to look at.
const LARGE: &[Case] = &[
    (600 << 10, "", "-t ext4", ""),
    (5 << 20, "features=^resize_inode,meta_bg", "-t ext4 -O ^resize_inode,meta_bg", ""),
    (20 << 20, "", "-t ext4", ""),
];

pub(crate) struct Folder {
    dir: tempfile::TempDir,
}

impl Folder {
    pub(crate) fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let dir = match memory.is_dir() {
            true => tempfile::tempdir_in(memory).or_else(|_| tempfile::tempdir()).unwrap(),
            false => tempfile::tempdir().unwrap(),
        };
        std::fs::write(dir.path().join("mke2fs.conf"), CONFIG).unwrap();
        Self { dir }
    }

    pub(crate) fn image(&self, name: &str, len: u64) -> PathBuf {
        let path = self.dir.path().join(name);
        File::create(&path).unwrap().set_len(len).unwrap();
        path
    }

    /// Makes a volume with mke2fs.
    pub(crate) fn theirs(&self, path: &Path, args: &str, extended: &str) {
        let config = format!("MKE2FS_CONFIG={}", self.dir.path().join("mke2fs.conf").display());
        let time = format!("E2FSPROGS_FAKE_TIME={TIME}");
        let mut all: Vec<String> = [config, time, "mke2fs".into()].into();
        all.extend(["-q", "-F", "-U", ID, "-E"].map(String::from));
        all.push(format!("hash_seed={ID}{}{extended}", if extended.is_empty() { "" } else { "," }));
        all.extend(args.split_whitespace().map(String::from));
        all.push(path.display().to_string());
        run("env", all);
    }
}

pub(crate) fn open(path: &Path) -> Arc<dyn Disk> {
    Arc::new(HostFile::open(path, false).unwrap())
}

pub(crate) fn options(words: &str) -> MakeOptions {
    let mut options = MakeOptions::default();
    options.now.seconds = TIME;
    for (key, value) in [("uuid", ID), ("hash_seed", ID)] {
        options.set(key, value).unwrap();
    }
    for word in words.split_whitespace() {
        let (key, value) = word.split_once('=').unwrap();
        options.set(key, value).unwrap_or_else(|error| panic!("{word}: {error}"));
    }
    options
}

pub(crate) fn ours(path: &Path, words: &str) -> Made {
    make(open(path), &options(words)).unwrap_or_else(|error| panic!("{words}: {error}"))
}

fn said(program: &str, args: &[&str], path: &Path) -> String {
    let args = args.iter().map(|arg| std::ffi::OsStr::new(*arg));
    String::from_utf8_lossy(&output(program, args.chain([path.as_os_str()])).stdout).into_owned()
}

/// What dumpe2fs and debugfs tell of a volume, without what need not be equal: checksums, how much was written, and
/// which host made it.
fn told(path: &Path) -> String {
    let ignored = ["Checksum:", "Lifetime writes:", "    mmp_update_", "    mmp_node_", "    mmp_device_"];
    let mut all = said("dumpe2fs", &[], path);
    for inode in [1, 2, 3, 4, 7, 8, 11, 12, 13] {
        all += &said("debugfs", &["-R", &format!("stat <{inode}>")], path);
    }
    let lines = all.lines().filter(|line| !ignored.iter().any(|start| line.starts_with(start)));
    lines.map(|line| line.split(" csum 0x").next().unwrap().to_owned() + "\n").collect()
}

fn compare(cases: &[Case]) {
    let (folder, mut wrong) = (Folder::new(), Vec::new());
    for (mebibytes, words, args, extended) in cases {
        let (a, b) = (folder.image("ours", mebibytes << 20), folder.image("theirs", mebibytes << 20));
        ours(&a, words);
        folder.theirs(&b, args, extended);
        let (told_a, told_b) = (told(&a), told(&b));
        let same_length = told_a.lines().count() == told_b.lines().count();
        let mut pairs = told_a.lines().zip(told_b.lines());
        // Traces of what mke2fs puts into these inodes first and then replaces are not copied.
        let traces = words.contains("inline_data") || *mebibytes >= 128 << 10;
        let different = pairs.find(|(a, b)| a != b && !(traces && a.starts_with("Inode checksum:")));
        if different.is_some() || !same_length {
            wrong.push(format!("{mebibytes} MiB, {words}: {different:?}"));
        }
        assert_sound(&a, words);
    }
    assert!(wrong.is_empty(), "ours, theirs: {wrong:#?}");
}

pub(crate) fn assert_sound(path: &Path, what: &str) {
    let output = output("e2fsck", ["-fn".as_ref(), path.as_os_str()]);
    assert_eq!(output.status.code(), Some(0), "{what}: {}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn volumes_are_laid_out_as_by_mke2fs() {
    need!("mke2fs");
    need!("dumpe2fs");
    compare(CASES);
}

#[test]
fn large_volumes_are_laid_out_as_by_mke2fs() {
    need!("mke2fs");
    need!("dumpe2fs");
    if std::env::var_os("VMWRIGHT_TORTURE").is_some() {
        compare(LARGE);
    }
}
