//! What a crash may do to a VDI.

use super::VdiOptions;
use crate::Layout;
use crate::crash::{Case, SIZE, STEPS, is_torture};

fn case(block_size: u32, preallocated: bool) -> Case {
    let layout = Layout::Vdi(VdiOptions { block_size, preallocated, ..VdiOptions::default() });
    // qemu-img calls every count that is too high a damage, though nothing comes of it.
    Case { layout, size: SIZE, steps: STEPS.to_vec(), qemu_check: None, tears_sectors: true }
}

#[test]
fn crash_after_flush_data_survives() {
    for block_size in if is_torture() { vec![4096, 8192, 65536, 1 << 20] } else { vec![4096] } {
        let total = case(block_size, false).crash_everywhere(if is_torture() { 40 } else { 2 });
        assert!(total > 40, "only {total} changes");
    }
}

#[test]
fn a_failed_write_is_reported_and_the_image_goes_on() {
    for preallocated in [false, true] {
        case(4096, preallocated).fail_everywhere();
    }
}
