//! A real Debian, booted from its own kernel by QEMU.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::num::NonZeroU64;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus as ProcessStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use vmwright_agent_proto::{
    ByteBuf, Event, Exec, ExitStatus, Goodbye, Hello, Message, Mode, PORT_NAME, Put, Request as Ask, Session,
    Shutdown, StreamId,
};
use vmwright_boot::{Bus, Request, RootDevice, Source, Then, prepare, prepare_in};

/// Far more than a boot takes, even emulated on a busy host.
const PATIENCE: Duration = Duration::from_secs(180);

/// A Debian as a directory and as an ext4 image.
struct Debian {
    tree: PathBuf,
    image: PathBuf,
}

impl Debian {
    fn kernel(&self) -> PathBuf {
        let files = std::fs::read_dir(self.tree.join("boot")).unwrap().flatten().map(|entry| entry.path());
        let is_kernel = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with("vmlinuz-");
        files.filter(is_kernel).max().unwrap()
    }

    /// The folder of that kernel's modules.
    fn modules(&self) -> PathBuf {
        let release = self.kernel().file_name().unwrap().to_str().unwrap()["vmlinuz-".len()..].to_owned();
        self.tree.join("usr/lib/modules").join(release)
    }
}

/// Unpacks the Debian that the demo makes, once.
fn debian() -> Option<&'static Debian> {
    static DEBIAN: OnceLock<Option<Debian>> = OnceLock::new();
    let make = || {
        let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../target/cache/debian.tar");
        let tar = std::env::var_os("VMWRIGHT_DEBIAN_TAR").map_or(default, PathBuf::from);
        let made = std::fs::metadata(&tar).ok()?.modified().ok()?;
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let (tree, image) = (dir.join("debian"), dir.join("debian.ext4"));
        let fresh = image.metadata().and_then(|image| image.modified()).is_ok_and(|image| image > made);
        if !fresh {
            let _ = std::fs::remove_dir_all(&tree);
            std::fs::create_dir_all(&tree).unwrap();
            let (tree, tar) = (tree.to_str().unwrap(), tar.to_str().unwrap());
            vmwright_judges::run("tar", ["--extract", "--file", tar, "--directory", tree]);
            let part = image.with_extension("part");
            let _ = std::fs::remove_file(&part);
            vmwright_judges::run("mke2fs", ["-q", "-t", "ext4", "-d", tree, part.to_str().unwrap(), "1G"]);
            std::fs::rename(&part, &image).unwrap();
        }
        Some(Debian { tree, image })
    };
    DEBIAN.get_or_init(make).as_ref()
}

struct Machine {
    qemu: Child,
    dir: tempfile::TempDir,
    stream: UnixStream,
    session: Session,
    hello: Option<Hello>,
    goodbye: Option<Goodbye>,
    heard: Vec<(StreamId, Message)>,
}

impl Machine {
    fn boot(debian: &Debian, bus: Bus, root: RootDevice, then: Then) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (image, modules) = (debian.kernel(), debian.modules());
        let source = Source::Files { image: &image, modules: Some(&modules) };
        let request = Request {
            bus,
            root,
            fs_type: "ext4".into(),
            options: String::new(),
            read_only: false,
            then,
            cmdline: format!("console=ttyS0 reboot=t panic=-1 tsc_early_khz={}", tsc_khz()),
        };
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("boot");
        let files = prepare_in(&cache, source, &request).unwrap();
        let socket = dir.path().join("agent");
        let (machine, suffix) = match bus {
            Bus::Mmio => ("microvm,acpi=on", "device"),
            Bus::Pci => ("q35", "pci"),
        };
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-machine", machine, "-accel", "tcg", "-cpu", "max", "-m", "512", "-nodefaults"]);
        qemu.args(["-no-user-config", "-no-reboot", "-display", "none"]);
        qemu.args(["-global", "virtio-mmio.force-legacy=false"]);
        qemu.arg("-serial").arg(format!("file:{}", dir.path().join("console").display()));
        qemu.arg("-kernel").arg(&files.kernel).arg("-initrd").arg(&files.initramfs);
        qemu.args(["-append", &files.cmdline]);
        let drive = format!("id=root,if=none,format=raw,snapshot=on,file={}", debian.image.display());
        qemu.args(["-drive", &drive, "-device", &format!("virtio-blk-{suffix},drive=root,serial=the-root")]);
        let chardev = format!("socket,id=agent,server=on,wait=off,path={}", socket.display());
        qemu.args(["-chardev", &chardev, "-device", &format!("virtio-serial-{suffix}")]);
        qemu.args(["-device", &format!("virtserialport,chardev=agent,name={PORT_NAME}")]);
        let qemu = qemu.stdin(Stdio::null()).spawn().unwrap();
        let stream = Self::connect(&socket);
        let session = Session::host(NonZeroU64::new(0x1234_5678_9ABC_DEF0).unwrap());
        let mut machine = Self { qemu, dir, stream, session, hello: None, goodbye: None, heard: Vec::new() };
        machine.until(|machine| machine.hello.is_some());
        machine
    }

    fn connect(socket: &Path) -> UnixStream {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match UnixStream::connect(socket) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
                    return stream;
                }
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Carries bytes both ways once; false once the machine is gone.
    fn turn(&mut self) -> bool {
        while self.session.has_output() {
            match self.stream.write(self.session.output()) {
                Ok(len) => self.session.wrote(len),
                Err(_) => return false,
            }
        }
        let mut buf = vec![0; 64 * 1024];
        match self.stream.read(&mut buf) {
            Ok(0) => return false,
            Ok(len) => self.session.feed(&buf[..len]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return false,
        }
        while let Some(event) = self.session.next_event().unwrap() {
            match event {
                Event::Established(hello) => self.hello = Some(hello),
                Event::Goodbye(why) => self.goodbye = Some(why),
                Event::Message(id, message) => {
                    if let Message::Data(bytes) = &message {
                        self.session.consumed(id, bytes.len());
                    }
                    self.heard.push((id, message));
                }
                event => panic!("{event:?}\n{}", self.console()),
            }
        }
        true
    }

    fn until(&mut self, condition: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self) {
            assert!(self.turn(), "the machine is gone\n{}", self.console());
            assert!(Instant::now() < deadline, "the guest does not get on\n{}", self.console());
        }
    }

    fn console(&self) -> String {
        let text = std::fs::read(self.dir.path().join("console")).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    }

    fn last(&mut self, id: StreamId) -> Message {
        let ended = |machine: &Self| machine.heard.iter().any(|(of, message)| *of == id && message.is_last());
        self.until(ended);
        self.heard.iter().find(|(of, message)| *of == id && message.is_last()).unwrap().1.clone()
    }

    fn data(&self, id: StreamId) -> Vec<u8> {
        let pieces = self.heard.iter().filter(|(of, _)| *of == id).filter_map(|(_, message)| match message {
            Message::Data(bytes) | Message::Stderr(bytes) => Some(bytes.as_slice()),
            _ => None,
        });
        pieces.collect::<Vec<_>>().concat()
    }

    fn sh(&mut self, script: &str) -> String {
        let argv = ["sh", "-c", script].map(ByteBuf::from).to_vec();
        let id = self.session.open(Ask::Exec(Exec { argv, ..Exec::default() })).unwrap();
        let last = self.last(id);
        let text = String::from_utf8(self.data(id)).unwrap();
        assert_eq!(last, Message::Exited(ExitStatus::Code(0)), "{script}: {text}\n{}", self.console());
        text
    }

    /// Asks the guest to end, and waits until it has.
    fn shut_down(mut self) -> (ProcessStatus, String) {
        self.session.open(Ask::Shutdown(Shutdown::PowerOff)).unwrap();
        while self.turn() {}
        assert_eq!(self.goodbye, Some(Goodbye::PowerOff), "{}", self.console());
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.qemu.try_wait().unwrap() {
                return (status, self.console());
            }
            assert!(Instant::now() < deadline, "the machine does not end\n{}", self.console());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

fn tsc_khz() -> u64 {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let line = info.lines().find(|line| line.starts_with("cpu MHz")).unwrap();
    let megahertz: f64 = line.split_once(':').unwrap().1.trim().parse().unwrap();
    (megahertz * 1000.0) as u64
}

fn serial() -> RootDevice {
    RootDevice::Serial { serial: "the-root".into(), partition: None }
}

macro_rules! need_debian {
    () => {{
        vmwright_judges::need!("qemu-system-x86_64", "mke2fs", "tar");
        let Some(debian) = debian() else { vmwright_judges::skip!("the demo has not made a Debian yet") };
        debian
    }};
}

#[test]
fn in_init_mode_the_agent_is_process_one_of_a_complete_system() {
    let debian = need_debian!();
    let mut machine = Machine::boot(debian, Bus::Mmio, serial(), Then::Serve);
    assert_eq!(machine.hello.as_ref().unwrap().mode, Mode::Init);
    assert_eq!(machine.sh("cat /proc/1/comm; echo $$ >/dev/null; id -u; pwd"), "init\n0\n/root\n");
    let mounts = machine.sh("cut -d' ' -f2,3 /proc/mounts");
    let expected = [
        "/ ext4",
        "/proc proc",
        "/sys sysfs",
        "/dev devtmpfs",
        "/dev/pts devpts",
        "/dev/shm tmpfs",
        "/sys/fs/cgroup cgroup2",
        "/run tmpfs",
    ];
    for mount in expected {
        assert!(mounts.lines().any(|line| line == mount), "no {mount} in {mounts}");
    }
    assert_eq!(
        machine.sh("cat /sys/class/net/lo/flags; test \"$(hostname)\" = \"$(cat /etc/hostname)\""),
        "0x9\n"
    );
    // Orphans are reaped: nothing is left of a process whose parent has gone.
    machine.sh("(sh -c 'sleep 0.1' &) ; sleep 0.5; ! grep -l '^State:.Z' /proc/[0-9]*/status");
    let path = ByteBuf::from("/etc/put");
    let id = machine.session.open(Ask::Put(Put { path, mode: None, owner: None, modified: None })).unwrap();
    machine.session.send_data(id, b"from the host");
    machine.session.send(id, Message::Eof).unwrap();
    assert_eq!(machine.last(id), Message::Done);
    assert_eq!(machine.sh("cat /etc/put"), "from the host");
    let id = machine.session.open(Ask::SetClock { seconds: 2_000_000_000, nanoseconds: 0 }).unwrap();
    assert_eq!(machine.last(id), Message::Done);
    assert!(machine.sh("date +%s").starts_with("20000000"));
    let (status, console) = machine.shut_down();
    assert!(status.success(), "{console}");
    assert!(!console.contains("Kernel panic"), "{console}");
}

#[test]
fn in_companion_mode_the_agent_stays_beside_systemd() {
    let debian = need_debian!();
    let root = RootDevice::Uuid(uuid_of(&debian.image));
    let mut machine = Machine::boot(debian, Bus::Pci, root, Then::HandOver { init: String::new() });
    assert_eq!(machine.hello.as_ref().unwrap().mode, Mode::Companion);
    machine.sh("until test -S /run/systemd/private; do sleep 0.1; done");
    machine.sh("systemctl is-system-running --wait >/dev/null; test \"$(cat /proc/1/comm)\" = systemd");
    assert_eq!(machine.sh("head -c 1 /proc/$PPID/cmdline"), "@");
    machine.sh("test -d /proc/1 && test -c /dev/pts/ptmx && mountpoint -q /run");
    // A new host, as after a restart of the shim: the programs of the old one end, new ones run.
    machine.session = Session::host(NonZeroU64::new(2).unwrap());
    machine.hello = None;
    machine.heard.clear();
    machine.stream = {
        let socket = machine.dir.path().join("agent");
        machine.stream.shutdown(std::net::Shutdown::Both).unwrap();
        Machine::connect(&socket)
    };
    machine.until(|machine| machine.hello.is_some());
    assert_eq!(machine.sh("echo again"), "again\n");
    let (status, console) = machine.shut_down();
    assert!(status.success(), "{console}");
    assert!(!console.contains("Kernel panic"), "{console}");
}

#[test]
fn a_package_gives_the_same_boot_as_the_disk_it_was_installed_on() {
    vmwright_judges::need!("dpkg-deb", "cp");
    let debian = need_debian!();
    let (image, modules) = (debian.kernel(), debian.modules());
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    let below = |path: &Path| tree.join(path.strip_prefix(&debian.tree).unwrap());
    let copy = |path: &Path| {
        std::fs::create_dir_all(below(path).parent().unwrap()).unwrap();
        vmwright_judges::run("cp", ["-a", path.to_str().unwrap(), below(path).to_str().unwrap()]);
    };
    copy(&image);
    // As in a package before its installation, there is no modules.dep.
    for part in ["modules.builtin", "kernel/drivers/virtio", "kernel/drivers/block", "kernel/drivers/char"] {
        copy(&modules.join(part));
    }
    std::fs::create_dir(tree.join("DEBIAN")).unwrap();
    let control = "Package: linux\nVersion: 1\nArchitecture: amd64\nMaintainer: a <a@b.c>\nDescription: x\n";
    std::fs::write(tree.join("DEBIAN/control"), control).unwrap();
    let request = Request {
        bus: Bus::Pci,
        root: serial(),
        fs_type: "ext4".into(),
        options: String::new(),
        read_only: true,
        then: Then::Serve,
        cmdline: String::new(),
    };
    let installed = prepare(Source::Files { image: &image, modules: Some(&modules) }, &request).unwrap();
    for packing in ["-Zxz", "-Zzstd", "-Zgzip", "-Znone"] {
        let deb = dir.path().join("linux.deb");
        let (tree, deb_text) = (tree.to_str().unwrap(), deb.to_str().unwrap());
        vmwright_judges::run("dpkg-deb", ["--build", packing, "-z1", "--root-owner-group", tree, deb_text]);
        let packed = prepare(Source::Package(&deb), &request).unwrap();
        assert!(packed.kernel == installed.kernel, "{packing}: another kernel");
        // The orders may differ where both are right; the modules, and so the sizes, may not.
        let names = |archive: &[u8]| -> BTreeSet<String> {
            let text = String::from_utf8_lossy(archive);
            let names = text.match_indices("modules/").filter_map(|(at, _)| text[at..].split_once(".ko"));
            names.map(|(name, _)| name.to_owned()).collect()
        };
        assert_eq!(names(&packed.initramfs), names(&installed.initramfs), "{packing}");
        assert_eq!(packed.initramfs.len(), installed.initramfs.len(), "{packing}");
    }
}

fn uuid_of(image: &Path) -> String {
    let text = vmwright_judges::run("blkid", ["-p", "-s", "UUID", "-o", "value", image.to_str().unwrap()]);
    text.trim().to_owned()
}
