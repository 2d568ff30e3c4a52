//! What a crash may do to a dynamic VHD.

use super::VhdOptions;
use crate::Layout;
use crate::crash::{Case, SIZE, STEPS, is_torture};

fn case(block_size: u32) -> Case {
    let layout = Layout::Vhd(VhdOptions { block_size, ..VhdOptions::default() });
    Case { layout, size: SIZE, steps: STEPS.to_vec(), qemu_check: None, tears_sectors: true }
}

#[test]
fn crash_after_flush_data_survives() {
    for block_size in if is_torture() { vec![4096, 8192, 65536, 2 << 20] } else { vec![4096] } {
        let total = case(block_size).crash_everywhere(if is_torture() { 40 } else { 4 });
        assert!(total > 40, "only {total} changes");
    }
}

#[test]
fn a_failed_write_is_reported_and_the_image_goes_on() {
    case(4096).fail_everywhere();
}
