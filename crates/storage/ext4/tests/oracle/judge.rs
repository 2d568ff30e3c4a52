//! e2fsck as a judge of bytes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use vmwright_judges::{output, tool};

/// What e2fsck says of a volume.
#[derive(Debug)]
pub(crate) struct Verdict {
    /// Whether it finds nothing.
    pub(crate) clean: bool,
    /// Whether it came to its end, so that what it did not name is not there.
    pub(crate) complete: bool,
    /// What it names, without the numbers, names and paths.
    pub(crate) problems: BTreeSet<String>,
    /// The inodes that it finds fault with.
    pub(crate) inodes: BTreeSet<u32>,
    /// All that it said.
    pub(crate) text: String,
}

/// e2fsck, with a place for the volumes that it is to look at.
pub(crate) struct Judge {
    image: PathBuf,
    _dir: tempfile::TempDir,
}

impl Verdict {
    /// What is found here that was not found before, but for more of inodes that were at fault already.
    pub(crate) fn beyond(&self, before: &Self) -> BTreeSet<&str> {
        let is_new = |line: &&str| {
            let known = inode(line).is_some_and(|inode| before.inodes.contains(&inode));
            !known && problem(line).is_some_and(|problem| !before.problems.contains(&problem))
        };
        self.text.lines().filter(is_new).collect()
    }
}

/// The inode that a line is about, as e2fsck writes them: `Inode 12`, `inode #12`, `inode <12>`.
fn inode(line: &str) -> Option<u32> {
    let (_, rest) = line.split_once("node ")?;
    let digits = rest.trim_start_matches(['#', '<']).split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

impl Judge {
    /// Finds e2fsck; `None` where it is not installed.
    pub(crate) fn find() -> Option<Self> {
        tool("e2fsck").and(tool("timeout"))?;
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let dir = dir.unwrap();
        Some(Self { image: dir.path().join("image"), _dir: dir })
    }

    /// Lets e2fsck look at a volume, for some seconds at most.
    pub(crate) fn verdict(&self, bytes: &[u8]) -> Verdict {
        std::fs::write(&self.image, bytes).unwrap();
        let e2fsck = tool("e2fsck").unwrap();
        let args = ["10".as_ref(), e2fsck.as_os_str(), "-fn".as_ref(), self.image.as_os_str()];
        let output = output("timeout", args);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        // It forgets what it asked before its first pass; times are left alone, as there is no clock here.
        let early = text.split("Pass 1:").next().unwrap_or_default();
        let questions = early.matches("? no").count() - early.matches("is in the future.\nFix? no").count();
        let asked = questions > 0 || early.contains("trying backup blocks");
        let unread = ["skipping journal recovery", "aborted", "trying backup blocks", "Illegal"];
        Verdict {
            clean: output.status.code() == Some(0) && !asked && !text.contains("could be more shallow"),
            complete: matches!(output.status.code(), Some(0 | 4))
                && text.contains("Pass 5:")
                && !unread.iter().any(|unread| text.contains(unread)),
            problems: text.lines().filter_map(problem).collect(),
            inodes: text.lines().filter_map(inode).collect(),
            text,
        }
    }
}

/// What a line names: its words, but for numbers, names in quotes, paths and what is in brackets.
fn problem(line: &str) -> Option<String> {
    const OTHER: [&str; 7] = ["Pass ", "e2fsck ", "Warning!", "***", "Fix?", "yes", "no"];
    // The last line counts files and blocks.
    let is_total = line.contains(" files (") && line.ends_with(" blocks");
    if is_total || OTHER.iter().any(|other| line.starts_with(other)) || line.contains("WARNING: ") {
        return None;
    }
    let is_word = |word: &&str| word.chars().all(|c| c.is_ascii_alphabetic() || "-,.'_".contains(c));
    let quoted: Vec<&str> = line.split('\'').step_by(2).collect();
    let quoted =
        if line.matches('\'').count().is_multiple_of(2) { quoted.join(" ") } else { line.to_owned() };
    // What follows is e2fsck's question and our answer to it.
    let statement = quoted.split("?  no").next().unwrap_or_default();
    let words: Vec<&str> = statement.split_whitespace().filter(is_word).take(8).collect();
    (words.len() > 1).then(|| words.join(" "))
}
