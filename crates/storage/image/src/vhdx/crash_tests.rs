//! What a crash may do to a VHDX image.

use crate::crash::{Case, Step, is_torture};
use crate::{Layout, VhdxOptions, VhdxSubformat};

use Step::{Discard, Flush, Write, Zero};

const MIB: usize = 1 << 20;

/// Allocation, zeroing, discarding and reusing, in blocks of 1 MiB; the disk ends within a block.
const STEPS: [Step; 9] = [
    Write { offset: MIB - 1000, len: 2000, byte: 1 },
    Flush,
    Write { offset: MIB - 512, len: 512, byte: 2 },
    Discard { offset: 0, len: MIB },
    Write { offset: 2 * MIB, len: 4096, byte: 3 },
    Flush,
    Zero { offset: MIB - 8192, len: 8192 + MIB },
    Write { offset: 100, len: 5000, byte: 4 },
    Flush,
];

fn case(subformat: VhdxSubformat, steps: &[Step]) -> Case {
    let vhdx = VhdxOptions { subformat, block_size: 1 << 20, ..VhdxOptions::default() };
    Case { layout: Layout::Vhdx(vhdx), size: 2 * MIB + 4096, steps: steps.to_vec(), qemu_check: None }
}

#[test]
fn crash_after_flush_data_survives() {
    let steps = if is_torture() { &STEPS[..] } else { &STEPS[..6] };
    let total = case(VhdxSubformat::Dynamic, steps).crash_everywhere(if is_torture() { 20 } else { 0 });
    assert!(total > 20, "only {total} changes");
}

#[test]
fn crash_of_a_fixed_image_loses_nothing() {
    // In place, what is torn within a sector is the medium's affair; and a discard leaves everything as it is.
    let steps = [
        Write { offset: 0, len: 512, byte: 1 },
        Flush,
        Zero { offset: MIB - 512, len: 1024 },
        Write { offset: 2 * MIB, len: 512, byte: 2 },
        Flush,
    ];
    case(VhdxSubformat::Fixed, &steps).crash_everywhere(0);
}

#[test]
fn a_failed_write_is_reported_and_the_image_goes_on() {
    case(VhdxSubformat::Dynamic, &STEPS).fail_everywhere();
}
