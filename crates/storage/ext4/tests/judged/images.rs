//! Images made at test time.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vmwright_disk::{Disk, HostFile};
use vmwright_ext4::{Ext4, Options};
use vmwright_judges::{Mount, output, record_skip, run};

/// A way to make a volume.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    /// What mke2fs is told.
    mke2fs: &'static [&'static str],
    /// What debugfs changes in the superblock afterwards.
    debugfs: &'static [&'static str],
    /// Whether volumes of this kind can be changed.
    pub(crate) writable: bool,
    /// Whether kernels may be built without what it takes to mount it.
    pub(crate) optional: bool,
}

const fn kind(name: &'static str, mke2fs: &'static [&'static str]) -> Kind {
    Kind { name, mke2fs, debugfs: &[], writable: true, optional: false }
}

const fn unmountable(name: &'static str, mke2fs: &'static [&'static str]) -> Kind {
    Kind { name, mke2fs, debugfs: &[], writable: true, optional: true }
}

/// Every kind of volume that is tested.
pub(crate) const KINDS: &[Kind] = &[
    kind("default", &["-t", "ext4"]),
    kind("1k", &["-t", "ext4", "-b", "1024"]),
    kind("2k", &["-t", "ext4", "-b", "2048"]),
    kind("ext2", &["-t", "ext2"]),
    kind("ext2_1k", &["-t", "ext2", "-b", "1024"]),
    kind("ext3", &["-t", "ext3"]),
    kind("32bit", &["-t", "ext4", "-O", "^64bit"]),
    kind("seed", &["-t", "ext4", "-O", "metadata_csum,metadata_csum_seed"]),
    kind("uninit", &["-t", "ext4", "-O", "^metadata_csum,uninit_bg"]),
    kind("plain", &["-t", "ext4", "-O", "^metadata_csum,^uninit_bg"]),
    kind("no_flex", &["-t", "ext4", "-O", "^flex_bg,^resize_inode", "-g", "8192"]),
    kind("no_index", &["-t", "ext4", "-O", "^dir_index"]),
    kind("inline", &["-t", "ext4", "-O", "inline_data"]),
    kind("inline_wide", &["-t", "ext4", "-O", "inline_data", "-I", "1024"]),
    kind("small_inodes", &["-t", "ext4", "-I", "128"]),
    kind("no_journal", &["-t", "ext4", "-O", "^has_journal"]),
    kind("orphan_file", &["-t", "ext4", "-O", "orphan_file"]),
    kind("fast_commit_inline", &["-t", "ext4", "-O", "fast_commit,inline_data", "-J", "size=16"]),
    kind("fast_commit", &["-t", "ext4", "-O", "fast_commit", "-J", "size=16"]),
    kind(
        "fast_commit_meta_bg",
        &["-t", "ext4", "-O", "fast_commit,meta_bg,^resize_inode", "-J", "size=16", "-g", "8192"],
    ),
    kind("large_dir", &["-t", "ext4", "-O", "large_dir", "-b", "1024"]),
    kind("ea_inode", &["-t", "ext4", "-O", "ea_inode"]),
    unmountable(
        "quota",
        &["-t", "ext4", "-O", "quota,project", "-E", "quotatype=usrquota:grpquota:prjquota"],
    ),
    unmountable(
        "quota_values",
        &["-t", "ext4", "-b", "1024", "-O", "quota,ea_inode", "-E", "quotatype=usrquota:grpquota"],
    ),
    kind("mmp", &["-t", "ext4", "-O", "mmp"]),
    kind("mmp_plain", &["-t", "ext4", "-O", "mmp,^metadata_csum"]),
    unmountable("quota_1k", &["-t", "ext4", "-b", "1024", "-O", "quota,^extent,^64bit"]),
    kind("ea_inode_1k", &["-t", "ext4", "-O", "ea_inode,^metadata_csum", "-b", "1024"]),
    kind("ea_inode_small", &["-t", "ext2", "-O", "ea_inode", "-I", "128"]),
    kind("ea_inode_inline", &["-t", "ext4", "-O", "ea_inode,inline_data"]),
    unmountable("casefold", &["-t", "ext4", "-O", "casefold", "-E", "encoding=utf8-12.1"]),
    unmountable("casefold_1k", &["-t", "ext4", "-O", "casefold", "-E", "encoding=utf8-12.1", "-b", "1024"]),
    unmountable("casefold_inline", &["-t", "ext4", "-O", "casefold,inline_data", "-E", "encoding=utf8-12.1"]),
    unmountable(
        "casefold_strict",
        &["-t", "ext4", "-O", "casefold", "-E", "encoding=utf8-12.1,encoding_flags=strict"],
    ),
    Kind {
        name: "unsigned_tea",
        mke2fs: &["-t", "ext4"],
        debugfs: &["ssv flags 2", "ssv def_hash_version tea"],
        writable: true,
        optional: false,
    },
    Kind {
        name: "unsigned_legacy",
        mke2fs: &["-t", "ext4", "-O", "^metadata_csum"],
        debugfs: &["ssv flags 2", "ssv def_hash_version legacy"],
        writable: true,
        optional: false,
    },
    kind("bigalloc", &["-t", "ext4", "-O", "bigalloc", "-C", "16384", "-N", "4096"]),
    kind(
        "bigalloc_64k",
        &["-t", "ext4", "-O", "bigalloc,fast_commit", "-J", "size=16", "-C", "65536", "-N", "4096"],
    ),
    kind("bigalloc_1k", &["-t", "ext4", "-O", "bigalloc", "-b", "1024", "-C", "16384", "-N", "4096"]),
    kind("meta_bg", &["-t", "ext4", "-O", "meta_bg,^resize_inode", "-g", "2048"]),
    kind(
        "meta_bg_1k",
        &["-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode,^flex_bg,^64bit", "-g", "1024"],
    ),
    kind(
        "meta_bg_uninit",
        &["-t", "ext4", "-O", "meta_bg,^resize_inode,^metadata_csum,uninit_bg", "-g", "512"],
    ),
];

/// Combinations that few volumes have, for tests of their own.
pub(crate) const RARE: &[Kind] = &[
    unmountable(
        "bigalloc_quota_inline",
        &[
            "-t",
            "ext4",
            "-O",
            "bigalloc,quota,inline_data,project",
            "-C",
            "16384",
            "-N",
            "2048",
            "-E",
            "quotatype=usrquota:grpquota:prjquota",
        ],
    ),
    unmountable(
        "casefold_inline_values_quota",
        &[
            "-t",
            "ext4",
            "-O",
            "casefold,inline_data,ea_inode,quota",
            "-E",
            "encoding=utf8-12.1,quotatype=usrquota:grpquota",
        ],
    ),
    kind(
        "meta_bg_bigalloc_1k",
        &[
            "-t",
            "ext4",
            "-b",
            "1024",
            "-O",
            "meta_bg,^resize_inode,^flex_bg,bigalloc",
            "-C",
            "4096",
            "-N",
            "2048",
        ],
    ),
    kind("no_filetype", &["-t", "ext4", "-b", "1024", "-O", "^filetype,^huge_file,^extra_isize,^dir_nlink"]),
    kind("no_attributes", &["-t", "ext2", "-b", "1024", "-O", "^ext_attr"]),
    kind(
        "backups_in_two",
        &["-t", "ext4", "-b", "1024", "-O", "sparse_super2,^flex_bg,^resize_inode", "-g", "1024"],
    ),
];

/// A volume of the first revision, whose superblock cannot name features.
pub(crate) const FIRST_REVISION: Kind =
    kind("first_revision", &["-r", "0", "-t", "ext2", "-b", "1024", "-O", "none"]);

impl Kind {
    /// Whether the kernel here can mount such volumes.
    pub(crate) fn mountable(&self) -> bool {
        if !self.optional {
            return true;
        }
        // Some can be mounted for reading alone.
        let mounted = Mount::try_new(Image::make(self, 8).path(), "noatime").is_ok();
        if !mounted {
            record_skip(self.name, "the kernel here cannot mount volumes of this kind");
        }
        mounted
    }
}

impl Kind {
    /// Whether inodes have no room for nanoseconds.
    pub(crate) fn has_small_inodes(&self) -> bool {
        self.mke2fs.windows(2).any(|pair| pair == ["-I", "128"])
    }
}

/// Finds a kind by its name.
pub(crate) fn named(name: &str) -> &'static Kind {
    KINDS.iter().find(|kind| kind.name == name).unwrap()
}

/// An image file in a folder of its own.
pub(crate) struct Image {
    name: &'static str,
    _dir: tempfile::TempDir,
    path: PathBuf,
}

impl Image {
    /// Makes an empty volume of some mebibytes.
    pub(crate) fn make(kind: &Kind, mebibytes: u64) -> Self {
        // Where the smallest file takes 64 KiB, the same content needs more room.
        let mebibytes = if kind.mke2fs.contains(&"65536") { mebibytes * 4 } else { mebibytes };
        let image = Self { name: kind.name, ..Self::file(mebibytes << 20) };
        let inodes = (mebibytes * 512).to_string();
        let fixed = ["-q", "-F", "-b", "4096", "-N", &inodes];
        let args = fixed.iter().chain(kind.mke2fs).map(OsStr::new);
        run("mke2fs", args.chain([image.path.as_os_str()]));
        for request in kind.debugfs {
            run("debugfs", ["-w".as_ref(), "-R".as_ref(), request.as_ref(), image.path.as_os_str()]);
        }
        image
    }

    fn file(len: u64) -> Self {
        // Each unmount waits for the medium, so memory is much faster where there is any.
        let memory = Path::new("/dev/shm");
        let dir = match memory.is_dir() {
            true => tempfile::tempdir_in(memory).or_else(|_| tempfile::tempdir()).unwrap(),
            false => tempfile::tempdir().unwrap(),
        };
        let path = dir.path().join("image");
        std::fs::File::create(&path).unwrap().set_len(len).unwrap();
        Self { name: "image", _dir: dir, path }
    }

    /// Makes an image of so many bytes, all the same.
    pub(crate) fn file_of(len: usize, byte: u8) -> Self {
        Self::from_bytes(&vec![byte; len])
    }

    /// Makes an image that holds the given bytes.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let image = Self::file(0);
        std::fs::write(&image.path, bytes).unwrap();
        image
    }

    /// Copies the image as it is now, holes kept.
    pub(crate) fn copy(&self) -> Self {
        let copy = Self { name: self.name, ..Self::file(0) };
        let args = ["--sparse=always".as_ref(), self.path.as_os_str(), copy.path.as_os_str()];
        run("cp", args);
        copy
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn disk(&self, read_only: bool) -> Arc<dyn Disk> {
        Arc::new(HostFile::open(&self.path, read_only).unwrap())
    }

    /// Opens it for reading.
    pub(crate) fn open(&self) -> Ext4 {
        let volume = Ext4::open(self.disk(true), Options::default());
        volume.unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    /// What e2fsck says, if it says that anything is wrong.
    pub(crate) fn complaints(&self) -> Option<String> {
        let output = output("e2fsck", ["-fn".as_ref(), self.path.as_os_str()]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code() != Some(0)).then_some(text)
    }

    /// Fails unless e2fsck finds nothing wrong.
    pub(crate) fn assert_sound(&self, when: &str) {
        if let Some(complaints) = self.complaints() {
            panic!("{}: e2fsck {when}: {complaints}", self.name);
        }
    }
}
