//! VHD and VDI images made to harm: truncated, with fields out of range, with blocks that lie on tables.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

#[path = "oracle/blocks.rs"]
mod oracle;

use std::sync::OnceLock;

use proptest::prelude::*;
use vmwright_image::Format;
use vmwright_judges::{output, tool};

fn samples(format: Format) -> &'static [Vec<u8>] {
    static VHD: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    static VDI: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    match format {
        Format::Vhd => VHD.get_or_init(|| {
            let mut samples = oracle::samples(format);
            samples.push(oracle::child());
            samples
        }),
        _ => VDI.get_or_init(|| oracle::samples(format)),
    }
}

fn cases() -> u32 {
    if std::env::var_os("VMWRIGHT_TORTURE").is_some() { 50_000 } else { 400 }
}

#[test]
fn every_field_of_the_headers_may_hold_anything() {
    for format in [Format::Vhd, Format::Vdi] {
        for sample in samples(format) {
            let end = sample.len() - 512;
            let fields = (0..0x680).step_by(4).chain((end..sample.len()).step_by(4));
            // Descriptions and reserved bytes say nothing.
            let fields = fields.filter(|at| format == Format::Vdi || !(0x60..0x200).contains(at));
            for at in fields {
                for value in [0u32, 1, 0x8000_0000, 0xffff_fffe, u32::MAX] {
                    let mut bytes = sample.clone();
                    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
                    if format == Format::Vhd {
                        oracle::seal(&mut bytes);
                    }
                    oracle::judge(bytes, format);
                }
            }
        }
    }
}

#[test]
fn files_cut_off_anywhere_are_refused_or_read_right() {
    for format in [Format::Vhd, Format::Vdi] {
        for sample in samples(format) {
            for len in (0..sample.len()).step_by(457).chain([511, 512, 513, 1023, 1536]) {
                oracle::judge(sample[..len.min(sample.len())].to_vec(), format);
            }
        }
    }
}

/// What qemu-img reads, if it reads all of it.
fn qemu_reads(bytes: &[u8], format: &str) -> Option<Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("image"), bytes).unwrap();
    let done = output("qemu-img", ["convert", "-f", format, "-O", "raw", &path("image"), &path("raw")]);
    done.status.success().then(|| std::fs::read(path("raw")).unwrap())
}

#[test]
fn what_is_read_of_damaged_images_is_what_qemu_reads() {
    if tool("qemu-img").is_none() {
        vmwright_judges::skip!("qemu-img is not installed");
    }
    // The first sample of each is dynamic. QEMU knows no VDI with small blocks.
    let sample = &samples(Format::Vhd)[0];
    let mut compared = 0;
    for seed in 0..40u64 {
        let mut bytes = sample.clone();
        let entry = 1536 + (seed as usize * 7 % 41) * 4;
        let places = [0xffff_ffff, 4u32, 0x0b, (seed as u32) * 9 + 11, 0x00ff_ffff];
        bytes[entry..entry + 4].copy_from_slice(&places[seed as usize % 5].to_be_bytes());
        let ours = oracle::judge(bytes.clone(), Format::Vhd);
        if let (Some(ours), Some(theirs)) = (ours, qemu_reads(&bytes, "vpc")) {
            assert!(ours == theirs, "{seed}");
            compared += 1;
        }
    }
    assert!(compared > 5, "{compared}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damages_are_found_and_never_harm(
        script in proptest::collection::vec(any::<u8>(), 12..80),
        vhd in any::<bool>(),
    ) {
        let format = if vhd { Format::Vhd } else { Format::Vdi };
        oracle::judge_script(samples(format), format, &script);
    }
}
