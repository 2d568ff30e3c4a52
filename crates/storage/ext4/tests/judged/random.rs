//! Random operations against the model in memory, and damage to volumes.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use vmwright_judges::{need, skip};

use crate::images::named;
use crate::writing::agrees_with_the_model;

/// How many times more than usual.
pub(crate) fn effort() -> u32 {
    if std::env::var_os("VMWRIGHT_TORTURE").is_some() { 40 } else { 1 }
}

#[test]
fn random_operations_leave_what_the_model_has_and_a_sound_volume() {
    need!("mke2fs", "e2fsck", "debugfs");
    if !std::path::Path::new("/dev/shm").is_dir() && effort() > 1 {
        skip!("many images need memory to be made in");
    }
    let kinds = [
        "default",
        "1k",
        "ext2_1k",
        "ext3",
        "inline",
        "inline_wide",
        "ea_inode_1k",
        "ea_inode_inline",
        "seed",
        "uninit",
        "small_inodes",
        "bigalloc",
        "bigalloc_1k",
        "meta_bg_uninit",
    ];
    for kind in kinds {
        let config = Config {
            cases: 3 * effort(),
            max_shrink_iters: 60,
            failure_persistence: None,
            ..Config::default()
        };
        let words = prop::collection::vec(any::<[u32; 4]>(), 20..300);
        let outcome = TestRunner::new(config).run(&words, |words| {
            agrees_with_the_model(named(kind), 24, &words);
            Ok(())
        });
        outcome.unwrap();
    }
}
