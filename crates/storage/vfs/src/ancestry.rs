//! The way back from an inode to its names.

use std::collections::HashSet;
use std::ops::ControlFlow;

use crate::{Error, ErrorKind, FileSystem, FileType, InodeNumber, Result};

/// Finds every path that leads to an inode, up to `limit` of them; the root's own is `/`.
///
/// No filesystem keeps the way back, so all of its directories are read until every name is found.
///
/// # Errors
///
/// Kind `NotFound` where no path leads to it, and whatever the filesystem fails with.
pub fn paths_of(fs: &dyn FileSystem, inode: InodeNumber, limit: usize) -> Result<Vec<Vec<u8>>> {
    let root = fs.root();
    if inode == root {
        return Ok(vec![b"/".to_vec()]);
    }
    let absent = || Error::new(ErrorKind::NotFound, "no path leads to the inode");
    // How many names there are is known once there is one: any number may be asked for.
    let mut wanted = 1;
    // Each directory, with its name and the place of its parent in this list.
    let mut directories = vec![(root, Vec::new(), 0)];
    // A damaged filesystem may have directories within themselves.
    let mut seen = HashSet::from([root]);
    let (mut found, mut at) = (Vec::new(), 0);
    while at < directories.len() && found.len() < wanted {
        let directory = directories[at].0;
        fs.read_dir(directory, &mut |entry| {
            let is_wanted = entry.inode == inode;
            if is_wanted {
                found.push(path(&directories, at, &entry.name));
            } else if entry.file_type == FileType::Directory && seen.insert(entry.inode) {
                directories.push((entry.inode, entry.name, at));
            }
            if found.len() == 1 && is_wanted {
                wanted = names_of(fs, inode).clamp(1, limit.max(1));
            }
            if found.len() < wanted { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        at += 1;
    }
    if found.is_empty() { Err(absent()) } else { Ok(found) }
}

/// How many names an inode has. The links of a directory are its own and its children's, but it has one name.
fn names_of(fs: &dyn FileSystem, inode: InodeNumber) -> usize {
    match fs.metadata(inode) {
        Ok(metadata) if metadata.file_type != FileType::Directory => metadata.links as usize,
        _ => 1,
    }
}

fn path(directories: &[(InodeNumber, Vec<u8>, usize)], mut at: usize, name: &[u8]) -> Vec<u8> {
    let mut names = vec![name];
    while at != 0 {
        names.push(&directories[at].1);
        at = directories[at].2;
    }
    names.iter().rev().flat_map(|name| b"/".iter().chain(*name)).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MemoryFs, NewNode, NodeKind};

    fn node(kind: NodeKind) -> NewNode {
        NewNode { kind, mode: 0o755, uid: 0, gid: 0 }
    }

    #[test]
    fn every_name_of_an_inode_is_found() {
        let mut fs = MemoryFs::default();
        let root = fs.root();
        let a = fs.create(root, b"a", &node(NodeKind::Directory)).unwrap();
        let b = fs.create(a, b"b", &node(NodeKind::Directory)).unwrap();
        let file = fs.create(b, b"file", &node(NodeKind::Regular)).unwrap();
        fs.link(file, root, b"other").unwrap();
        let paths = |inode, limit| paths_of(&fs, inode, limit).unwrap();
        assert_eq!(paths(root, 9), [b"/"]);
        assert_eq!(paths(b, 9), [b"/a/b"]);
        assert_eq!(paths(file, 9), [b"/other".to_vec(), b"/a/b/file".to_vec()]);
        assert_eq!(paths(file, 1), [b"/other"]);
        assert_eq!(paths_of(&fs, InodeNumber(999), 1).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn directories_within_themselves_do_not_go_on_for_ever() {
        let mut fs = MemoryFs::default();
        let root = fs.root();
        let a = fs.create(root, b"a", &node(NodeKind::Directory)).unwrap();
        fs.force_name(a, b"again", a);
        fs.force_name(a, b"root", root);
        let lost = fs.create(root, b"lost", &node(NodeKind::Regular)).unwrap();
        fs.link(lost, a, b"second").unwrap();
        assert_eq!(paths_of(&fs, lost, 9).unwrap().len(), 2);
        fs.unlink(root, b"lost").unwrap();
        fs.unlink(a, b"second").unwrap();
        assert_eq!(paths_of(&fs, lost, 9).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
