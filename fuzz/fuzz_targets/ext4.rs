//! Volumes that mke2fs made, with bytes replaced: walked, then changed.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/storage/ext4/tests/oracle/mod.rs"]
mod oracle;

/// Volumes with and without checksums, filled a little.
static VOLUMES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let kinds: [&[&str]; 4] = [
        &["-t", "ext4", "-O", "^metadata_csum,^uninit_bg"],
        &["-t", "ext2"],
        &["-t", "ext4", "-O", "inline_data,^metadata_csum"],
        &["-t", "ext4"],
    ];
    kinds.into_iter().map(volume).collect()
});

fn volume(kind: &[&str]) -> Vec<u8> {
    let dir = std::env::temp_dir().join(format!("fuzz-ext4-{}", std::process::id()));
    std::fs::create_dir_all(dir.join("tree/many")).expect("a temporary folder");
    for number in 0..300 {
        let path = dir.join(format!("tree/many/a file of some name {number}"));
        std::fs::write(path, vec![b'x'; number * 10]).expect("a temporary file");
    }
    let image = dir.join("image");
    let status = std::process::Command::new("mke2fs")
        .args(["-q", "-F", "-b", "1024", "-N", "1024", "-d"])
        .arg(dir.join("tree"))
        .args(kind)
        .arg(&image)
        .arg("2M")
        .status()
        .expect("mke2fs is installed");
    assert!(status.success());
    let bytes = std::fs::read(&image).expect("the image that mke2fs made");
    std::fs::remove_dir_all(dir).expect("the folder made above");
    bytes
}

fuzz_target!(|input: (u8, Vec<(u16, u8, u8)>, Vec<[u32; 4]>)| {
    let (which, patches, words) = input;
    let mut bytes = VOLUMES[usize::from(which) % VOLUMES.len()].clone();
    let used: Vec<usize> =
        (0..bytes.len() / 64).filter(|n| bytes[n * 64..n * 64 + 64].iter().any(|&byte| byte != 0)).collect();
    for (place, within, value) in patches {
        bytes[used[usize::from(place) % used.len()] * 64 + usize::from(within) % 64] = value;
    }
    let _ = oracle::walk(&bytes);
    oracle::change(&bytes, &words[..words.len().min(64)]);
});
