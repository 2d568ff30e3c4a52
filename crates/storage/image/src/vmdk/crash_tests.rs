//! What a crash may do to a VMDK image.

use super::VmdkOptions;
use crate::Layout;
use crate::crash::{Case, STEPS, Step, is_torture};

/// Twelve grains and a part of one.
const DISK: usize = 12 * 65536 + 1024;

/// The steps of all formats, stretched to grains of 64 KiB.
fn steps() -> Vec<Step> {
    let wide = STEPS.map(|step| match step {
        Step::Write { offset, len, byte } => {
            Step::Write { offset: offset / 4096 * 65536 + offset % 4096, len, byte }
        }
        Step::Zero { offset, len } => Step::Zero { offset: offset / 4096 * 65536, len: len * 16 },
        Step::Discard { offset, len } => Step::Discard { offset: offset / 4096 * 65536, len: len * 16 },
        Step::Flush => Step::Flush,
    });
    wide.to_vec()
}

fn case(zeroed_grain: bool) -> Case {
    let mut all: Vec<Step> = steps().into_iter().filter(fits).collect();
    // In place; the harness knows no sector of which a part was written.
    all.extend([Step::Write { offset: 66_048, len: 512, byte: 10 }, Step::Flush]);
    all.push(Step::Write { offset: 719_000, len: 4000, byte: 11 });
    Case {
        layout: Layout::Vmdk(VmdkOptions { zeroed_grain, ..VmdkOptions::default() }),
        size: DISK,
        steps: all,
        qemu_check: Some("vmdk"),
        tears_sectors: true,
    }
}

fn fits(step: &Step) -> bool {
    match *step {
        Step::Write { offset, len, .. } | Step::Zero { offset, len } | Step::Discard { offset, len } => {
            offset + len <= DISK
        }
        Step::Flush => true,
    }
}

#[test]
fn crash_after_flush_data_survives() {
    for zeroed in [false, true] {
        let total = case(zeroed).crash_everywhere(if is_torture() { 30 } else { 1 });
        assert!(total > 30, "only {total} changes");
    }
}

#[test]
fn a_failed_write_is_reported_and_the_image_goes_on() {
    case(false).fail_everywhere();
    case(true).fail_everywhere();
}
