//! Machines in a real QEMU, translated, so that the tests mean the same on every host.
#![allow(clippy::unwrap_used, reason = "helpers of tests end the test as tests do")]

mod support;

use std::fs;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::time::Duration;

use support::{PATIENCE, block_on, initramfs, read_until, spec, test_kernel, translated};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use vmwright_judges::{need, run, skip};
use vmwright_vmm::conformance::{Recorder, Subject};
use vmwright_vmm::qemu::Qemu;
use vmwright_vmm::{
    AGENT_PORT, Accelerator, Admitted, Backend, Backing, Disk, DiskFormat, Engine, ErrorKind, ExitReason,
    Instance, PlainSpawner, Profile, Resources, Result, Spec, Start, choose,
};

/// A directory with a kernel and an initramfs in it.
struct Guest {
    dir: TempDir,
    kernel: std::path::PathBuf,
    initramfs: std::path::PathBuf,
    qemu: Qemu,
}

impl Guest {
    fn new() -> Result<Self, String> {
        let dir = tempfile::tempdir().unwrap();
        let kernel = test_kernel(dir.path())?;
        let initramfs = initramfs(dir.path());
        let qemu = Qemu::find(dir.path().join("cache"));
        Ok(Self { dir, kernel, initramfs, qemu })
    }

    fn spec(&self, profile: Profile, letter: char) -> Spec {
        let mut spec = spec(&self.kernel, &self.initramfs, profile, letter);
        spec.machine.accelerator = Accelerator::Tcg;
        spec
    }

    async fn admit(&self, spec: &Spec) -> Admitted {
        choose(spec, &self.qemu.probe(&PlainSpawner).await.unwrap()).unwrap()
    }

    async fn launch(&self, spec: &Spec, name: &str) -> Result<Box<dyn Instance>> {
        let (admitted, dir) = (self.admit(spec).await, self.dir.path().join(name));
        self.qemu.launch(&admitted, &dir, Start::Boot, Resources::new(&PlainSpawner)).await
    }

    fn disk(&self, name: &str, content: &[u8]) -> std::path::PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }
}

/// A guest that can boot here, or the end of the test.
macro_rules! guest {
    () => {{
        need!("qemu-system-x86_64", "as", "ld");
        match Guest::new() {
            Ok(guest) => guest,
            Err(reason) => skip!("{reason}"),
        }
    }};
}

#[test]
fn qemu_microvm_keeps_every_law() {
    keeps_every_law(Profile::QemuMicrovm);
}

#[test]
fn qemu_q35_keeps_every_law() {
    keeps_every_law(Profile::QemuQ35);
}

fn keeps_every_law(profile: Profile) {
    let guest = guest!();
    let (spec, dir) = (guest.spec(profile, 'h'), guest.dir.path().join("vms"));
    fs::create_dir(&dir).unwrap();
    block_on(Subject { backend: &guest.qemu, spec: &spec, dir: &dir }.check());
}

#[test]
fn a_guest_that_powers_off_is_told_from_one_that_resets() {
    let guest = guest!();
    block_on(async {
        for (letter, reason) in [('p', ExitReason::GuestShutdown), ('r', ExitReason::GuestReset)] {
            for profile in [Profile::QemuMicrovm, Profile::QemuQ35] {
                let instance = guest.launch(&guest.spec(profile, letter), "vm").await.unwrap();
                let mut console = instance.console().unwrap();
                let text = read_until(&mut console, "init is ready").await;
                assert!(text.contains(&format!("agent port: {AGENT_PORT}")), "{text}");
                let exit = instance.wait().await;
                assert_eq!(
                    (exit.reason, exit.code),
                    (reason, Some(0)),
                    "{letter} on {profile}: {}",
                    exit.stderr
                );
                assert_eq!(exit.stderr, "", "QEMU has nothing to complain about");
            }
        }
    });
}

#[test]
fn the_agents_channel_carries_bytes_both_ways_and_waits_while_paused() {
    let guest = guest!();
    block_on(async {
        let instance = guest.launch(&guest.spec(Profile::QemuMicrovm, 'a'), "vm").await.unwrap();
        let mut console = instance.console().unwrap();
        tokio::spawn(async move { console.read_to_end(&mut Vec::new()).await });
        let mut agent = instance.agent().await.unwrap();
        assert_eq!(read_until(&mut agent, "\n").await, "hello\n", "what the guest said first was not lost");
        agent.write_all(b"ping\n").await.unwrap();
        assert_eq!(read_until(&mut agent, "\n").await, "ping\n");

        let pause = instance.pause().unwrap();
        pause.pause().await.unwrap();
        agent.write_all(b"late\n").await.unwrap();
        let early = timeout(Duration::from_millis(200), agent.read_u8()).await;
        assert!(early.is_err(), "a paused guest does not answer: {early:?}");
        pause.resume().await.unwrap();
        assert_eq!(read_until(&mut agent, "\n").await, "late\n");

        // Whoever comes next is served once the first has gone.
        drop(agent);
        let mut agent = instance.agent().await.unwrap();
        agent.write_all(b"again\n").await.unwrap();
        assert!(read_until(&mut agent, "again\n").await.ends_with("again\n"));
        instance.kill().await;
    });
}

#[test]
fn a_guest_sees_its_disk_through_the_listed_chain_alone() {
    need!("qemu-img");
    let guest = guest!();
    let mut content = b"from the base, named, with a comma".to_vec();
    content.resize(1 << 20, 0);
    let base = guest.disk("base,1.raw", &content);
    let overlay = guest.dir.path().join("overlay.qcow2");
    // The name within the image leads elsewhere: it must not be followed.
    let decoy = guest.disk("decoy.raw", &vec![b'x'; 1 << 20]);
    run(
        "qemu-img",
        ["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]
            .map(Into::into)
            .into_iter()
            .chain([decoy.as_os_str().to_owned(), overlay.as_os_str().to_owned()]),
    );
    let mut second = b"the second one".to_vec();
    second.resize(1 << 20, 0);
    for profile in [Profile::QemuMicrovm, Profile::QemuQ35] {
        let mut disk = Disk::new(&overlay, DiskFormat::Qcow2);
        disk.backing = vec![Backing { path: base.clone(), format: DiskFormat::Raw }];
        disk.serial = Some("root-1".to_owned());
        let second =
            Disk { read_only: true, ..Disk::new(guest.disk("second.raw", &second), DiskFormat::Raw) };
        let spec = Spec { disks: vec![disk.clone(), second], ..guest.spec(profile, 'h') };
        block_on(async {
            let instance = guest.launch(&spec, "vm").await.unwrap();
            let mut console = instance.console().unwrap();
            let text = read_until(&mut console, "init is ready").await;
            assert!(text.contains("disk serial: root-1"), "{text}");
            assert!(text.contains("disk begins: from the base, named, with a comma"), "{text}");
            assert!(text.contains("second disk begins: the second one"), "{text}");
            instance.kill().await;

            disk.backing.clear();
            let unlisted = Spec { disks: vec![disk], ..guest.spec(profile, 'h') };
            let refused = guest.launch(&unlisted, "vm").await.err().unwrap();
            assert_eq!(refused.kind(), ErrorKind::Unsupported);
            assert!(refused.to_string().contains("none is listed"), "{refused}");
        });
    }
}

#[test]
fn a_disk_in_use_by_another_machine_is_refused_and_leaves_no_process() {
    let guest = guest!();
    let disk = Disk::new(guest.disk("disk.raw", &[0; 1 << 20]), DiskFormat::Raw);
    let spec = Spec { disks: vec![disk], console: false, ..guest.spec(Profile::QemuMicrovm, 'h') };
    block_on(async {
        let first = guest.launch(&spec, "first").await.unwrap();
        let (spawner, admitted) = (Recorder::default(), guest.admit(&spec).await);
        let (dir, resources) = (guest.dir.path().join("second"), Resources::new(&spawner));
        let refused = guest.qemu.launch(&admitted, &dir, Start::Boot, resources).await.err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::Exited);
        assert!(refused.to_string().contains("lock"), "{refused}");
        spawner.all_gone().await;
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0, "its directory is empty");
        assert!(first.identity().is_alive().unwrap());
        first.kill().await;
    });
}

#[test]
fn a_kernel_that_is_none_fails_the_start_with_qemus_words_and_leaves_no_process() {
    let guest = guest!();
    let mut spec = guest.spec(Profile::QemuMicrovm, 'h');
    spec.boot.kernel = guest.dir.path().join("nothing");
    block_on(async {
        let (spawner, admitted) = (Recorder::default(), guest.admit(&spec).await);
        let (dir, resources) = (guest.dir.path().join("vm"), Resources::new(&spawner));
        let failed = guest.qemu.launch(&admitted, &dir, Start::Boot, resources).await.err().unwrap();
        assert_eq!(failed.kind(), ErrorKind::Exited);
        assert!(failed.to_string().contains("nothing"), "{failed}");
        assert_eq!(spawner.count(), 1);
        spawner.all_gone().await;
    });
}

#[test]
fn a_guest_that_does_not_listen_to_its_power_button_gets_its_whole_grace() {
    let guest = guest!();
    block_on(async {
        for profile in [Profile::QemuMicrovm, Profile::QemuQ35] {
            let spec = Spec { console: false, ..guest.spec(profile, 'h') };
            let instance = guest.launch(&spec, "vm").await.unwrap();
            instance.pause().unwrap().pause().await.unwrap();
            let (began, grace) = (std::time::Instant::now(), Duration::from_millis(300));
            let exit = instance.shutdown(grace).await;
            assert_eq!(exit.reason, ExitReason::Killed);
            assert!(began.elapsed() >= grace, "the button could be pressed on {profile}, also while paused");
        }
    });
}

#[test]
fn a_guest_boots_on_kvm_where_that_works() {
    let guest = guest!();
    let verdict = block_on(guest.qemu.kvm(&PlainSpawner)).unwrap();
    if !verdict.usable {
        skip!("{}", verdict.reason);
    }
    let mut spec = guest.spec(Profile::QemuMicrovm, 'p');
    spec.machine.accelerator = Accelerator::Kvm;
    block_on(async {
        let instance = guest.launch(&spec, "vm").await.unwrap();
        read_until(&mut instance.console().unwrap(), "init is ready").await;
        let exit = instance.wait().await;
        assert_eq!(exit.reason, ExitReason::GuestShutdown, "{}", exit.stderr);
    });
}

#[test]
fn a_monitor_killed_by_somebody_else_has_failed_and_its_sockets_are_removed() {
    let guest = guest!();
    block_on(async {
        let instance = guest.launch(&guest.spec(Profile::QemuMicrovm, 'h'), "vm").await.unwrap();
        let dir = guest.dir.path().join("vm");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "the agent's socket");
        assert!(instance.identity().kill().unwrap());
        let exit = instance.wait().await;
        assert_eq!((exit.reason, exit.signal), (ExitReason::MonitorFailed, Some(9)));
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
    });
}

#[test]
fn a_stale_socket_of_a_dead_machine_does_not_keep_the_next_one_from_starting() {
    let guest = guest!();
    let dir = guest.dir.path().join("vm");
    fs::create_dir(&dir).unwrap();
    run("chmod", ["0700".as_ref(), dir.as_os_str()]);
    for name in ["a", "q"] {
        drop(std::os::unix::net::UnixListener::bind(dir.join(name)).unwrap());
        assert!(StdUnixStream::connect(dir.join(name)).is_err());
    }
    block_on(async {
        let instance = guest.launch(&guest.spec(Profile::QemuMicrovm, 'h'), "vm").await.unwrap();
        instance.kill().await;
    });
}

#[test]
fn the_probe_is_remembered_until_the_program_changes() {
    need!("qemu-system-x86_64");
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let qemu = Qemu::find(dir.path().join("cache"));
        let first = Recorder::default();
        let capabilities = qemu.probe(&first).await.unwrap();
        assert!(first.count() > 0);
        let second = Recorder::default();
        assert_eq!(qemu.probe(&second).await.unwrap(), capabilities);
        assert_eq!(second.count(), 0, "nothing had to be run again");

        fs::write(dir.path().join("cache/qemu.json"), b"{\"key\":").unwrap();
        let third = Recorder::default();
        assert_eq!(qemu.probe(&third).await.unwrap(), capabilities, "half an entry is no entry");
        assert!(third.count() > 0);

        let copy = dir.path().join("qemu-copy");
        std::os::unix::fs::symlink(qemu.program(), &copy).unwrap();
        let fourth = Recorder::default();
        Qemu::new(&copy, dir.path().join("cache")).probe(&fourth).await.unwrap();
        assert_eq!(fourth.count(), 0, "another name of the same program is the same program");
    });
}

#[test]
fn a_program_that_is_not_installed_is_named_with_its_package() {
    let dir = tempfile::tempdir().unwrap();
    let qemu = Qemu::new(dir.path().join("qemu-system-x86_64"), dir.path().join("cache"));
    let error = block_on(qemu.probe(&PlainSpawner)).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Missing);
    assert!(error.to_string().ends_with("install the package qemu-system-x86"), "{error}");
}

#[test]
fn a_program_that_is_not_qemu_is_a_protocol_error_and_leaves_no_process() {
    let dir = tempfile::tempdir().unwrap();
    let qemu = Qemu::new("/bin/true", dir.path().join("cache"));
    let spawner = Recorder::default();
    block_on(async {
        let error = qemu.probe(&spawner).await.err().unwrap();
        assert!(matches!(error.kind(), ErrorKind::Exited | ErrorKind::Protocol), "{error}");
        spawner.all_gone().await;
    });
}

#[test]
fn a_directory_too_deep_for_a_socket_is_named_with_its_length() {
    let guest = guest!();
    let name = "d".repeat(120);
    block_on(async {
        let error = guest.launch(&guest.spec(Profile::QemuMicrovm, 'h'), &name).await.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        let len = guest.dir.path().join(name).join("q").as_os_str().len();
        assert!(error.to_string().contains(&format!("{len} bytes, at most 107")), "{error}");
    });
}

#[test]
fn a_debian_kernel_finds_its_way_without_a_hang() {
    need!("qemu-system-x86_64", "as", "ld");
    let dir = tempfile::tempdir().unwrap();
    let kernel = match support::debian_kernel(dir.path()) {
        Ok(kernel) => kernel,
        Err(reason) => skip!("{reason}"),
    };
    let qemu = Qemu::find(dir.path().join("cache"));
    let mut spec = spec(&kernel, &initramfs(dir.path()), Profile::QemuMicrovm, 'p');
    spec.machine.accelerator = Accelerator::Tcg;
    // A kernel that does not know the pace of its counter hangs in some boots only.
    let boots = if std::env::var_os("VMWRIGHT_TORTURE").is_some() { 16 } else { 1 };
    (0..boots).for_each(|_| {
        block_on(async {
            let admitted = choose(&spec, &translated(qemu.probe(&PlainSpawner).await.unwrap())).unwrap();
            let resources = Resources::new(&PlainSpawner);
            let instance =
                qemu.launch(&admitted, &dir.path().join("vm"), Start::Boot, resources).await.unwrap();
            let mut console = instance.console().unwrap();
            let text = read_until(&mut console, "init is ready").await;
            assert!(!text.contains("Kernel panic"), "{text}");
            let exit = timeout(PATIENCE, instance.wait()).await.unwrap();
            assert_eq!(exit.reason, ExitReason::GuestShutdown, "{}", exit.stderr);
        })
    });
}

#[test]
fn the_accelerator_that_is_taken_is_explained() {
    need!("qemu-system-x86_64");
    let dir = tempfile::tempdir().unwrap();
    let qemu = Qemu::find(dir.path().join("cache"));
    block_on(async {
        let verdict = qemu.kvm(&PlainSpawner).await.unwrap();
        let candidates = qemu.probe(&PlainSpawner).await.unwrap();
        let mut spec = spec(Path::new("/k"), Path::new("/i"), Profile::QemuMicrovm, 'h');
        let admitted = choose(&spec, &candidates).unwrap();
        assert_eq!(admitted.engine() == Engine::Kvm, verdict.usable);
        assert!(
            verdict.usable || admitted.why_engine().contains(&verdict.reason),
            "{}",
            admitted.why_engine()
        );
        spec.machine.accelerator = Accelerator::Kvm;
        let asked = choose(&spec, &candidates);
        assert_eq!(asked.is_ok(), verdict.usable);
        assert!(verdict.usable || asked.unwrap_err().to_string().contains(&verdict.reason));
    });
}
