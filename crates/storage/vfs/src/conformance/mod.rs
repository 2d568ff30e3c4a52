//! What every implementation of [`FileSystem`] must do, as a suite that their tests call.
//!
//! [`check`] runs fixed cases, each in a directory of its own. [`Op`] is one random operation: tests apply
//! the same ones to the filesystem under test and to [`crate::MemoryFs`], and compare the answers and then the
//! [`tree`]s. Both panic where something is not as it must be.
#![allow(clippy::panic, clippy::unwrap_used)]

use crate::{ErrorKind, FileSystem, InodeNumber, NewNode, NodeKind, Result, Timestamp};

mod attributes;
mod content;
mod names;
mod op;
mod renames;
#[cfg(test)]
mod tests;
mod tree;
mod volume;

pub use op::{Op, OpPath};
pub use tree::{TreeNode, tree};

fn read_all(fs: &dyn FileSystem, inode: InodeNumber) -> Result<Vec<u8>> {
    let mut content = vec![0; usize::try_from(fs.metadata(inode)?.size).unwrap()];
    let len = fs.read_at(inode, &mut content, 0)?;
    assert_eq!(len, content.len(), "a file is shorter than its size");
    Ok(content)
}

/// Bytes that differ with place and seed.
fn pattern(seed: u32, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    (0..len).map(step).collect()
}

/// A new, empty filesystem to run cases on.
pub type Make<'a> = &'a mut dyn FnMut() -> Box<dyn FileSystem>;

/// One case, in a directory of its own.
type Case = fn(&mut dyn FileSystem, InodeNumber);

const CASES: &[Case] = &[
    names::names_are_unique_and_valid,
    names::names_are_bytes_up_to_the_longest,
    names::bad_names_are_refused_everywhere,
    names::what_is_no_directory_holds_no_names,
    names::an_inode_goes_with_its_last_name,
    names::directories_count_their_links,
    names::links_share_one_inode,
    names::large_directories_list_each_name_once,
    content::files_hold_what_is_written,
    content::files_shrink_grow_and_get_holes,
    content::space_is_taken_before_there_is_content,
    content::space_past_the_end_is_kept_or_refused,
    content::what_cannot_be_taken_changes_nothing,
    content::only_regular_files_hold_content,
    renames::renames_move_replace_and_swap,
    renames::every_rename_does_as_its_mode_says,
    renames::no_directory_moves_beneath_itself,
    attributes::links_keep_their_targets,
    attributes::attributes_are_kept,
    attributes::extended_attributes_are_kept,
    attributes::attributes_of_every_size_are_kept_or_refused,
    attributes::lists_of_access_are_attributes,
    attributes::times_are_kept_to_the_nanosecond,
    attributes::changes_are_stamped,
    volume::labels_and_identifiers_change,
    volume::free_space_is_counted_and_mapped,
];

/// Runs every fixed case, one after another on the same filesystem.
pub fn check(make: Make<'_>) {
    run(make, CASES);
}

/// Runs the cases that go to a format's limits, which take their time.
pub fn check_limits(make: Make<'_>) {
    run(make, &[names::names_of_one_inode_are_bounded]);
}

fn run(make: Make<'_>, cases: &[Case]) {
    let mut fs = make();
    for (number, case) in cases.iter().enumerate() {
        fs.set_now(Timestamp { seconds: 1_000_000_000, nanoseconds: 0 });
        let root = fs.root();
        let dir = fs.create(root, format!("case-{number}").as_bytes(), &directory()).unwrap();
        case(&mut *fs, dir);
        fs.sync().unwrap();
    }
}

fn file() -> NewNode {
    NewNode { kind: NodeKind::Regular, mode: 0o644, uid: 1, gid: 2 }
}

fn directory() -> NewNode {
    NewNode { kind: NodeKind::Directory, mode: 0o755, uid: 1, gid: 2 }
}

fn fails<T: std::fmt::Debug>(kind: ErrorKind, result: Result<T>) {
    assert_eq!(result.unwrap_err().kind(), kind);
}
