use std::collections::BTreeMap;
use std::ops::ControlFlow;

use serde::Serialize;
use vmwright_ext4::{Ext4, Options, Pieces, score};
use vmwright_vfs::{FileType, Root};

use super::{Format, Target};
use crate::Result;

/// In how many pieces a file lies.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct FilePieces {
    /// The inode.
    pub inode: u64,
    /// The first path that leads to it.
    pub path: Option<String>,
    /// How many blocks it has.
    pub blocks: u64,
    /// In how many pieces they lie.
    pub pieces: u64,
    /// The fewest that they could lie in.
    pub fewest: u64,
    /// The score, as `e4defrag -c` counts it.
    pub score: f64,
}

impl FilePieces {
    fn new(pieces: Pieces, path: Option<String>) -> Self {
        Self {
            inode: pieces.inode.0,
            path,
            blocks: pieces.blocks,
            pieces: pieces.pieces,
            fewest: pieces.fewest(),
            score: pieces.score(),
        }
    }
}

/// In how many pieces the content of a filesystem lies.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Fragmentation {
    /// How many files and directories have content in blocks.
    pub files: u64,
    /// How many of them lie in more pieces than they must.
    pub fragmented: u64,
    /// How many blocks they have.
    pub blocks: u64,
    /// In how many pieces those lie.
    pub pieces: u64,
    /// The fewest that they could lie in.
    pub fewest: u64,
    /// From 0 to 100: up to 30 there is no problem, up to 55 a little, beyond that defragmenting would help.
    pub score: f64,
    /// The files in the most pieces.
    pub worst: Vec<FilePieces>,
}

impl Target {
    /// Says in how many pieces the content of the filesystem lies, and which `worst` files lie in the most.
    pub fn fragmentation(&self, worst: usize) -> Result<Fragmentation> {
        let volume = self.to_read()?;
        let mut all = Fragmentation {
            files: 0,
            fragmented: 0,
            blocks: 0,
            pieces: 0,
            fewest: 0,
            score: 0.0,
            worst: Vec::new(),
        };
        // By how many pieces there are too many, then by inode, so that equal volumes answer alike.
        let mut ranks: BTreeMap<(u64, u64), Pieces> = BTreeMap::new();
        let visited = volume.visit_pieces(&mut |pieces| {
            all.files += 1;
            all.blocks += pieces.blocks;
            all.pieces += pieces.pieces;
            all.fewest += pieces.fewest();
            let excess = pieces.pieces.saturating_sub(pieces.fewest());
            if excess > 0 {
                all.fragmented += 1;
                ranks.insert((excess, u64::MAX - pieces.inode.0), pieces);
                if ranks.len() > worst {
                    ranks.pop_first();
                }
            }
            ControlFlow::Continue(())
        });
        visited.map_err(|error| self.failed(error))?;
        all.score = score(all.pieces, all.fewest, all.blocks);
        let mut paths = BTreeMap::new();
        let root = Root::new(Box::new(volume));
        if !ranks.is_empty() {
            root.walk("/", &mut |entry| {
                let wanted = ranks.values().any(|pieces| pieces.inode == entry.location.inode);
                if wanted {
                    paths
                        .entry(entry.location.inode)
                        .or_insert_with(|| String::from_utf8_lossy(&entry.path).into_owned());
                }
                if paths.len() < ranks.len() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
        }
        let worst = ranks.into_values().rev();
        all.worst = worst.map(|pieces| FilePieces::new(pieces, paths.remove(&pieces.inode))).collect();
        Ok(all)
    }

    /// Says in how many pieces one file or directory lies, or each file beneath a directory if `beneath`.
    pub fn pieces_of(&self, path: &[u8], beneath: bool) -> Result<Vec<FilePieces>> {
        let volume = self.to_read()?;
        let counter = self.to_read()?;
        let root = Root::new(Box::new(volume));
        let start = root.resolve(path, true)?;
        let mut inodes = vec![(start.location.inode, start.path.clone())];
        if beneath && root.metadata_at(start.location)?.file_type == FileType::Directory {
            root.walk(&start.path, &mut |entry| {
                inodes.push((entry.location.inode, entry.path.clone()));
                ControlFlow::Continue(())
            })?;
        }
        let failed = |error| self.failed(error);
        let each = inodes.into_iter().map(|(inode, path)| {
            let pieces = counter.pieces(inode).map_err(&failed)?;
            Ok(FilePieces::new(pieces, Some(String::from_utf8_lossy(&path).into_owned())))
        });
        each.collect()
    }

    fn to_read(&self) -> Result<Ext4> {
        let Format::Ext = self.format()?;
        Ext4::open(self.disk().clone(), Options::default()).map_err(|error| self.failed(error))
    }
}
