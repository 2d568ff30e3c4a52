//! The image beneath a VM's overlay, and whether it still is the same.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vmwright_vmm::DiskFormat;

use crate::{Error, Result, VmName};

/// Which bytes a file held at some moment, as far as the host can tell without reading them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIdentity {
    /// The device it lies on.
    pub device: u64,
    /// Its inode there.
    pub inode: u64,
    /// Its length in bytes.
    pub len: u64,
    /// When its content last changed: seconds and nanoseconds since 1970.
    pub modified: (i64, i64),
    /// When its inode last changed, likewise.
    pub changed: (i64, i64),
}

impl FileIdentity {
    /// Looks at a file.
    pub fn of(path: &Path) -> Result<Self> {
        let metadata = std::fs::metadata(path).map_err(|source| Error::host("stat", path, source))?;
        Ok(Self::from(&metadata))
    }
}

impl From<&Metadata> for FileIdentity {
    fn from(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            len: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// An image with what it was when a VM was made from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseImage {
    /// Its canonical path.
    pub path: PathBuf,
    /// Its format.
    pub format: DiskFormat,
    /// What it was.
    pub identity: FileIdentity,
    /// The images beneath it, the nearest first.
    #[serde(default)]
    pub backing: Vec<BackingImage>,
}

/// An image beneath another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackingImage {
    /// Its canonical path.
    pub path: PathBuf,
    /// Its format.
    pub format: DiskFormat,
    /// What it was.
    pub identity: FileIdentity,
}

impl BaseImage {
    /// Refuses with what has changed, if anything has: what lies on top would no longer fit.
    pub fn check_unchanged(&self, vm: &VmName) -> Result<()> {
        check(vm, &self.path, &self.identity)?;
        self.check_backing_unchanged(vm)
    }

    /// Like [`BaseImage::check_unchanged`], for an image that is itself written.
    pub fn check_backing_unchanged(&self, vm: &VmName) -> Result<()> {
        self.backing.iter().try_for_each(|image| check(vm, &image.path, &image.identity))
    }

    /// Each image with what it was, the nearest first.
    pub fn images(&self) -> impl Iterator<Item = (&Path, &FileIdentity)> {
        let beneath = self.backing.iter().map(|image| (image.path.as_path(), &image.identity));
        std::iter::once((self.path.as_path(), &self.identity)).chain(beneath)
    }
}

fn check(vm: &VmName, path: &Path, was: &FileIdentity) -> Result<()> {
    let is = FileIdentity::of(path)?;
    let changed =
        |what, expected: String, actual: String| Err(Error::base_changed(vm, path, what, expected, actual));
    if (is.device, is.inode) != (was.device, was.inode) {
        let name = |file: &FileIdentity| format!("{} on device {}", file.inode, file.device);
        return changed("inode", name(was), name(&is));
    }
    if is.len != was.len {
        return changed("length", was.len.to_string(), is.len.to_string());
    }
    let time = |(seconds, nanoseconds): (i64, i64)| format!("{seconds}.{nanoseconds:09}");
    if is.modified != was.modified {
        return changed("time of last change", time(was.modified), time(is.modified));
    }
    if is.changed != was.changed {
        return changed("time of last inode change", time(was.changed), time(is.changed));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn base(path: &Path) -> BaseImage {
        BaseImage {
            path: path.to_owned(),
            format: DiskFormat::Raw,
            identity: FileIdentity::of(path).unwrap(),
            backing: Vec::new(),
        }
    }

    #[test]
    fn every_way_to_change_a_base_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("base.img");
        let vm: VmName = "a".parse().unwrap();
        type Change = fn(&Path);
        let changes: [(&str, Change); 3] = [
            ("length", |path| std::fs::write(path, b"longer than before").unwrap()),
            ("inode", |path| {
                let copy = path.with_extension("copy");
                std::fs::copy(path, &copy).unwrap();
                std::fs::rename(copy, path).unwrap();
            }),
            ("time of last change", |path| std::fs::write(path, b"abcd").unwrap()),
        ];
        for (what, change) in changes {
            std::fs::write(&path, b"1234").unwrap();
            let base = base(&path);
            base.check_unchanged(&vm).unwrap();
            // Times have the grain of the kernel's tick.
            std::thread::sleep(std::time::Duration::from_millis(20));
            change(&path);
            let error = base.check_unchanged(&vm).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InUse);
            assert!(error.to_string().contains(what), "{error}");
        }
    }
}
