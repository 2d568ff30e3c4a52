//! Random sequences of changes against a flat model, the result judged by qemu-img.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

mod model;

use proptest::prelude::*;
use vmwright_image::{Format, Layout};
use vmwright_judges::{run, tool};

fn cases() -> u32 {
    if std::env::var_os("VMWRIGHT_TORTURE").is_some() { 5000 } else { 120 }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_equals_the_model(script in proptest::collection::vec(any::<u8>(), 40..400)) {
        let (head, script) = script.split_at(4);
        let shape = model::qcow2(head);
        let steps = model::steps(script, shape.scale);
        let (bytes, expected) = model::run(&shape, &steps);
        if tool("qemu-img").is_some() {
            let folder = tempfile::tempdir().unwrap();
            let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
            std::fs::write(path("image"), &bytes).unwrap();
            std::fs::write(path("expected"), &expected).unwrap();
            std::fs::write(path("base"), shape.backing.clone().unwrap_or_default()).unwrap();
            run("qemu-img", ["check", "-q", "-f", "qcow2", &path("image")]);
            let (image, expected) = (path("image"), path("expected"));
            run("qemu-img", ["compare", "-q", "-f", "qcow2", "-F", "raw", &image, &expected]);
        }
    }

    #[test]
    fn any_sequence_on_a_raw_image_equals_the_model(script in proptest::collection::vec(any::<u8>(), 40..400)) {
        let layout = Layout::new(Format::Raw);
        let shape = model::Shape { layout, size: 100_000, backing: None, resizable: true, scale: 512 };
        let (bytes, expected) = model::run(&shape, &model::steps(&script, shape.scale));
        prop_assert!(bytes == expected);
    }
}
