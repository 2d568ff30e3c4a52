//! Whether locks and shared memory hold on the filesystem that a file lies on.

use std::path::Path;

use crate::{Error, Result};

/// Filesystems kept on another machine, by the number that statfs(2) gives.
const NETWORK: &[(i64, &str)] = &[
    (0x6969, "NFS"),
    (0x517B, "SMB"),
    (0xFF53_4D42, "CIFS"),
    (0xFE53_4D42, "SMB2"),
    (0x00C3_6400, "Ceph"),
    (0x5346_414F, "AFS"),
    (0x6B41_4653, "AFS"),
    (0x0102_1997, "9p"),
    (0x0BD0_0BD0, "Lustre"),
    (0x7375_7245, "Coda"),
    (0x1983_0326, "BeeGFS"),
    (0x4750_4653, "GPFS"),
];
const FUSE: i64 = 0x6573_5546;
/// Kinds of FUSE that lead to another machine, as /proc/self/mountinfo names them.
const NETWORK_FUSE: &[&str] = &[
    "fuse.sshfs",
    "fuse.glusterfs",
    "fuse.s3fs",
    "fuse.rclone",
    "fuse.ceph",
    "fuse.ceph-fuse",
    "fuse.davfs",
];

/// Refuses a directory on a network filesystem.
pub(super) fn refuse_network(dir: &Path) -> Result<()> {
    let stat =
        rustix::fs::statfs(dir).map_err(|error| Error::host("stat the filesystem of", dir, error.into()))?;
    // The kernel's numbers have 32 bits; the field is sign-extended on some architectures.
    let kind = i64::from(stat.f_type as u32);
    if let Some((_, name)) = NETWORK.iter().find(|(number, _)| *number == kind) {
        return Err(Error::network_filesystem(dir, name));
    }
    if kind == FUSE {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        if let Some(name) = fuse_over_network(&mounts, dir) {
            return Err(Error::network_filesystem(dir, name));
        }
    }
    Ok(())
}

/// The type of the innermost mount above `dir`, where it is one of the network's.
fn fuse_over_network<'a>(mountinfo: &'a str, dir: &Path) -> Option<&'a str> {
    let innermost = mountinfo
        .lines()
        .filter_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let point = Path::new(before.split(' ').nth(4)?);
            dir.starts_with(point).then(|| (point.as_os_str().len(), after.split(' ').next()))
        })
        // The last of several on one point is the one on top.
        .max_by_key(|(len, _)| *len)?;
    innermost.1.filter(|kind| NETWORK_FUSE.contains(kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_directory_is_taken() {
        refuse_network(tempfile::tempdir().unwrap().path()).unwrap();
    }

    #[test]
    fn sshfs_is_told_from_other_fuse_filesystems() {
        let mounts = "\
            21 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n\
            30 21 0:40 / /home/a/far rw - fuse.sshfs host: rw\n\
            31 21 0:41 / /home/a/near rw - fuse.fuse-overlayfs none rw\n";
        let kind = |dir| fuse_over_network(mounts, Path::new(dir));
        assert_eq!(kind("/home/a/far/state"), Some("fuse.sshfs"));
        assert_eq!(kind("/home/a/near/state"), None);
        assert_eq!(kind("/home/a/farther"), None);
    }
}
