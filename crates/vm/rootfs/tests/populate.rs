//! Filesystems that are filled, held against mke2fs, GNU tar, e2fsck and the kernel.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;
use vmwright_disk::{Disk, HostFile};
use vmwright_ext4::make::MakeOptions;
use vmwright_ext4::{Ext4, Options};
use vmwright_judges::{need, output, run, skip};
use vmwright_rootfs::{
    DiskOptions, ErrorKind, HostDirectory, PopulateOptions, Populated, Source, TarArchive, build, populate,
    populate_layers,
};
use vmwright_vfs::conformance::{self, TreeNode};
use vmwright_vfs::{FileSystem, FileType, MemoryFs, Timestamp};
use vmwright_volume::Scheme;

type Tree = BTreeMap<Vec<u8>, TreeNode>;

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A volume made by mke2fs, filled by it from a directory if one is named.
    fn volume(&self, name: &str, from: Option<&Path>) -> PathBuf {
        let path = self.path(name);
        File::create(&path).unwrap().set_len(64 << 20).unwrap();
        let mut args = ["-q", "-F", "-t", "ext4", "-b", "4096", "-N", "4096"].map(AsRef::as_ref).to_vec();
        if let Some(from) = from {
            args.extend(["-d".as_ref(), from.as_os_str()]);
        }
        args.push(path.as_os_str());
        run("mke2fs", args);
        path
    }
}

fn open(path: &Path, write: bool) -> Ext4 {
    let disk = Arc::new(HostFile::open(path, !write).unwrap());
    let options = if write { Options::writable() } else { Options::default() };
    Ext4::open(disk, options).unwrap()
}

/// Fills a new volume; e2fsck must find nothing to say.
fn fill(place: &Place, name: &str, source: &mut dyn Source, options: &PopulateOptions) -> (Tree, Populated) {
    let path = place.volume(name, None);
    let mut volume = open(&path, true);
    let populated = populate(&mut volume, source, options).unwrap();
    volume.sync().unwrap();
    drop(volume);
    sound(&path);
    (tree(&path), populated)
}

fn sound(path: &Path) {
    let said = output("e2fsck", ["-fn".as_ref(), path.as_os_str()]);
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stdout));
}

fn tree(path: &Path) -> Tree {
    conformance::tree(&open(path, false), b"lost+found").unwrap()
}

fn same(ours: &Tree, theirs: &Tree, about: &str) {
    for (path, node) in theirs {
        let shown = String::from_utf8_lossy(path);
        let Some(own) = ours.get(path) else { panic!("{about}: {shown} is missing") };
        let short = |node: &TreeNode| TreeNode { content: Vec::new(), ..node.clone() };
        assert_eq!(short(own), short(node), "{about}: {shown}");
        assert!(own.content == node.content, "{about}: {shown} has another content");
    }
    assert_eq!(ours.len(), theirs.len(), "{about}");
}

/// A directory with one of everything that this process may make.
fn sample(top: &Path) {
    let file = |name: &str, bytes: &[u8]| fs::write(top.join(name), bytes).unwrap();
    fs::create_dir_all(top.join("deep/er/still")).unwrap();
    fs::create_dir(top.join("many")).unwrap();
    for number in 0..700 {
        file(&format!("many/a file with the number {number:05}"), &vec![number as u8; number * 13]);
    }
    file("empty", b"");
    file("deep/er/still/small", b"a line\n");
    let large: Vec<u8> = (0..3_000_000_u32).map(|at| (at / 7) as u8 | 1).collect();
    file("deep/large", &large);
    let holes = File::create(top.join("holes")).unwrap();
    holes.set_len(9_000_001).unwrap();
    for at in [8192, 1_000_000, 5_000_000] {
        holes.write_all_at(&[7; 70_000], at).unwrap();
    }
    fs::hard_link(top.join("deep/large"), top.join("another name")).unwrap();
    symlink("deep/er", top.join("short")).unwrap();
    symlink("x/".repeat(300), top.join("long")).unwrap();
    let name = "ü".repeat(127);
    file(&name, b"a name of 254 bytes");
    let long = top.join("d".repeat(200)).join("e".repeat(200));
    fs::create_dir_all(&long).unwrap();
    fs::write(long.join("f".repeat(100)), b"a long path").unwrap();
    fs::set_permissions(top.join("empty"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::set_permissions(top.join("many"), fs::Permissions::from_mode(0o1777)).unwrap();
    let at = |name: &str| top.join(name).into_os_string();
    run("mkfifo", [at("pipe")]);
    output("mknod", [at("device"), "c".into(), "10".into(), "229".into()]);
    output("mknod", [at("disk"), "b".into(), "259".into(), "65537".into()]);
    output("chown", ["-h".into(), "1234:70000".into(), at("short")]);
    output("chown", ["12345:54321".into(), at("deep")]);
    output("setfattr", ["-n".into(), "user.note".into(), "-v".into(), "0x610a0062".into(), at("empty")]);
    output("setfattr", ["-n".into(), "user.large".into(), "-v".into(), "x".repeat(3000).into(), at("many")]);
    let capability = "0x0100000200200000000000000000000000000000";
    let args = ["-n".into(), "security.capability".into(), "-v".into(), capability.into(), at("deep/large")];
    output("setfattr", args);
    output("setfacl", ["-m".into(), "u:1000:rw,g:1001:r".into(), at("empty")]);
    output("setfacl", ["-d".into(), "-m".into(), "u:1000:rwx".into(), at("deep")]);
    // The whole seconds that every archive can hold.
    run(
        "find",
        [
            top.as_os_str(),
            "-depth".as_ref(),
            "-exec".as_ref(),
            "touch".as_ref(),
            "-h".as_ref(),
            "-d".as_ref(),
            "@1600000000".as_ref(),
            "{}".as_ref(),
            "+".as_ref(),
        ],
    );
}

#[test]
fn a_directory_gives_the_tree_that_mke2fs_makes_of_it() {
    need!("mke2fs", "e2fsck", "setfattr", "setfacl");
    let place = Place::new();
    sample(&place.path("top"));
    let mut theirs = tree(&place.volume("theirs", Some(&place.path("top"))));
    let mut source = HostDirectory::new(&place.path("top")).unwrap();
    // mke2fs leaves the root's own time as it made it.
    let time = Timestamp { seconds: 1_600_000_000, nanoseconds: 0 };
    theirs.get_mut(&b""[..]).unwrap().modified = time;
    let (ours, populated) = fill(&place, "ours", &mut source, &PopulateOptions::default());
    same(&ours, &theirs, "directory");
    assert_eq!(populated.files, 700 + 6);
    assert_eq!((populated.hard_links, populated.symlinks), (1, 2));
    assert!(populated.bytes < 9_000_001, "holes were written");
    // Holes stay holes: the file takes about what is in it.
    let volume = open(&place.path("ours"), false);
    let holes = volume.lookup(volume.root(), b"holes").unwrap();
    assert!(volume.metadata(holes).unwrap().allocated < 300_000);
}

#[test]
fn equal_sources_give_equal_bytes() {
    need!("mke2fs", "e2fsck");
    let place = Place::new();
    sample(&place.path("top"));
    let empty = place.volume("empty", None);
    let made = ["first", "second"].map(|name| {
        let path = place.path(name);
        fs::copy(&empty, &path).unwrap();
        let mut volume = open(&path, true);
        let mut source = HostDirectory::new(&place.path("top")).unwrap();
        populate(&mut volume, &mut source, &PopulateOptions::default()).unwrap();
        volume.sync().unwrap();
        path
    });
    assert!(fs::read(&made[0]).unwrap() == fs::read(&made[1]).unwrap());
}

#[test]
fn every_form_of_tar_archive_gives_the_tree_it_was_made_of() {
    need!("mke2fs", "e2fsck", "tar", "setfattr", "setfacl");
    let place = Place::new();
    let top = place.path("top");
    sample(&top);
    let mut directory = HostDirectory::new(&top).unwrap();
    let (expected, _) = fill(&place, "expected", &mut directory, &PopulateOptions::default());
    let attributes = "--xattrs --xattrs-include=* --acls";
    let forms = [
        format!("--format=pax {attributes}"),
        format!("--format=pax {attributes} -S --sparse-version=1.0"),
        format!("--format=pax {attributes} -S --sparse-version=0.1 -z"),
        format!("--format=pax {attributes} -S --sparse-version=0.0 --zstd"),
        "--format=gnu -S -J".to_owned(),
        "--format=gnu".to_owned(),
    ];
    for (number, form) in forms.iter().enumerate() {
        let archive = place.path("archive");
        let mut args: Vec<std::ffi::OsString> =
            vec!["-c".into(), "--numeric-owner".into(), "--sort=name".into()];
        args.extend(form.split(' ').map(Into::into));
        args.extend(["-f".into(), archive.clone().into(), "-C".into(), top.clone().into(), ".".into()]);
        run("tar", args);
        let mut source = TarArchive::open(&archive).unwrap();
        let find_zeros = PopulateOptions { find_zeros: true, ..PopulateOptions::default() };
        let (ours, _) = fill(&place, &format!("ours-{number}"), &mut source, &find_zeros);
        let mut expected = expected.clone();
        if !form.contains("xattrs") {
            expected.values_mut().for_each(|node| node.xattrs.clear());
        }
        same(&ours, &expected, form);
    }
}

#[test]
fn archives_of_other_programs_are_read() {
    need!("mke2fs", "e2fsck", "python3");
    let place = Place::new();
    let script = r#"
import io, sys, tarfile
for name, form in (("pax", tarfile.PAX_FORMAT), ("gnu", tarfile.GNU_FORMAT), ("ustar", tarfile.USTAR_FORMAT)):
    archive = tarfile.open(sys.argv[1] + "/" + name, "w", format=form)
    for path, kind, mode in (("usr/bin/tool", tarfile.REGTYPE, 0o755), ("bin", tarfile.SYMTYPE, 0o777), ("bin/other", tarfile.REGTYPE, 0o644)):
        entry = tarfile.TarInfo(path)
        entry.type, entry.mode, entry.uid, entry.mtime, entry.linkname = kind, mode, 1000, 12, "usr/bin" if kind == tarfile.SYMTYPE else ""
        content = path.encode() if kind == tarfile.REGTYPE else b""
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    archive.close()
"#;
    run("python3", ["-c".as_ref(), script.as_ref(), place.path("").as_os_str()]);
    for name in ["pax", "gnu", "ustar"] {
        let mut source = TarArchive::open(&place.path(name)).unwrap();
        let (tree, _) = fill(&place, &format!("{name}.img"), &mut source, &PopulateOptions::default());
        // Through a link to where it leads, its parents made.
        assert_eq!(tree[&b"/usr/bin/other"[..]].content, b"bin/other");
        assert_eq!(tree[&b"/usr/bin/tool"[..]].owner, (1000, 0));
        assert_eq!(tree[&b"/usr"[..]].mode, 0o755);
        assert_eq!(tree[&b"/bin"[..]].content, b"usr/bin");
    }
}

#[test]
fn what_was_filled_is_what_the_kernel_sees() {
    need!("mke2fs", "e2fsck", "tar", "setfattr");
    if !vmwright_judges::can_mount() {
        skip!("mounting is not allowed here");
    }
    let place = Place::new();
    sample(&place.path("top"));
    let mut source = HostDirectory::new(&place.path("top")).unwrap();
    fill(&place, "ours", &mut source, &PopulateOptions::default());
    let mount = vmwright_judges::Mount::new(&place.path("ours"), "ro,noatime");
    let listing = |top: &Path| {
        let line = "cd \"$0\" && find . -name lost+found -prune -o -printf '%p %y %m %U %G %s %n %T@ %l\\n' | \
                    awk '{ if ($2 == \"d\") $6 = 0; print }' | sort; \
                    find . -type f -exec sha256sum {} + | sort; getfattr -hR -m - -d . 2>/dev/null; getfacl -nR . 2>/dev/null";
        run("sh", ["-c".as_ref(), line.as_ref(), top.as_os_str()])
    };
    let (ours, theirs) = (listing(mount.path()), listing(&place.path("top")));
    // The order of files in a listing of attributes is the filesystem's.
    let sorted = |text: &str| {
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    };
    let (ours, theirs) = (sorted(&ours), sorted(&theirs));
    let differs = ours.iter().zip(&theirs).find(|(a, b)| a != b && !a.contains("lost+found"));
    assert!(ours.len() + 8 > theirs.len());
    if let Some((a, b)) = differs {
        assert!(a.contains("lost+found") || ours.contains(b), "{a}\n{b}");
    }
    for line in &theirs {
        assert!(ours.contains(line) || line.starts_with(". d"), "the kernel does not see {line}");
    }
}

fn layer(place: &Place, name: &str, make: impl FnOnce(&Path)) -> Box<dyn Source> {
    let (top, archive) = (place.path(name), place.path(&format!("{name}.tar")));
    fs::create_dir(&top).unwrap();
    make(&top);
    let args = [
        "-c",
        "--numeric-owner",
        "--sort=name",
        "-f",
        archive.to_str().unwrap(),
        "-C",
        top.to_str().unwrap(),
        ".",
    ];
    run("tar", args);
    Box::new(TarArchive::open(&archive).unwrap())
}

#[test]
fn later_layers_replace_and_take_away() {
    need!("mke2fs", "e2fsck", "tar");
    let place = Place::new();
    let write = |top: &Path, name: &str| {
        let path = top.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{name} of {}", top.file_name().unwrap().display())).unwrap();
    };
    let first = layer(&place, "first", |top| {
        ["etc/kept", "etc/gone", "opt/one/a", "opt/two", "var/cache/x", "tree/of/files/a", "lib/real"]
            .into_iter()
            .for_each(|name| write(top, name));
        fs::create_dir(top.join("becomes-file")).unwrap();
        write(top, "becomes-file/inside");
        fs::write(top.join("becomes-dir"), "x").unwrap();
    });
    let second = layer(&place, "second", |top| {
        write(top, "etc/.wh.gone");
        write(top, "etc/new");
        write(top, "opt/.wh..wh..opq");
        write(top, "opt/one/b");
        write(top, ".wh.tree");
        fs::write(top.join("becomes-file"), "y").unwrap();
        write(top, "becomes-dir/inside");
        fs::create_dir(top.join("var")).unwrap();
        fs::set_permissions(top.join("var"), fs::Permissions::from_mode(0o700)).unwrap();
    });
    let path = place.volume("volume", None);
    let mut volume = open(&path, true);
    let done = populate_layers(&mut volume, &mut [first, second], &PopulateOptions::default()).unwrap();
    volume.sync().unwrap();
    drop(volume);
    sound(&path);
    let tree = tree(&path);
    let names: Vec<_> = tree
        .iter()
        .filter(|(_, node)| node.file_type == FileType::Regular)
        .map(|(path, _)| String::from_utf8_lossy(path))
        .collect();
    let expected = [
        "/becomes-dir/inside",
        "/becomes-file",
        "/etc/kept",
        "/etc/new",
        "/lib/real",
        "/opt/one/b",
        "/var/cache/x",
    ];
    assert_eq!(names, expected);
    assert_eq!(tree[&b"/var"[..]].mode, 0o700);
    assert_eq!(tree[&b"/becomes-file"[..]].content, b"y");
    assert!(done.files >= 7);
}

/// A ustar archive of entries without content.
fn archive(entries: &[(&str, u8, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, kind, link) in entries {
        let mut block = [0; 512];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[100..107].copy_from_slice(b"0000644");
        block[156] = *kind;
        block[157..157 + link.len()].copy_from_slice(link.as_bytes());
        block[257..265].copy_from_slice(b"ustar\x0000");
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        bytes.extend(block);
    }
    bytes.extend([0; 1024]);
    bytes
}

fn into_memory(bytes: Vec<u8>) -> Result<MemoryFs, vmwright_rootfs::Error> {
    let mut fs = MemoryFs::default();
    let mut source = TarArchive::stream(std::io::Cursor::new(bytes));
    populate(&mut fs, &mut source, &PopulateOptions::default()).map(|_| fs)
}

#[test]
fn entries_stay_within_the_filesystem_or_are_refused() {
    for (entries, kind) in [
        (&[("../outside", b'0', "")][..], ErrorKind::InvalidInput),
        (&[("a/../../b", b'0', "")], ErrorKind::InvalidInput),
        (&[("name", b'1', "missing")], ErrorKind::NotFound),
        (&[("name", b'1', "../../etc/passwd")], ErrorKind::InvalidInput),
        (&[("loop", b'2', "loop"), ("loop/file", b'0', "")], ErrorKind::InvalidInput),
        (&[("file", b'0', ""), ("file/inside", b'0', "")], ErrorKind::Exists),
        (&[("dir", b'5', ""), ("dir", b'0', "")], ErrorKind::Exists),
        (&[("file", b'Q', "")], ErrorKind::Unsupported),
    ] {
        let error = into_memory(archive(entries)).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), kind, "{entries:?}: {error}");
    }
    let fs = into_memory(archive(&[("way", b'2', "../../../etc"), ("way/passwd", b'0', "")])).unwrap();
    let etc = fs.lookup(fs.root(), b"etc").unwrap();
    fs.lookup(etc, b"passwd").unwrap();
    let mut cut = archive(&[("file", b'0', "")]);
    cut.truncate(512);
    assert_eq!(into_memory(cut).map(|_| ()).unwrap_err().kind(), ErrorKind::Corrupt);
}

/// The paths in a memory filesystem that layers of empty files leave.
fn layered(layers: &[&[(&str, u8, &str)]]) -> Result<Vec<String>, vmwright_rootfs::Error> {
    let mut fs = MemoryFs::default();
    let source = |entries: &&[(&str, u8, &str)]| -> Box<dyn Source> {
        Box::new(TarArchive::stream(std::io::Cursor::new(archive(entries))))
    };
    let mut sources: Vec<_> = layers.iter().map(source).collect();
    populate_layers(&mut fs, &mut sources, &PopulateOptions::default())?;
    let tree = conformance::tree(&fs, b"lost+found").unwrap();
    Ok(tree
        .keys()
        .filter(|path| path.len() > 1)
        .map(|path| String::from_utf8_lossy(path).into_owned())
        .collect())
}

#[test]
fn whiteouts_take_away_what_is_beneath_and_not_what_is_in_their_layer() {
    let base: &[(&str, u8, &str)] = &[
        ("a", b'5', ""),
        ("a/b", b'5', ""),
        ("a/b/old", b'0', ""),
        ("a/c", b'5', ""),
        ("a/c/old", b'0', ""),
    ];
    // Wherever in the layer the whiteout stands, and whether or not the layer says what holds the file.
    for second in [
        &[("a/.wh..wh..opq", b'0', ""), ("a/b/new", b'0', "")][..],
        &[("a/b/new", b'0', ""), ("a/.wh..wh..opq", b'0', "")],
        &[("a", b'5', ""), ("a/b", b'5', ""), ("a/b/new", b'0', ""), ("a/.wh..wh..opq", b'0', "")],
        &[("a/b/new", b'0', ""), (".wh.a", b'0', "")],
    ] {
        assert_eq!(layered(&[base, second]).unwrap(), ["/a", "/a/b", "/a/b/new"], "{second:?}");
    }
    for name in [".wh..", ".wh...", ".wh.", "a/.wh..."] {
        assert_eq!(
            layered(&[base, &[(name, b'0', "")]]).unwrap_err().kind(),
            ErrorKind::InvalidInput,
            "{name}"
        );
    }
}

#[test]
fn a_link_does_not_outlive_the_directory_it_replaces() {
    let base: &[(&str, u8, &str)] = &[("a", b'5', ""), ("a/b", b'0', "")];
    let error = layered(&[base, &[("a", b'1', "a/b")]]).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidInput), "{error}");
    assert_eq!(layered(&[base, &[("c", b'1', "a/b"), (".wh.a", b'0', "")]]).unwrap(), ["/a", "/a/b", "/c"]);
    for target in ["a", "/", "."] {
        layered(&[base, &[("c", b'1', target)]]).map(drop).unwrap_err();
    }
}

#[test]
fn lengths_that_cannot_be_are_refused() {
    // An extended header with a record, for a file that has no content.
    let with = |record: &str| {
        let mut bytes = archive(&[("x", b'x', "")]);
        bytes.truncate(512);
        let len = record.len() + 4;
        let record = format!("{len} {record}\n");
        bytes[124..135].copy_from_slice(format!("{:011o}", record.len()).as_bytes());
        bytes[148..156].fill(b' ');
        let sum: u32 = bytes.iter().map(|byte| u32::from(*byte)).sum();
        bytes[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        bytes.extend(record.as_bytes());
        bytes.resize(1024, 0);
        bytes.extend(archive(&[("file", b'0', "")]));
        into_memory(bytes).map(drop)
    };
    with("mtime=-1.5").unwrap();
    for size in [u64::MAX, u64::MAX - 511, 1 << 63] {
        assert_eq!(with(&format!("size={size}")).unwrap_err().kind(), ErrorKind::Corrupt, "{size}");
    }
    assert_eq!(into_memory(vec![b'x'; 2048]).map(drop).unwrap_err().kind(), ErrorKind::Corrupt);
    // Old programs say the length of the file that is linked to, with no content behind it.
    let mut linked = archive(&[("file", b'0', ""), ("name", b'1', "file"), ("later", b'0', "")]);
    let header = &mut linked[512..1024];
    header[124..135].copy_from_slice(b"00000001750");
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let fs = into_memory(linked).unwrap();
    fs.lookup(fs.root(), b"later").unwrap();
}

#[test]
fn owners_and_times_can_be_said() {
    let place = Place::new();
    fs::create_dir(place.path("top")).unwrap();
    fs::write(place.path("top/file"), [0; 10_000]).unwrap();
    let options = PopulateOptions {
        owner: Some((0, 5)),
        latest: Some(Timestamp { seconds: 1000, nanoseconds: 0 }),
        find_zeros: true,
    };
    let mut fs = MemoryFs::default();
    let mut source = HostDirectory::new(&place.path("top")).unwrap();
    let done = populate(&mut fs, &mut source, &options).unwrap();
    let metadata = fs.metadata(fs.lookup(fs.root(), b"file").unwrap()).unwrap();
    assert_eq!((metadata.uid, metadata.gid, metadata.size, metadata.modified.seconds), (0, 5, 10_000, 1000));
    assert_eq!(done.bytes, 0);
    let missing = HostDirectory::new(&place.path("nothing")).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
}

#[test]
fn a_whole_disk_has_a_table_and_a_sound_filesystem() {
    need!("e2fsck", "sfdisk");
    let place = Place::new();
    sample(&place.path("top"));
    for scheme in [Some(Scheme::Gpt), Some(Scheme::Mbr), None] {
        let path = place.path("disk");
        File::create(&path).unwrap().set_len(70 << 20).unwrap();
        let mut filesystem = MakeOptions { label: b"root".to_vec(), ..MakeOptions::default() };
        filesystem.set("block_size", "4096").unwrap();
        filesystem.uuid = Uuid::from_u128(1);
        let options = DiskOptions {
            scheme,
            disk_id: Uuid::from_u128(2),
            partition_id: Uuid::from_u128(3),
            filesystem,
            populate: PopulateOptions::default(),
        };
        let disk: Arc<dyn Disk> = Arc::new(HostFile::open(&path, false).unwrap());
        let source = HostDirectory::new(&place.path("top")).unwrap();
        let built = build(&disk, &mut [Box::new(source)], &options).unwrap();
        assert_eq!(built.populated.files, 706);
        assert_eq!(built.volume.start, if scheme.is_some() { 1 << 20 } else { 0 });
        let at = format!("{}?offset={}", path.display(), built.volume.start);
        let said = output("e2fsck", ["-fn", &at]);
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stdout));
        if scheme.is_some() {
            run("sfdisk", ["--verify".as_ref(), "-q".as_ref(), path.as_os_str()]);
        }
    }
}
