//! Names and the inodes that they lead to.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use super::{directory, fails, file, read_all};
use crate::{ErrorKind, FileSystem, FileType, InodeNumber, NewNode, NodeKind, Result};

pub(super) fn names_are_unique_and_valid(fs: &mut dyn FileSystem, root: InodeNumber) {
    let inode = fs.create(root, b"name", &file()).unwrap();
    assert_eq!(fs.lookup(root, b"name").unwrap(), inode);
    fails(ErrorKind::Exists, fs.create(root, b"name", &directory()));
    fails(ErrorKind::NotFound, fs.lookup(root, b"nam"));
    for bad in [&b""[..], b"a/b", b"a\0b", &[b'x'; 256]] {
        fails(ErrorKind::InvalidInput, fs.create(root, bad, &file()));
    }
    fs.create(root, &[b'x'; 255], &file()).unwrap();
    fails(ErrorKind::InvalidInput, fs.create(inode, b"in-a-file", &file()));
    fs.unlink(root, b"name").unwrap();
    fails(ErrorKind::NotFound, fs.lookup(root, b"name"));
    fails(ErrorKind::NotFound, fs.unlink(root, b"name"));
}

pub(super) fn directories_count_their_links(fs: &mut dyn FileSystem, root: InodeNumber) {
    let links = |fs: &dyn FileSystem, inode| fs.metadata(inode).unwrap().links;
    let before = links(fs, root);
    let dir = fs.create(root, b"dir", &directory()).unwrap();
    let sub = fs.create(dir, b"sub", &directory()).unwrap();
    assert_eq!((links(fs, root), links(fs, dir), links(fs, sub)), (before + 1, 3, 2));
    fails(ErrorKind::InvalidInput, fs.rmdir(root, b"dir"));
    fails(ErrorKind::InvalidInput, fs.unlink(root, b"dir"));
    fs.create(dir, b"file", &file()).unwrap();
    fails(ErrorKind::InvalidInput, fs.rmdir(dir, b"file"));
    fs.rmdir(dir, b"sub").unwrap();
    fs.unlink(dir, b"file").unwrap();
    assert_eq!(links(fs, dir), 2);
    fs.rmdir(root, b"dir").unwrap();
    assert_eq!(links(fs, root), before);
}

pub(super) fn links_share_one_inode(fs: &mut dyn FileSystem, root: InodeNumber) {
    let inode = fs.create(root, b"one", &file()).unwrap();
    let dir = fs.create(root, b"dir", &directory()).unwrap();
    fs.link(inode, dir, b"two").unwrap();
    assert_eq!(fs.lookup(dir, b"two").unwrap(), inode);
    assert_eq!(fs.metadata(inode).unwrap().links, 2);
    fails(ErrorKind::Exists, fs.link(inode, root, b"dir"));
    fails(ErrorKind::InvalidInput, fs.link(dir, root, b"other"));
    fs.write_at(inode, b"shared", 0).unwrap();
    fs.unlink(root, b"one").unwrap();
    assert_eq!(read_all(fs, fs.lookup(dir, b"two").unwrap()).unwrap(), b"shared");
    assert_eq!(fs.metadata(inode).unwrap().links, 1);
}

pub(super) fn large_directories_list_each_name_once(fs: &mut dyn FileSystem, root: InodeNumber) {
    let dir = fs.create(root, b"dir", &directory()).unwrap();
    let name = |number: u32| format!("a name of some length, number {number}").into_bytes();
    for number in 0..1500 {
        fs.create(dir, &name(number), &file()).unwrap();
    }
    for number in (0..1500).step_by(3) {
        fs.unlink(dir, &name(number)).unwrap();
    }
    let mut listed = Vec::new();
    fs.read_dir(dir, &mut |entry| {
        assert_eq!(entry.file_type, FileType::Regular);
        listed.push(entry.name);
        ControlFlow::Continue(())
    })
    .unwrap();
    listed.sort();
    let mut expected: Vec<_> = (0..1500).filter(|number| number % 3 != 0).map(name).collect();
    expected.sort();
    assert!(listed == expected);
    assert!(expected.iter().all(|name| fs.lookup(dir, name).is_ok()));
    fails(ErrorKind::NotFound, fs.lookup(dir, &name(0)));
}

/// The names that a directory lists.
fn listed(fs: &dyn FileSystem, dir: InodeNumber) -> Result<BTreeSet<Vec<u8>>> {
    let mut names = BTreeSet::new();
    fs.read_dir(dir, &mut |entry| {
        assert!(names.insert(entry.name), "a name is listed twice");
        ControlFlow::Continue(())
    })?;
    Ok(names)
}

pub(super) fn names_are_bytes_up_to_the_longest(fs: &mut dyn FileSystem, root: InodeNumber) {
    let longest = fs.statfs().unwrap().name_max as usize;
    let mut names: BTreeSet<Vec<u8>> = (1..=255_u8).map(|byte| vec![b'x', byte]).collect();
    names.remove(&b"x/"[..]);
    names.extend((1..=longest).map(|len| vec![b'n'; len]));
    names.extend((1..4).map(|last| [vec![0xfe; longest - 1], vec![last]].concat()));
    names.extend([b"...".to_vec(), b" ".to_vec(), b"\n".to_vec(), "ü".into(), b"u\xcc\x88".to_vec()]);
    for name in &names {
        fs.create(root, name, &file()).unwrap();
    }
    assert_eq!(listed(fs, root).unwrap(), names);
    let inodes: BTreeSet<_> = names.iter().map(|name| fs.lookup(root, name).unwrap()).collect();
    assert_eq!(inodes.len(), names.len());
    let mut visits = 0;
    let visit = &mut |_| {
        visits += 1;
        if visits == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    fs.read_dir(root, visit).unwrap();
    assert_eq!(visits, 3, "a visit that breaks ends it");
    for name in &names {
        fs.unlink(root, name).unwrap();
    }
    assert!(listed(fs, root).unwrap().is_empty());
}

pub(super) fn bad_names_are_refused_everywhere(fs: &mut dyn FileSystem, root: InodeNumber) {
    use crate::RenameMode::{Exchange, NoReplace, Replace};
    let inode = fs.create(root, b"file", &file()).unwrap();
    let dir = fs.create(root, b"dir", &directory()).unwrap();
    let long = vec![b'x'; fs.statfs().unwrap().name_max as usize + 1];
    for bad in [&b""[..], b".", b"..", b"a/b", b"a\0", &long] {
        for kind in [NodeKind::Regular, NodeKind::Directory, NodeKind::Symlink(b"t".to_vec()), NodeKind::Fifo]
        {
            fails(ErrorKind::InvalidInput, fs.create(root, bad, &NewNode { kind, ..file() }));
        }
        fails(ErrorKind::InvalidInput, fs.link(inode, root, bad));
        for mode in [Replace, NoReplace] {
            fails(ErrorKind::InvalidInput, fs.rename((root, b"file"), (root, bad), mode));
        }
        // Whether such a name is none or just not there, the contract leaves open.
        let unnamed = |result: Result<()>| {
            let kind = result.unwrap_err().kind();
            assert!(matches!(kind, ErrorKind::InvalidInput | ErrorKind::NotFound), "{kind:?}");
        };
        unnamed(fs.rename((root, b"file"), (root, bad), Exchange));
        unnamed(fs.rename((root, bad), (root, b"new"), Replace));
        unnamed(fs.unlink(root, bad));
        unnamed(fs.rmdir(root, bad));
    }
    let expected: BTreeSet<_> = [b"dir".to_vec(), b"file".to_vec()].into();
    assert_eq!(listed(fs, root).unwrap(), expected);
    assert!(listed(fs, dir).unwrap().is_empty());
}

pub(super) fn what_is_no_directory_holds_no_names(fs: &mut dyn FileSystem, root: InodeNumber) {
    use crate::RenameMode::Replace;
    let kinds = [NodeKind::Regular, NodeKind::Symlink(b"dir".to_vec()), NodeKind::Fifo, NodeKind::Socket];
    let dir = fs.create(root, b"dir", &directory()).unwrap();
    fs.create(dir, b"x", &file()).unwrap();
    for (number, kind) in kinds.into_iter().enumerate() {
        let name = format!("{number}").into_bytes();
        let inode = fs.create(root, &name, &NewNode { kind, ..file() }).unwrap();
        fails(ErrorKind::InvalidInput, fs.lookup(inode, b"x"));
        fails(ErrorKind::InvalidInput, fs.read_dir(inode, &mut |_| ControlFlow::Continue(())));
        fails(ErrorKind::InvalidInput, fs.create(inode, b"y", &file()));
        fails(ErrorKind::InvalidInput, fs.link(fs.lookup(dir, b"x").unwrap(), inode, b"y"));
        fails(ErrorKind::InvalidInput, fs.unlink(inode, b"x"));
        fails(ErrorKind::InvalidInput, fs.rmdir(inode, b"x"));
        fails(ErrorKind::InvalidInput, fs.rename((inode, b"x"), (root, b"y"), Replace));
        fails(ErrorKind::InvalidInput, fs.rename((dir, b"x"), (inode, b"y"), Replace));
        fails(ErrorKind::InvalidInput, fs.rmdir(root, &name));
    }
    assert_eq!(listed(fs, dir).unwrap(), [b"x".to_vec()].into());
}

pub(super) fn an_inode_goes_with_its_last_name(fs: &mut dyn FileSystem, root: InodeNumber) {
    // A first name, so that the directory's own space does not count.
    fs.create(root, b"stays", &file()).unwrap();
    let before = fs.statfs().unwrap();
    let inode = fs.create(root, b"a", &file()).unwrap();
    fs.write_at(inode, &[7; 200_000], 0).unwrap();
    fs.link(inode, root, b"b").unwrap();
    assert_eq!(before.free_inodes.saturating_sub(1), fs.statfs().unwrap().free_inodes);
    fs.unlink(root, b"a").unwrap();
    assert_eq!(read_all(fs, inode).unwrap(), [7; 200_000]);
    fs.unlink(root, b"b").unwrap();
    assert!(fs.metadata(inode).is_err());
    let after = fs.statfs().unwrap();
    assert_eq!((after.free_blocks, after.free_inodes), (before.free_blocks, before.free_inodes));
    let dir = fs.create(root, b"dir", &directory()).unwrap();
    fs.rmdir(root, b"dir").unwrap();
    assert!(fs.metadata(dir).is_err());
    let after = fs.statfs().unwrap();
    assert_eq!((after.free_blocks, after.free_inodes), (before.free_blocks, before.free_inodes));
    let other = fs.create(root, b"a", &file()).unwrap();
    assert_eq!(fs.metadata(other).unwrap().file_type, FileType::Regular);
    assert!(read_all(fs, other).unwrap().is_empty(), "a new inode holds nothing of an old one");
}

/// How many names a file can have is the format's own; it is told, and nothing changes.
pub(super) fn names_of_one_inode_are_bounded(fs: &mut dyn FileSystem, root: InodeNumber) {
    let inode = fs.create(root, b"first", &file()).unwrap();
    let mut links = 1;
    loop {
        let name = format!("{links}").into_bytes();
        match fs.link(inode, root, &name) {
            Ok(()) => links += 1,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NoSpace);
                fails(ErrorKind::NotFound, fs.lookup(root, &name));
                break;
            }
        }
        assert!(links <= 1 << 20, "the number of links has no end");
    }
    assert_eq!(fs.metadata(inode).unwrap().links, links);
    fs.unlink(root, b"first").unwrap();
    fs.link(inode, root, b"again").unwrap();
    fails(ErrorKind::NoSpace, fs.link(inode, root, b"one too many"));
}
