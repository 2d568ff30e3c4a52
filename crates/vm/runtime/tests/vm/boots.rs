//! A real Debian, booted from its own kernel by QEMU.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use vmwright_judges::{need, skip};
use vmwright_runtime::{
    BackendChoice, CreateRequest, ExitStatus, FileIdentity, PutRequest, RunRequest, Runtime, StartOptions,
    State, StopOptions,
};
use vmwright_vmm::Accelerator;

use crate::host::{Host, eventually, name, sh};

/// The disk that the demo makes: found where it was made, or made once out of the demo's tar file.
fn debian() -> Option<&'static Path> {
    static DISK: OnceLock<Option<PathBuf>> = OnceLock::new();
    let make = || {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..");
        let default = root.join("target/cache/debian.tar");
        let tar = std::env::var_os("VMWRIGHT_DEBIAN_TAR").map_or(default, PathBuf::from);
        let made = tar.metadata().and_then(|tar| tar.modified()).ok()?;
        let is_fresh = |disk: &PathBuf| {
            disk.metadata().and_then(|disk| disk.modified()).is_ok_and(|modified| modified > made)
        };
        let candidates = [
            root.join("target/cache/debian.qcow2"),
            Path::new(env!("CARGO_TARGET_TMPDIR")).join("debian.qcow2"),
        ];
        if let Some(disk) = candidates.iter().find(|disk| is_fresh(disk)) {
            return Some(disk.clone());
        }
        let [_, disk] = candidates;
        let script = root.join("scripts/build-debian-disk.sh");
        vmwright_judges::run("bash", [script.as_os_str(), tar.as_os_str(), disk.as_os_str()]);
        Some(disk)
    };
    DISK.get_or_init(make).as_deref()
}

/// A machine that executes what this host surely can.
fn request(disk: &Path, vm: &str) -> CreateRequest {
    CreateRequest {
        name: Some(name(vm)),
        backend: BackendChoice::Monitor("qemu".into()),
        accelerator: Accelerator::Tcg,
        ..CreateRequest::new(disk)
    }
}

fn console(runtime: &Runtime, vm: &str) -> String {
    let mut text = Vec::new();
    let mut take = |bytes: &[u8]| {
        text.extend_from_slice(bytes);
        ControlFlow::Continue(())
    };
    runtime.logs(&name(vm), false, &mut take).unwrap();
    String::from_utf8_lossy(&text).into_owned()
}

#[test]
fn a_debian_boots_beside_its_own_init_keeps_its_disk_and_leaves_nothing() {
    need!("qemu-system-x86_64", "qemu-img", "mke2fs", "sfdisk", "tar");
    let Some(disk) = debian() else { skip!("there is no Debian root (VMWRIGHT_DEBIAN_TAR)") };
    let before = FileIdentity::of(disk).unwrap();
    let host = Host::new();
    let runtime = host.runtime();
    let vm = host.vm();
    runtime.create(&request(disk, &vm)).unwrap();
    let begun = Instant::now();
    let started = runtime.start(&name(&vm), &StartOptions::default());
    let started = started.unwrap_or_else(|error| panic!("{error}\n{}", console(&runtime, &vm)));
    println!("start: {} ms", begun.elapsed().as_millis());
    assert_eq!(started.vm.state, State::Running);
    let (release, _, status) = sh(&runtime, &name(&vm), "uname -r; cat /etc/debian_version");
    assert_eq!(status, ExitStatus::Code(0));
    assert!(release.contains("amd64"), "{release}");
    // Its own init is process 1, as soon as the agent has handed over.
    eventually("systemd takes over", || sh(&runtime, &name(&vm), "cat /proc/1/comm").0.contains("systemd"));
    let begun = Instant::now();
    for _ in 0..10 {
        sh(&runtime, &name(&vm), ":");
    }
    println!("exec of a shell: {} ms", begun.elapsed().as_millis() / 10);
    let put = PutRequest { path: b"/etc/motd".to_vec(), ..PutRequest::default() };
    runtime.put(&name(&vm), &put, &mut &b"written from outside\n"[..]).unwrap();

    let begun = Instant::now();
    let stopped =
        runtime.stop(&name(&vm), &StopOptions { grace: Duration::from_secs(90), force: false }).unwrap();
    println!("stop: {} ms, {:?}", begun.elapsed().as_millis(), stopped.exit);
    let exit = stopped.exit.unwrap();
    assert!(exit.goodbye, "{exit:?}");
    assert_ne!(exit.vmm.unwrap().reason, vmwright_vmm::ExitReason::Killed);
    host.no_process_is_left();

    // The disk is the VM's own: what was written is there, and the image never saw it.
    runtime.start(&name(&vm), &StartOptions::default()).unwrap();
    assert_eq!(sh(&runtime, &name(&vm), "cat /etc/motd").0, "written from outside\n");
    runtime.delete(&name(&vm), true).unwrap();
    assert_eq!(FileIdentity::of(disk).unwrap(), before);
    host.no_process_is_left();
}

#[test]
fn four_machines_boot_at_once() {
    need!("qemu-system-x86_64", "qemu-img", "mke2fs", "sfdisk", "tar");
    let Some(disk) = debian() else { skip!("there is no Debian root (VMWRIGHT_DEBIAN_TAR)") };
    let host = Host::new();
    std::thread::scope(|scope| {
        for index in 0..4 {
            let host = &host;
            scope.spawn(move || {
                let runtime = host.runtime();
                let request = request(disk, &format!("{}-{index}", host.vm()));
                let ephemeral =
                    runtime.run(&RunRequest::new(request)).unwrap_or_else(|error| panic!("{error}"));
                let script = format!("echo {index} > /root/mine; cat /root/mine; echo $$ $PPID");
                let (out, _, status) = sh(&runtime, ephemeral.name(), &script);
                assert_eq!(status, ExitStatus::Code(0));
                // The agent is process 1, and runs what it is asked to itself.
                let lines: Vec<_> = out.lines().collect();
                assert_eq!(lines[0], index.to_string());
                assert!(lines[1].ends_with(" 1"), "{out}");
                ephemeral.finish().unwrap();
            });
        }
    });
    host.no_process_is_left();
    assert!(host.runtime().list().unwrap().is_empty());
}

#[test]
fn a_kernel_that_finds_no_root_is_reported_with_its_last_lines() {
    need!("qemu-system-x86_64", "qemu-img", "mke2fs", "sfdisk", "tar");
    let Some(disk) = debian() else { skip!("there is no Debian root (VMWRIGHT_DEBIAN_TAR)") };
    let host = Host::new();
    let runtime = host.runtime();
    let vm = host.vm();
    let mut request = request(disk, &vm);
    request.cmdline_append = "rdinit=/no/such/program init=/no/such/program".into();
    runtime.create(&request).unwrap();
    let error = runtime.start(&name(&vm), &StartOptions::default()).unwrap_err();
    let silence = error.guest_silence().unwrap_or_else(|| panic!("{error}"));
    assert!(silence.console.iter().any(|line| line.contains("Kernel panic")), "{error}");
    host.no_process_is_left();
    runtime.delete(&name(&vm), false).unwrap();
}
