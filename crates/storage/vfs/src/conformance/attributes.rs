//! What is known of inodes.

use std::collections::BTreeMap;

use super::{directory, fails, file, pattern};
use crate::{
    DeviceNumber, ErrorKind, FileSystem, FileType, InodeNumber, NewNode, NodeKind, SetAttributes, Timestamp,
    XattrMode,
};

pub(super) fn links_keep_their_targets(fs: &mut dyn FileSystem, root: InodeNumber) {
    for len in [1, 58, 59, 60, 61, 200, 1000] {
        let target = vec![b't'; len];
        let node = NewNode { kind: NodeKind::Symlink(target.clone()), ..file() };
        let name = format!("link-{len}");
        let inode = fs.create(root, name.as_bytes(), &node).unwrap();
        assert_eq!(fs.read_link(inode).unwrap(), target);
        assert_eq!(fs.metadata(inode).unwrap().size, len as u64);
    }
}

pub(super) fn attributes_are_kept(fs: &mut dyn FileSystem, root: InodeNumber) {
    let device = DeviceNumber { major: 300, minor: 70_000 };
    let kinds = [
        (NodeKind::CharDevice(device), FileType::CharDevice),
        (NodeKind::BlockDevice(device), FileType::BlockDevice),
        (NodeKind::Fifo, FileType::Fifo),
        (NodeKind::Socket, FileType::Socket),
        (NodeKind::Regular, FileType::Regular),
        (NodeKind::Directory, FileType::Directory),
    ];
    for (number, (kind, file_type)) in kinds.into_iter().enumerate() {
        let is_device = matches!(kind, NodeKind::CharDevice(_) | NodeKind::BlockDevice(_));
        let node = NewNode { kind, mode: 0o6751, uid: 70_000, gid: 4_000_000_000 };
        let inode = fs.create(root, format!("{number}").as_bytes(), &node).unwrap();
        let metadata = fs.metadata(inode).unwrap();
        assert_eq!((metadata.file_type, metadata.mode), (file_type, 0o6751));
        assert_eq!((metadata.uid, metadata.gid), (70_000, 4_000_000_000));
        assert_eq!(metadata.device, if is_device { device } else { DeviceNumber::default() });
        assert_eq!(metadata.modified.seconds, 1_000_000_000);
        let time = Timestamp { seconds: 1_234_567_890, nanoseconds: 0 };
        let change =
            SetAttributes { modified: Some(time), mode: Some(0o1600), uid: Some(5), ..Default::default() };
        fs.set_now(Timestamp { seconds: 1_500_000_000, nanoseconds: 0 });
        fs.set_attributes(inode, &change).unwrap();
        let metadata = fs.metadata(inode).unwrap();
        assert_eq!((metadata.modified, metadata.mode, metadata.uid), (time, 0o1600, 5));
        assert_eq!(metadata.changed.seconds, 1_500_000_000);
        fs.set_now(Timestamp { seconds: 1_000_000_000, nanoseconds: 0 });
    }
}

pub(super) fn extended_attributes_are_kept(fs: &mut dyn FileSystem, root: InodeNumber) {
    let inode = fs.create(root, b"file", &file()).unwrap();
    fails(ErrorKind::NotFound, fs.xattr(inode, b"user.a"));
    fails(ErrorKind::NotFound, fs.set_xattr(inode, b"user.a", b"", XattrMode::Replace));
    let mut model = BTreeMap::new();
    for (name, len) in [("user.a", 5), ("security.b", 60), ("trusted.c", 0), ("user.d", 500), ("user.a", 90)]
    {
        fs.set_xattr(inode, name.as_bytes(), &pattern(1, len), XattrMode::Set).unwrap();
        model.insert(name.as_bytes().to_vec(), pattern(1, len));
    }
    fails(ErrorKind::Exists, fs.set_xattr(inode, b"user.a", b"", XattrMode::Create));
    fs.remove_xattr(inode, b"user.d").unwrap();
    fails(ErrorKind::NotFound, fs.remove_xattr(inode, b"user.d"));
    model.remove(&b"user.d"[..]);
    let held = fs.xattr_names(inode).unwrap().into_iter().map(|name| {
        let value = fs.xattr(inode, &name).unwrap();
        (name, value)
    });
    assert_eq!(held.collect::<BTreeMap<_, _>>(), model);
}

pub(super) fn attributes_of_every_size_are_kept_or_refused(fs: &mut dyn FileSystem, root: InodeNumber) {
    for kind in [NodeKind::Regular, NodeKind::Directory, NodeKind::Fifo, NodeKind::Symlink(b"t".to_vec())] {
        let name = format!("{kind:?}").into_bytes();
        let inode = fs.create(root, &name, &NewNode { kind, ..directory() }).unwrap();
        let mut kept: Option<Vec<u8>> = None;
        for len in [0, 1, 3, 100, 900, 1500, 4000, 10_000, 65_536, 65_537, 2] {
            let value = pattern(len as u32, len);
            match fs.set_xattr(inode, b"user.value", &value, XattrMode::Set) {
                Ok(()) => kept = Some(value),
                // Too large for this volume, or for every one.
                Err(error) if len > 900 => {
                    assert!(matches!(error.kind(), ErrorKind::NoSpace | ErrorKind::InvalidInput), "{error}");
                }
                Err(error) => panic!("a value of {len} bytes: {error}"),
            }
            assert_eq!(fs.xattr(inode, b"user.value").ok(), kept, "after {len} bytes");
        }
        let longest = [b"user.".to_vec(), vec![b'n'; 250]].concat();
        fs.set_xattr(inode, &longest, b"long", XattrMode::Create).unwrap();
        assert_eq!(fs.xattr(inode, &longest).unwrap(), b"long");
        let too_long = [longest.clone(), vec![b'n'; 10]].concat();
        fails(ErrorKind::InvalidInput, fs.set_xattr(inode, &too_long, b"", XattrMode::Set));
        assert_eq!(fs.xattr_names(inode).unwrap().len(), 2);
        fs.remove_xattr(inode, &longest).unwrap();
        fs.remove_xattr(inode, b"user.value").unwrap();
        assert!(fs.xattr_names(inode).unwrap().is_empty());
    }
}

/// An ACL in the format of Linux: `u::rwx,u:1000:rw,g::rx,m::rwx,o::r`.
fn acl() -> Vec<u8> {
    let entries: [(u16, u16, u32); 5] =
        [(0x01, 7, !0), (0x02, 6, 1000), (0x04, 5, !0), (0x10, 7, !0), (0x20, 4, !0)];
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend([tag.to_le_bytes(), permissions.to_le_bytes()].concat());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

pub(super) fn lists_of_access_are_attributes(fs: &mut dyn FileSystem, root: InodeNumber) {
    let inode = fs.create(root, b"file", &file()).unwrap();
    let dir = fs.create(root, b"dir", &directory()).unwrap();
    fs.set_xattr(inode, b"system.posix_acl_access", &acl(), XattrMode::Create).unwrap();
    assert_eq!(fs.xattr(inode, b"system.posix_acl_access").unwrap(), acl());
    fs.set_xattr(dir, b"system.posix_acl_default", &acl(), XattrMode::Set).unwrap();
    assert_eq!(fs.xattr(dir, b"system.posix_acl_default").unwrap(), acl());
    assert_eq!(fs.xattr_names(dir).unwrap(), [b"system.posix_acl_default".to_vec()]);
    fs.remove_xattr(dir, b"system.posix_acl_default").unwrap();
    fs.remove_xattr(inode, b"system.posix_acl_access").unwrap();
    fails(ErrorKind::NotFound, fs.xattr(inode, b"system.posix_acl_access"));
}

/// Whether a time is the one that was set, or what a format of whole seconds, or of 32 bits of them, makes of it.
fn is_nearest(time: Timestamp, set: Timestamp) -> bool {
    let seconds = set.seconds.clamp(i32::MIN.into(), i32::MAX.into());
    time == set || time == Timestamp { seconds, nanoseconds: 0 }
}

pub(super) fn times_are_kept_to_the_nanosecond(fs: &mut dyn FileSystem, root: InodeNumber) {
    let inode = fs.create(root, b"file", &file()).unwrap();
    let born = fs.metadata(inode).unwrap().created;
    let times = [(0, 0), (1_234_567_890, 987_654_321), (-1, 999_999_999), (4_102_444_800, 1), (1 << 33, 5)];
    for (number, (seconds, nanoseconds)) in times.into_iter().enumerate() {
        let time = Timestamp { seconds, nanoseconds };
        let now = Timestamp { seconds: 1_600_000_000 + number as i64, nanoseconds: 7 };
        fs.set_now(now);
        let next = Timestamp { seconds: seconds + 1, ..time };
        let change = SetAttributes {
            accessed: Some(next),
            modified: Some(time),
            created: Some(time),
            ..Default::default()
        };
        fs.set_attributes(inode, &change).unwrap();
        let metadata = fs.metadata(inode).unwrap();
        assert!(is_nearest(metadata.modified, time) && is_nearest(metadata.accessed, next), "{metadata:?}");
        assert!(is_nearest(metadata.changed, now), "{metadata:?}");
        assert_eq!(metadata.created.is_some(), born.is_some());
        assert!(metadata.created.is_none_or(|created| is_nearest(created, time)), "{metadata:?}");
    }
}

/// The times of modification and change.
fn stamps(fs: &dyn FileSystem, inode: InodeNumber) -> (i64, i64) {
    let metadata = fs.metadata(inode).unwrap();
    (metadata.modified.seconds, metadata.changed.seconds)
}

pub(super) fn changes_are_stamped(fs: &mut dyn FileSystem, root: InodeNumber) {
    use crate::RenameMode::{Exchange, Replace};
    let mut now = 1_700_000_000;
    let mut tick = |fs: &mut dyn FileSystem| {
        now += 10;
        fs.set_now(Timestamp { seconds: now, nanoseconds: 0 });
        now
    };
    let born = tick(fs);
    let dir = fs.create(root, b"dir", &directory()).unwrap();
    let inode = fs.create(dir, b"file", &file()).unwrap();
    let metadata = fs.metadata(inode).unwrap();
    assert_eq!((metadata.accessed.seconds, stamps(fs, inode)), (born, (born, born)));
    assert!(metadata.created.is_none_or(|created| created.seconds == born));
    type Change = fn(&mut dyn FileSystem, InodeNumber);
    let content: [Change; 5] = [
        |fs, inode| fs.write_at(inode, &[1; 100_000], 0).unwrap(),
        |fs, inode| fs.truncate(inode, 90_000).unwrap(),
        |fs, inode| fs.truncate(inode, 95_000).unwrap(),
        |fs, inode| fs.punch(inode, 10, 50_000).unwrap(),
        |fs, inode| fs.allocate(inode, 0, 100_000, false).unwrap(),
    ];
    for change in content {
        let now = tick(fs);
        change(fs, inode);
        assert_eq!(stamps(fs, inode), (now, now));
    }
    let (modified, _) = stamps(fs, inode);
    let attributes: [Change; 3] = [
        |fs, inode| {
            fs.set_attributes(inode, &SetAttributes { mode: Some(0o600), ..Default::default() }).unwrap()
        },
        |fs, inode| fs.set_xattr(inode, b"user.x", b"value", XattrMode::Set).unwrap(),
        |fs, inode| fs.remove_xattr(inode, b"user.x").unwrap(),
    ];
    for change in attributes {
        let now = tick(fs);
        change(fs, inode);
        assert_eq!(stamps(fs, inode), (modified, now));
    }
    let now = tick(fs);
    fs.link(inode, dir, b"other").unwrap();
    assert_eq!((stamps(fs, inode), stamps(fs, dir)), ((modified, now), (now, now)));
    let now = tick(fs);
    fs.unlink(dir, b"other").unwrap();
    assert_eq!((stamps(fs, inode), stamps(fs, dir)), ((modified, now), (now, now)));
    let sub = fs.create(root, b"sub", &directory()).unwrap();
    let now = tick(fs);
    fs.rename((dir, b"file"), (sub, b"moved"), Replace).unwrap();
    assert_eq!(stamps(fs, inode), (modified, now));
    assert_eq!((stamps(fs, dir), stamps(fs, sub)), ((now, now), (now, now)));
    let other = fs.create(dir, b"other", &file()).unwrap();
    let swapped = tick(fs);
    fs.rename((dir, b"other"), (sub, b"moved"), Exchange).unwrap();
    assert_eq!((stamps(fs, inode), stamps(fs, other)), ((modified, swapped), (now, swapped)));
    assert_eq!((stamps(fs, dir), stamps(fs, sub)), ((swapped, swapped), (swapped, swapped)));
    let accessed = fs.metadata(inode).unwrap().accessed;
    fs.read_at(inode, &mut [0; 10], 0).unwrap();
    assert_eq!(fs.metadata(inode).unwrap().accessed, accessed, "reading leaves no trace");
}
