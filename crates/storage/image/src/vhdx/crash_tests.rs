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
    Flush,
    Write { offset: 100, len: 5000, byte: 3 },
    Zero { offset: MIB - 8192, len: 8192 + 4096 },
    Flush,
    Write { offset: MIB, len: 4096, byte: 4 },
];

fn case(subformat: VhdxSubformat, steps: &[Step]) -> Case {
    let vhdx = VhdxOptions { subformat, block_size: 1 << 20, ..VhdxOptions::default() };
    Case {
        layout: Layout::Vhdx(vhdx),
        size: MIB + 8192,
        steps: steps.to_vec(),
        qemu_check: None,
        tears_sectors: true,
    }
}

#[test]
fn crash_after_flush_data_survives() {
    // The file has several MiB, which makes each crash dear.
    let steps = if is_torture() { &STEPS[..] } else { &STEPS[..5] };
    let total = case(VhdxSubformat::Dynamic, steps).crash_everywhere(if is_torture() { 20 } else { 0 });
    assert!(total > 12, "only {total} changes");
}

#[test]
fn crash_of_a_fixed_image_loses_nothing() {
    // In place, what is torn within a sector is the medium's affair; and a discard leaves everything as it is.
    let steps = [
        Write { offset: 0, len: 512, byte: 1 },
        Flush,
        Zero { offset: MIB - 512, len: 1024 },
        Write { offset: MIB + 512, len: 512, byte: 2 },
        Flush,
    ];
    let steps = if is_torture() { &steps[..] } else { &steps[..3] };
    case(VhdxSubformat::Fixed, steps).crash_everywhere(0);
}

#[test]
fn a_failed_write_is_reported_and_the_image_goes_on() {
    let steps = if is_torture() { &STEPS[..] } else { &STEPS[..5] };
    case(VhdxSubformat::Dynamic, steps).fail_everywhere();
}
