//! The filesystem as a whole.

use super::{fails, file};
use crate::{ErrorKind, FileSystem, InodeNumber, Timestamp};

pub(super) fn labels_and_identifiers_change(fs: &mut dyn FileSystem, dir: InodeNumber) {
    let kind = fs.identity().kind;
    for label in [&b"a label"[..], b"\xff\x01", b""] {
        fs.set_label(label).unwrap();
        assert_eq!(fs.identity().label, label);
    }
    fs.set_label(b"stays").unwrap();
    fails(ErrorKind::InvalidInput, fs.set_label(&[b'x'; 300]));
    fails(ErrorKind::InvalidInput, fs.set_label(b"a\0b"));
    fails(ErrorKind::InvalidInput, fs.set_uuid("nothing of the sort"));
    let uuid = "0f1e2d3c-4b5a-4697-8877-665544332211";
    match fs.set_uuid(uuid) {
        Ok(()) => assert_eq!(fs.identity().uuid.as_deref(), Some(uuid)),
        // Something on it that cannot be made anew depends on the old one.
        Err(error) => assert_eq!(error.kind(), ErrorKind::Unsupported),
    }
    let made = fs.create(dir, b"after", &file()).unwrap();
    assert_eq!(fs.lookup(dir, b"after").unwrap(), made);
    let identity = fs.identity();
    assert_eq!((identity.kind, identity.label), (kind, b"stays".to_vec()));
}

pub(super) fn free_space_is_counted_and_mapped(fs: &mut dyn FileSystem, root: InodeNumber) {
    assert!(!fs.is_read_only());
    let before = fs.statfs().unwrap();
    assert!(before.free_blocks <= before.blocks && before.available_blocks <= before.free_blocks);
    assert!(before.free_inodes <= before.inodes);
    fs.sync().unwrap();
    let free = |fs: &dyn FileSystem| {
        let (mut total, mut end) = (0, 0);
        fs.free_map()?
            .free_ranges(&mut |range| {
                assert!(range.start < range.end && (end == 0 || end < range.start), "{range:?} after {end}");
                (total, end) = (total + (range.end - range.start), range.end);
                Ok(())
            })
            .unwrap();
        Some(total)
    };
    let mapped = free(fs);
    if let Some(mapped) = mapped {
        assert_eq!(mapped, before.free_blocks * u64::from(before.block_size));
    }
    let inode = fs.create(root, b"file", &file()).unwrap();
    fs.write_at(inode, &[1; 400_000], 0).unwrap();
    fs.sync().unwrap();
    if let (Some(before), Some(after)) = (mapped, free(fs)) {
        assert!(before - after >= 400_000);
    }
    // Once more changes nothing, and neither does a time that is set but not used.
    fs.sync().unwrap();
    fs.set_now(Timestamp { seconds: 5, nanoseconds: 5 });
    fs.sync().unwrap();
}
