//! What a crash may do to a qcow2 image.

use crate::crash::{Case, SIZE, STEPS, is_torture};
use crate::{Layout, Qcow2Options};

fn case(cluster_size: u32, refcount_bits: u32) -> Case {
    let qcow2 = Qcow2Options { cluster_size, refcount_bits, ..Qcow2Options::default() };
    Case { layout: Layout::Qcow2(qcow2), size: SIZE, steps: STEPS.to_vec(), qemu_check: Some("qcow2") }
}

#[test]
fn crash_after_flush_data_survives() {
    for refcount_bits in if is_torture() { vec![1, 2, 4, 8, 16, 32, 64] } else { vec![64] } {
        let total = case(4096, refcount_bits).crash_everywhere(if is_torture() { 40 } else { 4 });
        assert!(total > 40, "only {total} changes");
    }
}

#[test]
fn crash_while_refcount_blocks_are_made_loses_nothing() {
    // A block of 64-bit counts covers 64 clusters of 512 bytes: the steps need several new ones.
    case(512, 64).crash_everywhere(1);
}

#[test]
fn a_failed_write_is_reported_and_the_image_goes_on() {
    case(4096, 16).fail_everywhere();
}
