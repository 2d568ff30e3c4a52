//! LUKS disks made to harm: truncated, with bits flipped, with numbers that lead elsewhere.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

mod oracle;

use std::sync::OnceLock;

use proptest::prelude::*;

fn samples() -> &'static [Vec<u8>] {
    static SAMPLES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    SAMPLES.get_or_init(oracle::samples)
}

/// One way to damage a disk.
#[derive(Debug, Clone)]
enum Damage {
    Flip {
        at: usize,
        bit: u8,
    },
    Truncate {
        len: usize,
    },
    /// A number of the binary header.
    Word {
        at: usize,
        value: u32,
    },
    /// A number in the JSON text.
    Number {
        nth: usize,
        value: u64,
    },
    /// A piece of the JSON text is lost.
    Cut {
        at: usize,
        len: usize,
    },
}

fn damages() -> impl Strategy<Value = Damage> {
    let near = prop_oneof![
        any::<u64>(),
        0u64..5,
        (0u64..100).prop_map(|number| number * 4096),
        (0u64..80).prop_map(|number| number * 512),
        (0u64..65).prop_map(|shift| 1u64.checked_shl(shift as u32).unwrap_or(u64::MAX)),
    ];
    prop_oneof![
        (0usize..600, 0u8..8).prop_map(|(at, bit)| Damage::Flip { at, bit }),
        (0usize..0x9000, 0u8..8).prop_map(|(at, bit)| Damage::Flip { at, bit }),
        any::<usize>().prop_map(|len| Damage::Truncate { len }),
        (0usize..148, prop_oneof![any::<u32>(), 0u32..2000])
            .prop_map(|(at, value)| Damage::Word { at: at * 4, value }),
        (0usize..60, near.clone()).prop_map(|(nth, value)| Damage::Number { nth, value }),
        (0usize..60, near).prop_map(|(nth, value)| Damage::Number { nth, value }),
        (0usize..1200, 1usize..60).prop_map(|(at, len)| Damage::Cut { at, len }),
    ]
}

fn damage(bytes: &mut Vec<u8>, damage: &Damage) {
    match *damage {
        Damage::Flip { at, bit } => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << bit;
            }
        }
        Damage::Truncate { len } => bytes.truncate(len % bytes.len().max(1)),
        Damage::Word { at, value } => {
            if let Some(place) = bytes.get_mut(at..at + 4) {
                place.copy_from_slice(&value.to_be_bytes());
            }
        }
        Damage::Number { nth, value } => oracle::renumber(bytes, nth, &value.to_string()),
        Damage::Cut { at, len } => {
            for area in [0x1000, 0x5000] {
                if let Some(text) = bytes.get_mut(area + at..area + 0x3000) {
                    text.rotate_left(len);
                    let end = text.len() - len;
                    text[end..].fill(0);
                }
            }
        }
    }
}

fn cases() -> u32 {
    if std::env::var_os("VMWRIGHT_TORTURE").is_some() { 50_000 } else { 600 }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_opens_keeps_what_is_written(
        sample in 0usize..3, reseal in 0u8..8, damage_list in proptest::collection::vec(damages(), 0..4),
    ) {
        let mut bytes = samples()[sample].clone();
        for one in &damage_list {
            damage(&mut bytes, one);
        }
        // Without checksums that fit, hardly anything of version 2 is looked at.
        if sample > 0 && reseal > 0 {
            oracle::reseal(&mut bytes);
        }
        oracle::judge(bytes);
    }
}

#[test]
fn every_number_of_the_metadata_may_be_anything() {
    let mut opened = 0;
    for sample in &samples()[1..] {
        for nth in 0..60 {
            for value in [
                "0",
                "1",
                "31",
                "32",
                "512",
                "4096",
                "32768",
                "294912",
                "18446744073709551615",
                "99999999999999999999",
            ] {
                let mut bytes = sample.clone();
                oracle::renumber(&mut bytes, nth, value);
                oracle::reseal(&mut bytes);
                opened += u32::from(oracle::judge(bytes));
            }
        }
    }
    assert!(opened > 60, "{opened}");
}

#[test]
fn every_truncation_is_noticed_or_harmless() {
    for sample in samples() {
        assert!(oracle::judge(sample.clone()), "the sample is sound");
        let header = sample.len() - 9000;
        let lens = (0..header).step_by(header / 40).chain((header..sample.len()).step_by(997));
        for len in lens {
            oracle::judge(sample[..len].to_vec());
        }
    }
}
