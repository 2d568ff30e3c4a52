//! A whole tree as tests compare it.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;

use super::read_all;
use crate::{DeviceNumber, FileSystem, FileType, InodeNumber, Result, Timestamp};

/// One file or directory as a test sees it: all that does not depend on the implementation.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct TreeNode {
    pub file_type: FileType,
    pub mode: u16,
    pub owner: (u32, u32),
    pub links: u32,
    pub device: DeviceNumber,
    pub modified: Timestamp,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// A file's bytes or a link's target.
    pub content: Vec<u8>,
    /// The first path, in order, that leads to the same inode.
    pub first_path: Vec<u8>,
}

/// Reads a whole tree: every path but the root's own, which is empty, begins with a slash.
///
/// `skip` names an entry of the root that is left out, such as `lost+found`.
pub fn tree(fs: &dyn FileSystem, skip: &[u8]) -> Result<BTreeMap<Vec<u8>, TreeNode>> {
    let (mut tree, mut seen) = (BTreeMap::new(), HashMap::new());
    let mut waiting = vec![(Vec::new(), fs.root())];
    while let Some((path, inode)) = waiting.pop() {
        let node = tree_node(fs, &path, inode)?;
        if node.file_type == FileType::Directory {
            let mut names = BTreeMap::new();
            fs.read_dir(inode, &mut |entry| {
                let again = names.insert(entry.name.clone(), entry.inode);
                assert!(again.is_none(), "{:?} is listed twice", entry.name);
                ControlFlow::Continue(())
            })?;
            let names = names.into_iter().filter(|(name, _)| !(path.is_empty() && name == skip));
            waiting.extend(names.map(|(name, inode)| ([&path[..], b"/", &name].concat(), inode)));
        }
        tree.insert(path, (inode, node));
    }
    let paths = tree.into_iter().map(|(path, (inode, mut node))| {
        node.first_path = seen.entry(inode).or_insert_with(|| path.clone()).clone();
        (path, node)
    });
    Ok(paths.collect())
}

fn tree_node(fs: &dyn FileSystem, path: &[u8], inode: InodeNumber) -> Result<TreeNode> {
    let metadata = fs.metadata(inode)?;
    let content = match metadata.file_type {
        FileType::Regular => read_all(fs, inode)?,
        FileType::Symlink => fs.read_link(inode)?,
        _ => Vec::new(),
    };
    let mut xattrs = BTreeMap::new();
    for name in fs.xattr_names(inode)? {
        let value = fs.xattr(inode, &name)?;
        assert!(xattrs.insert(name, value).is_none(), "{path:?} lists an attribute twice");
    }
    Ok(TreeNode {
        file_type: metadata.file_type,
        mode: metadata.mode,
        owner: (metadata.uid, metadata.gid),
        links: metadata.links,
        device: metadata.device,
        modified: metadata.modified,
        xattrs,
        content,
        first_path: Vec::new(),
    })
}
