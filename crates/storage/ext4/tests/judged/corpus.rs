//! Images that e2fsprogs tests itself with: where e2fsck finds something wrong with what we read, so do we.

use std::path::PathBuf;

use vmwright_ext4::{Ext4, Options};
use vmwright_judges::{corpus, need, run, skip};
use vmwright_vfs::FileSystem;

use crate::images::Image;
use crate::{oracle, tree};

fn image(path: PathBuf) -> Image {
    let image = Image::from_bytes(&[]);
    let script = format!("gzip -dc '{}' > '{}'", path.display(), image.path().display());
    run("sh", ["-c", &script]);
    image
}

#[test]
fn a_journal_of_64_bit_numbers_is_replayed_as_e2fsck_replays_it() {
    need!("gzip", "e2fsck", "sh");
    let Some(corpus) = corpus() else { skip!("no corpus here") };
    for name in ["f_jnl_64bit", "f_orphan"] {
        let path = corpus.join(format!("ext4/{name}.img.gz"));
        if !path.is_file() {
            skip!("{} is not here", path.display());
        }
        let ours = image(path);
        let theirs = ours.copy();
        // 0, or 1 where something was put right.
        let status = vmwright_judges::output("e2fsck", ["-fy".as_ref(), theirs.path().as_os_str()]).status;
        assert!(matches!(status.code(), Some(0 | 1)), "{name}: {status}");
        let mut volume = match Ext4::open(ours.disk(false), Options::writable()) {
            Ok(volume) => volume,
            Err(error) => panic!("{name}: {error}"),
        };
        volume.sync().unwrap();
        let shown = tree::of_ours(&volume);
        drop(volume);
        let expected = tree::of_ours(&theirs.open());
        assert!(expected.keys().eq(shown.keys()), "{name}");
        for (path, node) in &expected {
            assert_eq!(shown[path].content, node.content, "{name}: {}", String::from_utf8_lossy(path));
        }
    }
}

#[test]
fn damaged_samples_are_told_or_read_without_harm() {
    need!("gzip", "sh");
    let Some(corpus) = corpus() else { skip!("no corpus here") };
    for name in ["f_htree_leaf_csum", "f_inlinedata_repair"] {
        let path = corpus.join(format!("ext4/{name}.img.gz"));
        if !path.is_file() {
            skip!("{} is not here", path.display());
        }
        let bytes = std::fs::read(image(path).path()).unwrap();
        let verdict = oracle::walk(&bytes);
        oracle::change(&bytes, &[[1, 2, 3, 4]; 20]);
        if name == "f_htree_leaf_csum" {
            assert_eq!(verdict.unwrap_err(), vmwright_ext4::ErrorKind::Corrupt);
        }
    }
}
