//! What files hold.

use super::{directory, fails, file, pattern, read_all};
use crate::{ErrorKind, FileSystem, InodeNumber, NewNode, NodeKind};

pub(super) fn files_hold_what_is_written(fs: &mut dyn FileSystem, root: InodeNumber) {
    let inode = fs.create(root, b"file", &file()).unwrap();
    let mut model = vec![0; 300_000];
    for (at, len) in [(0, 10), (100, 5000), (60_000, 1), (4095, 2), (299_000, 1000), (10, 70_000)] {
        let data = pattern(at as u32, len);
        fs.write_at(inode, &data, at as u64).unwrap();
        model[at..at + len].copy_from_slice(&data);
    }
    assert!(read_all(fs, inode).unwrap() == model);
    let mut part = vec![0; 777];
    assert_eq!(fs.read_at(inode, &mut part, 299_500).unwrap(), 500);
    assert!(part[..500] == model[299_500..]);
    assert_eq!(fs.read_at(inode, &mut part, 1 << 40).unwrap(), 0);
    fails(ErrorKind::InvalidInput, fs.read_link(inode));
    fails(ErrorKind::InvalidInput, fs.read_at(root, &mut part, 0));
}

pub(super) fn files_shrink_grow_and_get_holes(fs: &mut dyn FileSystem, root: InodeNumber) {
    let inode = fs.create(root, b"file", &file()).unwrap();
    let mut model = pattern(3, 200_000);
    fs.write_at(inode, &model, 0).unwrap();
    for size in [150_001, 12, 190_000] {
        fs.truncate(inode, size as u64).unwrap();
        model.resize(size, 0);
        assert!(read_all(fs, inode).unwrap() == model);
        assert_eq!(fs.metadata(inode).unwrap().size, size as u64);
    }
    model = pattern(4, 190_000);
    fs.write_at(inode, &model, 0).unwrap();
    for (at, len) in [(5, 100), (4096, 8192), (100_001, 50_000), (185_000, 90_000)] {
        fs.punch(inode, at as u64, len).unwrap();
        model[at..190_000.min(at + len as usize)].fill(0);
        assert!(read_all(fs, inode).unwrap() == model);
    }
    let mut at = 0;
    while at < 190_000 {
        let extent = fs.extent_at(inode, at).unwrap();
        assert_eq!(extent.start, at);
        assert!(extent.len > 0);
        at = extent.end();
    }
}

/// Whether a file holds these bytes, read at once and piece by piece, and its map covers them.
fn assert_holds(fs: &dyn FileSystem, inode: InodeNumber, model: &[u8]) {
    assert!(read_all(fs, inode).unwrap() == model);
    for at in (0..model.len()).step_by(33_333) {
        let mut piece = vec![0; 5000];
        let len = fs.read_at(inode, &mut piece, at as u64).unwrap();
        assert_eq!(len, (model.len() - at).min(5000));
        assert!(piece[..len] == model[at..at + len]);
    }
    let mut at = 0;
    while at < model.len() as u64 {
        let extent = fs.extent_at(inode, at).unwrap();
        assert!(extent.start == at && extent.len > 0, "{extent:?} at {at}");
        at = extent.end();
    }
    fails(ErrorKind::InvalidInput, fs.extent_at(inode, model.len() as u64));
}

pub(super) fn space_is_taken_before_there_is_content(fs: &mut dyn FileSystem, root: InodeNumber) {
    let inode = fs.create(root, b"file", &file()).unwrap();
    let mut model = pattern(3, 30_000);
    fs.write_at(inode, &model, 0).unwrap();
    fs.punch(inode, 8192, 8192).unwrap();
    model[8192..16_384].fill(0);
    fs.allocate(inode, 1000, 20_000, false).unwrap();
    assert_holds(fs, inode, &model);
    assert!(fs.metadata(inode).unwrap().allocated >= 30_000);
    fs.allocate(inode, 25_000, 100_001, false).unwrap();
    model.resize(125_001, 0);
    assert_holds(fs, inode, &model);
    assert!(fs.metadata(inode).unwrap().allocated >= 125_001);
    // With holes between, and content on both sides of what is written next.
    fs.allocate(inode, 300_000, 10_000, false).unwrap();
    model.resize(310_000, 0);
    for (at, len) in [(10_000, 20), (40_000, 9000), (124_000, 3000), (305_000, 100)] {
        let data = pattern(at as u32, len);
        fs.write_at(inode, &data, at as u64).unwrap();
        model[at..at + len].copy_from_slice(&data);
        assert_holds(fs, inode, &model);
    }
    fs.punch(inode, 41_000, 260_000).unwrap();
    model[41_000..301_000].fill(0);
    fs.allocate(inode, 0, 310_000, true).unwrap();
    assert_holds(fs, inode, &model);
    fs.truncate(inode, 42_000).unwrap();
    fs.truncate(inode, 80_000).unwrap();
    model.truncate(41_000);
    model.resize(80_000, 0);
    assert_holds(fs, inode, &model);
}

pub(super) fn space_past_the_end_is_kept_or_refused(fs: &mut dyn FileSystem, root: InodeNumber) {
    let inode = fs.create(root, b"file", &file()).unwrap();
    let mut model = pattern(4, 5000);
    fs.write_at(inode, &model, 0).unwrap();
    let before = fs.metadata(inode).unwrap();
    match fs.allocate(inode, 3000, 97_000, true) {
        Ok(()) => {}
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert_eq!(fs.metadata(inode).unwrap(), before);
        }
    }
    assert_holds(fs, inode, &model);
    fs.write_at(inode, b"end", 60_000).unwrap();
    model.resize(60_000, 0);
    model.extend(b"end");
    assert_holds(fs, inode, &model);
    fs.truncate(inode, 90_000).unwrap();
    model.resize(90_000, 0);
    assert_holds(fs, inode, &model);
    fs.truncate(inode, 0).unwrap();
    assert_eq!(fs.metadata(inode).unwrap().size, 0);
}

pub(super) fn what_cannot_be_taken_changes_nothing(fs: &mut dyn FileSystem, root: InodeNumber) {
    let inode = fs.create(root, b"file", &file()).unwrap();
    fs.write_at(inode, b"content", 0).unwrap();
    if fs.statfs().unwrap().blocks > 0 {
        // Little content may be kept without a block of its own; from here on it has one.
        fs.allocate(inode, 0, 7, false).unwrap();
    }
    let (before, space) = (fs.metadata(inode).unwrap(), fs.statfs().unwrap());
    fails(ErrorKind::InvalidInput, fs.allocate(inode, 0, 0, false));
    fails(ErrorKind::InvalidInput, fs.allocate(inode, 0, u64::MAX, false));
    fails(ErrorKind::InvalidInput, fs.allocate(inode, u64::MAX, 2, true));
    fails(ErrorKind::InvalidInput, fs.write_at(inode, b"x", u64::MAX));
    fails(ErrorKind::InvalidInput, fs.write_at(inode, b"xy", u64::MAX - 2));
    fails(ErrorKind::InvalidInput, fs.truncate(inode, u64::MAX));
    if space.blocks > 0 {
        let too_much = (space.free_blocks + 1) * u64::from(space.block_size);
        fails(ErrorKind::NoSpace, fs.allocate(inode, 1 << 20, too_much, false));
        // All but the last few blocks fit, which a map of blocks may need for itself.
        let nearly = space.free_blocks * u64::from(space.block_size);
        let tight = fs.allocate(inode, 0, nearly, false);
        assert!(tight.is_ok() || tight.unwrap_err().kind() == ErrorKind::NoSpace);
        fs.truncate(inode, 7).unwrap();
        assert_eq!(fs.statfs().unwrap().free_blocks, space.free_blocks);
        let plenty = (space.free_blocks - space.free_blocks / 20) * u64::from(space.block_size);
        fs.allocate(inode, 0, plenty, false).unwrap();
        assert_eq!(fs.metadata(inode).unwrap().size, plenty);
        // The first block was there before, and where space is handed out in clusters the rest of its cluster.
        assert!(fs.statfs().unwrap().free_blocks <= space.free_blocks / 20 + 32);
        fs.truncate(inode, 7).unwrap();
    }
    assert_eq!(fs.statfs().unwrap().free_blocks, space.free_blocks);
    let after = fs.metadata(inode).unwrap();
    assert_eq!((after.size, after.allocated), (before.size, before.allocated));
    assert_eq!(read_all(fs, inode).unwrap(), b"content");
    fs.write_at(inode, b"", 1 << 20).unwrap();
    assert_eq!(fs.metadata(inode).unwrap().size, 7, "writing nothing makes nothing longer");
    fs.punch(inode, 100, u64::MAX).unwrap();
    assert_eq!(fs.metadata(inode).unwrap().size, 7, "a hole past the end is none");
}

pub(super) fn only_regular_files_hold_content(fs: &mut dyn FileSystem, root: InodeNumber) {
    let device = crate::DeviceNumber { major: 8, minor: 1 };
    let kinds = [
        NodeKind::Directory,
        NodeKind::Symlink(b"t".to_vec()),
        NodeKind::Symlink(vec![b't'; 200]),
        NodeKind::CharDevice(device),
        NodeKind::BlockDevice(device),
        NodeKind::Fifo,
        NodeKind::Socket,
    ];
    for (number, kind) in kinds.into_iter().enumerate() {
        let link = matches!(kind, NodeKind::Symlink(_));
        let node = NewNode { kind, ..directory() };
        let inode = fs.create(root, format!("{number}").as_bytes(), &node).unwrap();
        let before = fs.metadata(inode).unwrap();
        fails(ErrorKind::InvalidInput, fs.read_at(inode, &mut [0; 10], 0));
        fails(ErrorKind::InvalidInput, fs.extent_at(inode, 0));
        fails(ErrorKind::InvalidInput, fs.write_at(inode, b"data", 0));
        fails(ErrorKind::InvalidInput, fs.truncate(inode, 0));
        fails(ErrorKind::InvalidInput, fs.punch(inode, 0, 1));
        fails(ErrorKind::InvalidInput, fs.allocate(inode, 0, 1, false));
        assert_eq!(fs.read_link(inode).is_ok(), link);
        assert_eq!(fs.metadata(inode).unwrap(), before);
    }
    let none = NewNode { kind: NodeKind::Symlink(Vec::new()), ..file() };
    fails(ErrorKind::InvalidInput, fs.create(root, b"none", &none));
    let zero = NewNode { kind: NodeKind::Symlink(b"a\0b".to_vec()), ..file() };
    fails(ErrorKind::InvalidInput, fs.create(root, b"none", &zero));
    let long = NewNode { kind: NodeKind::Symlink(vec![b't'; 4096]), ..file() };
    fails(ErrorKind::InvalidInput, fs.create(root, b"none", &long));
    fails(ErrorKind::NotFound, fs.lookup(root, b"none"));
}
