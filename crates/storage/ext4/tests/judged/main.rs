//! Volumes made by mke2fs and filled by the kernel, held against the kernel and e2fsck.
#![allow(clippy::unwrap_used, clippy::panic)]

mod corpus;
mod damage;
mod describing;
mod fallback;
mod folding;
mod guards;
mod images;
mod inline;
mod journal_device;
mod journals;
mod made;
mod making;
mod mmp;
mod names;
#[path = "../oracle/mod.rs"]
mod oracle;
mod populate;
mod quota;
mod random;
mod ranges;
mod rare;
mod reading;
mod repairing;
mod resizing;
mod seals;
mod sequences;
mod tree;
mod tuning;
mod values;
mod verdicts;
mod writing;
