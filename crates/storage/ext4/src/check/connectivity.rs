//! Connectivity: every directory is reached from the root, by one way.

use super::{Checker, Place, Problem};
use crate::error::Result;
use crate::inode::ROOT_INODE;

/// What is known of a directory on the way up.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Unknown,
    /// It is on the way that is followed.
    Followed,
    Known,
}

/// Follows every directory up to the root.
pub(super) fn check(checker: &mut Checker) -> Result<()> {
    let Some(root) = checker.directory_index(ROOT_INODE) else {
        checker.findings.add(Problem::RootMissing, Place::Inode(ROOT_INODE));
        return Ok(());
    };
    let mut ways = vec![Way::Unknown; checker.directories.len()];
    ways[root] = Way::Known;
    for index in 0..checker.directories.len() {
        follow(checker, &mut ways, index);
    }
    for index in 0..checker.directories.len() {
        let (parent, dotdot) = (checker.tree.parents[index], checker.tree.dotdots[index]);
        if parent != dotdot {
            let place = Place::Inode(checker.directories[index].inode);
            let (expected, found) = (parent.into(), dotdot.into());
            checker.findings.mismatch(Problem::ParentWrong, place, "..", expected, found);
            if parent != 0 {
                checker.repairs.lead_up(checker.directories[index].inode, parent);
            }
        }
    }
    Ok(())
}

/// Goes up from one directory until the way is known, or ends, or is a loop.
fn follow(checker: &mut Checker, ways: &mut [Way], start: usize) {
    let (mut at, mut path) = (start, Vec::new());
    while ways[at] == Way::Unknown {
        ways[at] = Way::Followed;
        path.push(at);
        let parent = checker.tree.parents[at];
        let next = if parent == 0 { None } else { checker.directory_index(parent) };
        let Some(next) = next else {
            unconnected(checker, at, Problem::Unconnected);
            break;
        };
        if ways[next] == Way::Followed {
            unconnected(checker, next, Problem::Loop);
            break;
        }
        at = next;
    }
    path.into_iter().for_each(|at| ways[at] = Way::Known);
}

fn unconnected(checker: &mut Checker, index: usize, problem: Problem) {
    let inode = checker.directories[index].inode;
    checker.findings.add(problem, Place::Inode(inode));
    if problem == Problem::Unconnected {
        checker.repairs.reconnect(inode);
    }
}
