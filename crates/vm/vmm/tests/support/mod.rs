//! Kernels and guests for tests that boot.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use vmwright_judges::{output, run, tool};
use vmwright_vmm::{Boot, Capabilities, Profile, Spec};

/// More than anything takes on the slowest machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// Runs a future as the shim does, on one thread, and gives up when it takes for ever.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, future).await.expect("no test takes for ever") })
}

/// A kernel whose drivers are built in, unpacked into a directory, or the reason why there is none.
pub(crate) fn test_kernel(dir: &Path) -> Result<PathBuf, String> {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../../shared/testkernel");
    let folder = std::env::var_os("VMWRIGHT_TESTKERNEL").map_or(default, PathBuf::from);
    let packed = folder.join("vmlinux.xz");
    let unpacked = dir.join("vmlinux");
    if !packed.is_file() || tool("xz").is_none() {
        return Err("there is no test kernel (VMWRIGHT_TESTKERNEL), or no xz".to_owned());
    }
    let to = Stdio::from(fs::File::create(&unpacked).unwrap());
    let status = Command::new("xz").arg("-dc").arg(packed).stdout(to).status().unwrap();
    assert!(status.success());
    Ok(unpacked)
}

/// Debian's kernel out of the root that the demo builds, or the reason why there is none.
pub(crate) fn debian_kernel(dir: &Path) -> Result<PathBuf, String> {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../target/cache/debian.tar");
    let tar = std::env::var_os("VMWRIGHT_DEBIAN_TAR").map_or(default, PathBuf::from);
    if !tar.is_file() || tool("tar").is_none() {
        return Err("there is no Debian root (VMWRIGHT_DEBIAN_TAR), or no tar".to_owned());
    }
    let args = ["--wildcards", "--no-anchored", "boot/vmlinuz-*"];
    let mut all = vec!["-C".into(), dir.into(), "-xf".into(), tar.into_os_string()];
    all.extend(args.map(Into::into));
    assert!(output("tar", all).status.success());
    let boot = dir.join("boot");
    let found = fs::read_dir(boot).unwrap().map(|entry| entry.unwrap().path()).next();
    found.ok_or_else(|| "the Debian root has no kernel".to_owned())
}

/// Assembles the test guest and packs it as an initramfs.
pub(crate) fn initramfs(dir: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/init.S");
    let (object, program) = (dir.join("init.o"), dir.join("init"));
    run("as", ["--64".as_ref(), "-o".as_ref(), object.as_os_str(), source.as_os_str()]);
    run("ld", ["-o".as_ref(), program.as_os_str(), object.as_os_str()]);
    let program = fs::read(program).unwrap();
    let mut archive = Vec::new();
    for (name, mode, device, content) in [
        ("dev", 0o040_755, (0, 0), &[][..]),
        ("sys", 0o040_755, (0, 0), &[]),
        ("dev/console", 0o020_600, (5, 1), &[]),
        ("init", 0o100_755, (0, 0), &program),
        ("TRAILER!!!", 0, (0, 0), &[]),
    ] {
        entry(&mut archive, name, mode, device, content);
    }
    let path = dir.join("initramfs");
    fs::write(&path, archive).unwrap();
    path
}

/// One entry of a newc archive: 13 numbers of 8 hexadecimal digits, a name, a content, each padded to 4 bytes.
fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
    let inode = archive.len() as u32;
    let numbers =
        [inode, mode, 0, 0, 1, 0, content.len() as u32, 0, 0, device.0, device.1, name.len() as u32 + 1, 0];
    archive.extend_from_slice(b"070701");
    numbers.iter().for_each(|number| archive.extend_from_slice(format!("{number:08x}").as_bytes()));
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend_from_slice(content);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

/// A machine with the test guest, which does what its letter says.
pub(crate) fn spec(kernel: &Path, initramfs: &Path, profile: Profile, letter: char) -> Spec {
    let boot = Boot {
        kernel: kernel.to_owned(),
        initramfs: Some(initramfs.to_owned()),
        cmdline: format!("mitigations=off nokaslr quiet -- {letter}"),
    };
    Spec { profile: Some(profile), ..Spec::new("guest".parse().unwrap(), boot) }
}

/// Capabilities without KVM, so that tests mean the same wherever they run.
pub(crate) fn translated(mut candidates: Vec<Capabilities>) -> Vec<Capabilities> {
    for candidate in &mut candidates {
        candidate.engines.retain(|engine| *engine == vmwright_vmm::Engine::Tcg);
    }
    candidates
}

/// Reads until a text has come, and answers all that came.
pub(crate) async fn read_until(from: &mut (impl AsyncRead + Unpin), text: &str) -> String {
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    while !String::from_utf8_lossy(&all).contains(text) {
        let count = from.read(&mut buffer).await.unwrap();
        assert!(count > 0, "it ended before {text:?}: {}", String::from_utf8_lossy(&all));
        all.extend_from_slice(&buffer[..count]);
    }
    String::from_utf8_lossy(&all).into_owned()
}
