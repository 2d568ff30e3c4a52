//! What we say of whole volumes, held against dumpe2fs, filefrag and debugfs.

use std::ops::ControlFlow;

use vmwright_judges::{Mount, can_mount, need, run, skip};
use vmwright_vfs::{FileSystem, FileType, InodeNumber, NewNode, NodeKind};

use crate::images::{Image, KINDS, named};
use crate::writing::open;

#[test]
fn the_description_of_every_kind_of_volume_is_that_of_dumpe2fs() {
    need!("mke2fs", "debugfs", "dumpe2fs");
    for kind in KINDS {
        let image = Image::make(kind, 64);
        let text = run("dumpe2fs", ["-h".as_ref(), image.path().as_os_str()]);
        let judged = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
            line.map(|value| value.trim().to_owned())
        };
        let found = vmwright_ext4::describe(&*image.disk(true)).unwrap();
        let opened = image.open().describe();
        if kind.writable {
            assert_eq!(opened.usage.free, found.usage.free, "{}", kind.name);
        }
        let (geometry, usage, inner) = (&found.geometry, &found.usage, &found.internals);
        let size = u64::from(geometry.block_size);
        let numbers = [
            ("Inode count", usage.inodes.into()),
            ("Block count", geometry.blocks),
            ("Reserved block count", usage.reserved / size),
            ("Free blocks", usage.free / size),
            ("Free inodes", usage.free_inodes.into()),
            ("First block", geometry.first_block),
            ("Block size", size),
            ("Blocks per group", geometry.blocks_per_group.into()),
            ("Inodes per group", geometry.inodes_per_group.into()),
            ("Inode size", geometry.inode_size.into()),
            ("First inode", inner.first_inode.into()),
            ("Mount count", found.history.mounts.into()),
        ];
        for (key, number) in numbers {
            assert_eq!(judged(key), Some(number.to_string()), "{}: {key}", kind.name);
        }
        let optional = [
            ("Group descriptor size", u64::from(geometry.descriptor_size), 32),
            ("Flex block group size", geometry.flex_groups, 1),
            ("Reserved GDT blocks", geometry.reserved_descriptor_blocks, 0),
            ("Cluster size", geometry.cluster_size, size),
            ("Journal inode", found.journal.as_ref().map_or(0, |journal| journal.inode).into(), 0),
        ];
        for (key, number, absent) in optional {
            assert_eq!(judged(key).unwrap_or(absent.to_string()), number.to_string(), "{}: {key}", kind.name);
        }
        let mut features: Vec<_> = found.features.clone();
        let theirs = judged("Filesystem features").unwrap();
        let mut theirs: Vec<_> = theirs.split(' ').collect();
        features.sort_unstable();
        theirs.sort_unstable();
        assert_eq!(features, theirs, "{}", kind.name);
        assert_eq!(judged("Filesystem UUID").as_ref(), Some(&found.uuid));
        assert_eq!(judged("Directory Hash Seed"), Some(inner.name_hash_seed.clone()));
        assert_eq!(judged("Default directory hash"), Some(inner.name_hash.to_owned()));
        assert_eq!(judged("Default mount options"), Some(found.defaults.mount_options.join(" ")));
        assert_eq!(judged("Errors behavior"), Some("Continue".to_owned()));
        assert_eq!(judged("Filesystem state").unwrap() == "clean", found.state.clean && !found.state.errors);
        assert_eq!(judged("Checksum type").as_deref(), inner.checksum.filter(|kind| *kind == "crc32c"));
        let journal = judged("Total journal size").map(|size| size.trim_end_matches(['k', 'M']).to_owned());
        let ours = found.journal.and_then(|journal| journal.size).map(|size| size >> 10).unwrap_or(0);
        assert!(journal.is_none_or(|theirs| [ours, ours >> 10].contains(&theirs.parse().unwrap())));
    }
}

/// In how many extents `filefrag` finds a file.
fn extents(path: &std::path::Path) -> u64 {
    let text = run("filefrag", [path]);
    text.rsplit(": ").next().unwrap().split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn files_lie_in_as_many_pieces_as_filefrag_finds() {
    need!("mke2fs", "debugfs", "filefrag");
    if !can_mount() {
        skip!("mounting is not allowed here");
    }
    for kind in ["default", "ext2_1k", "ext3"] {
        let image = Image::make(named(kind), 64);
        let mut volume = open(&image);
        let root = volume.root();
        let node = NewNode { kind: NodeKind::Regular, mode: 0o644, uid: 0, gid: 0 };
        let names: Vec<_> = (0..6).map(|number| format!("file-{number}")).collect();
        let inodes: Vec<_> =
            names.iter().map(|name| volume.create(root, name.as_bytes(), &node).unwrap()).collect();
        // Files that grow in turns lie between one another; the last one has holes.
        for step in 0..20 {
            for (number, inode) in inodes.iter().enumerate() {
                let skip = if number == 5 { 3 } else { 1 };
                let len = 4096 * (1 + number);
                volume.write_at(*inode, &vec![7; len], step * skip * len as u64).unwrap();
            }
        }
        volume.sync().unwrap();
        let mut seen = Vec::new();
        let visit = &mut |pieces: vmwright_ext4::Pieces| {
            seen.push(pieces);
            ControlFlow::Continue(())
        };
        volume.visit_pieces(visit).unwrap();
        drop(volume);
        let mount = Mount::new(image.path(), "ro,noatime");
        let volume = image.open();
        for (name, inode) in names.iter().zip(&inodes) {
            let pieces = volume.pieces(*inode).unwrap();
            assert!(seen.contains(&pieces));
            assert_eq!(pieces.pieces, extents(&mount.path().join(name)), "{kind}: {name}");
            assert!(pieces.score() >= 0.0 && pieces.score() <= 100.0);
        }
        assert!(seen.iter().any(|pieces| pieces.file_type == FileType::Directory));
        assert_eq!(seen.iter().filter(|pieces| pieces.file_type == FileType::Regular).count(), 6);
    }
}

#[test]
fn removed_inodes_are_those_that_debugfs_lists() {
    need!("mke2fs", "debugfs");
    if !can_mount() {
        skip!("mounting is not allowed here");
    }
    for kind in ["default", "ext2", "ext3", "plain"] {
        let image = Image::make(named(kind), 40);
        {
            let mount = Mount::new(image.path(), "noatime");
            for number in 0..30 {
                std::fs::write(mount.path().join(format!("{number}")), vec![1; 10_000 * number]).unwrap();
            }
            run("sync", ["-f".as_ref(), mount.path().as_os_str()]);
            for number in (0..30).step_by(3) {
                std::fs::remove_file(mount.path().join(format!("{number}"))).unwrap();
            }
        }
        let volume = image.open();
        let mut found = Vec::new();
        let visit = &mut |deleted| {
            found.push(deleted);
            ControlFlow::Continue(())
        };
        volume.visit_deleted(visit).unwrap();
        assert_eq!(found.len(), 10, "{kind}");
        for deleted in &found {
            assert_eq!((deleted.file_type, deleted.mode), (FileType::Regular, 0o644));
            let InodeNumber(inode) = deleted.inode;
            let request = format!("stat <{inode}>");
            let text = run("debugfs", ["-R".as_ref(), request.as_ref(), image.path().as_os_str()]);
            assert!(text.contains(&format!("Size: {}\n", deleted.size)), "{kind}: {text}\n{deleted:?}");
            assert!(text.contains(&format!("dtime: 0x{:08x}", deleted.deleted.seconds)), "{kind}: {text}");
            assert_eq!(deleted.free_blocks, Some(deleted.blocks), "nothing was written since");
        }
        if kind == "ext2" {
            // Only there the places stay known, which is what debugfs goes by too.
            let text = run("debugfs", ["-R".as_ref(), "lsdel".as_ref(), image.path().as_os_str()]);
            for deleted in found.iter().filter(|deleted| deleted.blocks > 0) {
                assert!(
                    text.lines().any(|line| line.trim().starts_with(&deleted.inode.0.to_string())),
                    "{text}"
                );
            }
        }
    }
}

#[test]
fn free_blocks_are_recorded_in_blocks_where_clusters_are_free() {
    need!("mke2fs", "debugfs", "dumpe2fs");
    for kind in ["bigalloc", "bigalloc_1k", "default"] {
        let image = Image::make(named(kind), 64);
        let mut volume = open(&image);
        let node = NewNode { kind: NodeKind::Regular, mode: 0o644, uid: 0, gid: 0 };
        let inode = volume.create(volume.root(), b"file", &node).unwrap();
        volume.write_at(inode, &[1; 100_000], 0).unwrap();
        volume.sync().unwrap();
        let free = volume.statfs().unwrap().free_blocks;
        let text = run("dumpe2fs", ["-h".as_ref(), image.path().as_os_str()]);
        let theirs = text.lines().find_map(|line| line.strip_prefix("Free blocks:")).unwrap().trim();
        assert_eq!(theirs, free.to_string(), "{kind}");
    }
}
