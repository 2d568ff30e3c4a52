//! What a crash may do to a qcow2 image.

use crate::crash::{Case, SIZE, STEPS, Step, is_torture};
use crate::{Layout, Qcow2Options};

fn case(cluster_size: u32, refcount_bits: u32) -> Case {
    let qcow2 = Qcow2Options { cluster_size, refcount_bits, ..Qcow2Options::default() };
    Case {
        layout: Layout::Qcow2(qcow2),
        size: SIZE,
        steps: STEPS.to_vec(),
        qemu_check: Some("qcow2"),
        tears_sectors: false,
    }
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

/// Extended entries need clusters of 16 KiB; the steps touch parts of 512 bytes.
fn extended() -> Case {
    let qcow2 = Qcow2Options { extended_l2: true, ..Qcow2Options::default() };
    let steps = [
        Step::Write { offset: 1024, len: 1024, byte: 1 },
        Step::Write { offset: 16_384, len: 16_384, byte: 2 },
        Step::Flush,
        Step::Write { offset: 1536, len: 2048, byte: 3 },
        Step::Zero { offset: 17_000, len: 5000 },
        Step::Write { offset: 18_000, len: 100, byte: 4 },
        Step::Flush,
        Step::Discard { offset: 16_384, len: 16_384 },
        Step::Write { offset: 8000, len: 30_000, byte: 5 },
        Step::Flush,
        Step::Zero { offset: 0, len: 32_768 },
        Step::Write { offset: 20_000, len: 100, byte: 6 },
        Step::Write { offset: 40_000, len: 100, byte: 7 },
    ];
    let layout = Layout::Qcow2(Qcow2Options { cluster_size: 16 << 10, ..qcow2 });
    Case { layout, size: 100_352, steps: steps.to_vec(), qemu_check: Some("qcow2"), tears_sectors: false }
}

#[test]
fn crash_with_parts_of_clusters_loses_nothing_flushed() {
    let total = extended().crash_everywhere(if is_torture() { 40 } else { 4 });
    assert!(total > 20, "only {total} changes");
}

#[test]
fn a_failed_write_is_reported_and_the_image_goes_on() {
    case(4096, 16).fail_everywhere();
}
