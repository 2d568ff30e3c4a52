//! What must hold for any bytes taken as an archive. Fuzzing and property tests share it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

use vmwright_rootfs::{ErrorKind, PopulateOptions, Source, TarArchive, populate, populate_layers};
use vmwright_vfs::MemoryFs;
use vmwright_vfs::conformance::tree;

fn source(bytes: &[u8]) -> TarArchive {
    TarArchive::stream(std::io::Cursor::new(bytes.to_vec()))
}

/// Puts what is in an archive into a filesystem, on its own and as a layer.
pub(crate) fn fill(bytes: Vec<u8>) {
    let (mut alone, mut layered) = (MemoryFs::default(), MemoryFs::default());
    let single = populate(&mut alone, &mut source(&bytes), &PopulateOptions::default());
    let mut layers: Vec<Box<dyn Source>> = vec![Box::new(source(&bytes))];
    let layers = populate_layers(&mut layered, &mut layers, &PopulateOptions::default());
    for outcome in [&single, &layers] {
        if let Err(error) = outcome {
            assert_refused(error);
        }
    }
    // Whatever came of it, what is in the filesystems can be listed.
    drop(tree(&alone, b"").unwrap());
    drop(tree(&layered, b"").unwrap());
}

fn assert_refused(error: &vmwright_rootfs::Error) {
    assert_ne!(error.kind(), ErrorKind::Io, "{error}");
    assert!(!error.to_string().is_empty());
}

/// Makes the checksums of all headers right again.
pub(crate) fn reseal(bytes: &mut [u8]) {
    for block in bytes.chunks_exact_mut(512) {
        if &block[257..262] == b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        }
    }
}
