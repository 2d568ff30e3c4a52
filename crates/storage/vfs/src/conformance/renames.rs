//! Moving names.

use super::{directory, fails, file};
use crate::{ErrorKind, FileSystem, InodeNumber, NewNode, NodeKind, RenameMode};

pub(super) fn renames_move_replace_and_swap(fs: &mut dyn FileSystem, root: InodeNumber) {
    use RenameMode::{Exchange, NoReplace, Replace};
    let (a, b) = (fs.create(root, b"a", &file()).unwrap(), fs.create(root, b"b", &file()).unwrap());
    let dir = fs.create(root, b"dir", &directory()).unwrap();
    let sub = fs.create(root, b"sub", &directory()).unwrap();
    fails(ErrorKind::NotFound, fs.rename((root, b"none"), (root, b"x"), Replace));
    fails(ErrorKind::Exists, fs.rename((root, b"a"), (root, b"b"), NoReplace));
    fs.rename((root, b"a"), (root, b"b"), Exchange).unwrap();
    assert_eq!((fs.lookup(root, b"a").unwrap(), fs.lookup(root, b"b").unwrap()), (b, a));
    fs.rename((root, b"a"), (root, b"b"), Replace).unwrap();
    assert_eq!(fs.lookup(root, b"b").unwrap(), b);
    fails(ErrorKind::NotFound, fs.lookup(root, b"a"));
    let links = fs.metadata(root).unwrap().links;
    fs.rename((root, b"sub"), (dir, b"moved"), NoReplace).unwrap();
    assert_eq!(fs.metadata(root).unwrap().links, links - 1);
    assert_eq!(fs.metadata(dir).unwrap().links, 3);
    fails(ErrorKind::InvalidInput, fs.rename((root, b"dir"), (sub, b"x"), Replace));
    fails(ErrorKind::InvalidInput, fs.rename((root, b"dir"), (dir, b"x"), Replace));
    fails(ErrorKind::InvalidInput, fs.rename((root, b"b"), (root, b"dir"), Replace));
    fails(ErrorKind::InvalidInput, fs.rename((dir, b"moved"), (root, b"b"), Replace));
    fails(ErrorKind::NotFound, fs.rename((root, b"b"), (root, b"none"), Exchange));
    fs.rename((root, b"b"), (dir, b"moved"), Exchange).unwrap();
    assert_eq!(fs.lookup(root, b"b").unwrap(), sub);
    assert_eq!((fs.metadata(root).unwrap().links, fs.metadata(dir).unwrap().links), (links, 2));
    fails(ErrorKind::InvalidInput, fs.rename((root, b"b"), (root, b"dir"), Replace));
    fs.unlink(dir, b"moved").unwrap();
    fs.rename((root, b"b"), (root, b"dir"), Replace).unwrap();
    assert_eq!(fs.lookup(root, b"dir").unwrap(), sub);
    fs.link(fs.lookup(root, b"dir").unwrap(), root, b"x").unwrap_err();
    let same = fs.create(root, b"same", &file()).unwrap();
    fs.link(same, root, b"other").unwrap();
    fs.rename((root, b"same"), (root, b"other"), Replace).unwrap();
    assert_eq!(fs.lookup(root, b"same").unwrap(), same, "two names of one inode stay");
}

/// What stands at one end of a rename.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Nothing,
    File,
    Link,
    EmptyDirectory,
    FullDirectory,
}

const ENDS: [End; 5] = [End::Nothing, End::File, End::Link, End::EmptyDirectory, End::FullDirectory];

impl End {
    fn is_directory(self) -> bool {
        matches!(self, Self::EmptyDirectory | Self::FullDirectory)
    }

    fn make(self, fs: &mut dyn FileSystem, dir: InodeNumber, name: &[u8]) -> Option<InodeNumber> {
        let link = NewNode { kind: NodeKind::Symlink(b"target".to_vec()), ..file() };
        match self {
            Self::Nothing => None,
            Self::File => Some(fs.create(dir, name, &file()).unwrap()),
            Self::Link => Some(fs.create(dir, name, &link).unwrap()),
            Self::EmptyDirectory => Some(fs.create(dir, name, &directory()).unwrap()),
            Self::FullDirectory => {
                let made = fs.create(dir, name, &directory()).unwrap();
                fs.create(made, b"inside", &directory()).unwrap();
                Some(made)
            }
        }
    }
}

/// What must come of a rename.
fn expected(from: End, to: End, mode: RenameMode) -> Result<(), ErrorKind> {
    match (from, to, mode) {
        (End::Nothing, _, _) => Err(ErrorKind::NotFound),
        (_, End::Nothing, RenameMode::Exchange) => Err(ErrorKind::NotFound),
        (_, End::Nothing, _) | (_, _, RenameMode::Exchange) => Ok(()),
        (_, _, RenameMode::NoReplace) => Err(ErrorKind::Exists),
        (_, End::FullDirectory, RenameMode::Replace) => Err(ErrorKind::InvalidInput),
        (from, to, RenameMode::Replace) if from.is_directory() != to.is_directory() => {
            Err(ErrorKind::InvalidInput)
        }
        _ => Ok(()),
    }
}

pub(super) fn every_rename_does_as_its_mode_says(fs: &mut dyn FileSystem, root: InodeNumber) {
    let modes = [RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange];
    let mut number = 0;
    for from in ENDS {
        for to in ENDS {
            for mode in modes {
                for across in [false, true] {
                    let dir = fs.create(root, format!("dir-{number}").as_bytes(), &directory()).unwrap();
                    number += 1;
                    one_rename(fs, dir, (from, to), mode, across);
                }
            }
        }
    }
}

fn one_rename(
    fs: &mut dyn FileSystem,
    dir: InodeNumber,
    (from, to): (End, End),
    mode: RenameMode,
    across: bool,
) {
    let what = format!("{from:?} to {to:?}, {mode:?}, across directories: {across}");
    let other = if across { fs.create(dir, b"other", &directory()).unwrap() } else { dir };
    let (moved, target) = (from.make(fs, dir, b"from"), to.make(fs, other, b"to"));
    let names = |fs: &dyn FileSystem| (fs.lookup(dir, b"from").ok(), fs.lookup(other, b"to").ok());
    let answer = fs.rename((dir, b"from"), (other, b"to"), mode).map_err(|error| error.kind());
    assert_eq!(answer, expected(from, to, mode), "{what}");
    let after = match (answer, mode) {
        (Err(_), _) => (moved, target),
        (Ok(()), RenameMode::Exchange) => (target, moved),
        (Ok(()), _) => (None, moved),
    };
    assert_eq!(names(fs), after, "{what}");
    if answer.is_ok()
        && mode == RenameMode::Replace
        && let Some(target) = target
    {
        assert!(fs.metadata(target).is_err(), "{what}: what was replaced is still there");
    }
    let kind = |inode: Option<InodeNumber>| inode.is_some_and(|inode| inode_is_directory(fs, inode));
    let inside = u32::from(kind(after.0));
    let outside = u32::from(kind(after.1));
    let links = |inode| fs.metadata(inode).unwrap().links;
    match across {
        true => assert_eq!((links(dir), links(other)), (3 + inside, 2 + outside), "{what}"),
        false => assert_eq!(links(dir), 2 + inside + outside, "{what}"),
    }
}

fn inode_is_directory(fs: &dyn FileSystem, inode: InodeNumber) -> bool {
    fs.metadata(inode).unwrap().file_type == crate::FileType::Directory
}

pub(super) fn no_directory_moves_beneath_itself(fs: &mut dyn FileSystem, root: InodeNumber) {
    let top = fs.create(root, b"top", &directory()).unwrap();
    let mut deep = top;
    for level in 0..20 {
        deep = fs.create(deep, format!("{level}").as_bytes(), &directory()).unwrap();
    }
    for mode in [RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange] {
        let target: &[u8] = if mode == RenameMode::Exchange { b"file" } else { b"new" };
        if mode == RenameMode::Exchange {
            fs.create(deep, b"file", &file()).unwrap();
        }
        fails(ErrorKind::InvalidInput, fs.rename((root, b"top"), (deep, target), mode));
        let first = fs.lookup(top, b"0").unwrap();
        fails(ErrorKind::InvalidInput, fs.rename((top, b"0"), (deep, target), mode));
        assert_eq!(fs.lookup(top, b"0").unwrap(), first);
    }
    // The other way round the target would come beneath itself.
    fs.create(root, b"x", &file()).unwrap();
    fails(ErrorKind::InvalidInput, fs.rename((deep, b"file"), (root, b"top"), RenameMode::Exchange));
    fs.rename((root, b"x"), (deep, b"y"), RenameMode::NoReplace).unwrap();
    // Onto itself nothing happens.
    fs.rename((root, b"top"), (root, b"top"), RenameMode::Replace).unwrap();
    fs.rename((root, b"top"), (root, b"top"), RenameMode::Exchange).unwrap();
    fails(ErrorKind::Exists, fs.rename((root, b"top"), (root, b"top"), RenameMode::NoReplace));
    assert_eq!(fs.lookup(root, b"top").unwrap(), top);
}
