//! The command line of a machine, as a pure function of what was admitted.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::arguments::{Arguments, Value};
use crate::admit::Admitted;
use crate::backend::AGENT_PORT;
use crate::capabilities::{Engine, Profile};
use crate::spec::{Disk, DiskFormat, Requirement, Spec};

/// What `-sandbox` denies: QEMU never needs more rights, other programs or other priorities.
pub(super) const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// The bytes of the kernel's command line that [`cmdline`] may add.
pub(super) const CMDLINE_RESERVE: usize = 80;

/// What a command line needs beyond what was admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surroundings {
    /// Where the machine protocol's listener waits for QEMU.
    pub qmp: PathBuf,
    /// Where QEMU is to listen for the agent's channel.
    pub agent: PathBuf,
    /// The frequency of the host's time-stamp counter, in kHz.
    pub tsc_khz: Option<u64>,
}

/// Writes the arguments with which QEMU becomes the machine.
///
/// The console is on standard input and output.
pub fn render(admitted: &Admitted, surroundings: &Surroundings) -> Vec<OsString> {
    let spec = admitted.spec();
    let mut arguments = Arguments::default();
    basics(admitted, &mut arguments);
    arguments.option("-kernel", &spec.boot.kernel);
    if let Some(initramfs) = &spec.boot.initramfs {
        arguments.option("-initrd", initramfs);
    }
    arguments.option("-append", cmdline(admitted, surroundings.tsc_khz));
    let bus = Bus::of(admitted.profile());
    let qmp = Value::new("socket").with("id", "qmp").with("path", &surroundings.qmp);
    arguments.option("-chardev", qmp);
    arguments.option("-mon", "chardev=qmp,mode=control");
    console(spec, &mut arguments);
    arguments.option("-object", "rng-builtin,id=rng");
    arguments.option("-device", Value::new(bus.device("virtio-rng")).with("rng", "rng"));
    if spec.agent {
        agent(&surroundings.agent, bus, &mut arguments);
    }
    for (index, disk) in spec.disks.iter().enumerate() {
        block(index, disk, bus, &mut arguments);
    }
    arguments.into_vec()
}

/// How virtio devices are attached.
#[derive(Clone, Copy)]
struct Bus(&'static [(&'static str, &'static str)]);

impl Bus {
    fn of(profile: Profile) -> Self {
        match profile {
            Profile::QemuMicrovm => Self(&[
                ("virtio-rng", "virtio-rng-device"),
                ("virtio-serial", "virtio-serial-device"),
                ("virtio-blk", "virtio-blk-device"),
            ]),
            _ => Self(&[
                ("virtio-rng", "virtio-rng-pci"),
                ("virtio-serial", "virtio-serial-pci"),
                ("virtio-blk", "virtio-blk-pci"),
            ]),
        }
    }

    fn device(self, kind: &'static str) -> &'static str {
        self.0.iter().find(|(name, _)| *name == kind).map_or(kind, |(_, device)| device)
    }
}

fn basics(admitted: &Admitted, arguments: &mut Arguments) {
    let spec = admitted.spec();
    arguments.option("-name", format!("guest={}", spec.name));
    for flag in ["-no-user-config", "-nodefaults", "-no-reboot"] {
        arguments.flag(flag);
    }
    arguments.option("-display", "none");
    if admitted.capabilities().offers.contains(&Requirement::Sandbox) {
        arguments.option("-sandbox", SANDBOX);
    }
    match admitted.profile() {
        Profile::QemuMicrovm => {
            // ACPI is how kernels without command-line devices find virtio-mmio.
            arguments.option("-machine", "microvm,acpi=on");
            arguments.option("-global", "virtio-mmio.force-legacy=false");
        }
        _ => arguments.option("-machine", "q35,usb=off,vmport=off"),
    }
    engine(admitted.engine(), arguments);
    arguments.option("-smp", spec.machine.cpus.to_string());
    arguments.option("-m", format!("{}M", spec.machine.memory >> 20));
}

/// Who executes the guest, and the processor that it sees: all that the engine has.
pub(super) fn engine(engine: Engine, arguments: &mut Arguments) {
    let (accelerator, cpu) = match engine {
        Engine::Kvm => ("kvm", "host"),
        Engine::Tcg | Engine::Host => ("tcg", "max"),
    };
    arguments.option("-accel", accelerator);
    arguments.option("-cpu", cpu);
}

/// The kernel's command line: the caller's, and what the machine needs where the caller has not settled it.
fn cmdline(admitted: &Admitted, tsc_khz: Option<u64>) -> String {
    let spec = admitted.spec();
    let mut words = words(&spec.boot.cmdline);
    // What follows a bare "--" belongs to the guest's first program.
    let init = words.iter().position(|word| word == "--").unwrap_or(words.len());
    let init = words.split_off(init);
    let mut add = |key: &str, value: &str| {
        if !words.iter().any(|word| word.split('=').next() == Some(key)) {
            words.push(format!("{key}={value}"));
        }
    };
    if spec.console {
        add("console", "ttyS0");
    }
    // With -no-reboot, a reset by triple fault ends the machine also where there is no power to switch off.
    add("reboot", "t");
    add("panic", "-1");
    if admitted.engine() == Engine::Tcg && admitted.profile() == Profile::QemuMicrovm {
        // Without it the kernel calibrates against a timer that TCG serves late, and may never finish.
        if let Some(khz) = tsc_khz {
            add("tsc_early_khz", &khz.to_string());
        }
    }
    words.extend(init);
    words.join(" ")
}

/// The words of a kernel's command line: spaces between double quotes separate nothing.
fn words(cmdline: &str) -> Vec<String> {
    let mut is_quoted = false;
    let ends = |character: char| {
        is_quoted ^= character == '"';
        character.is_ascii_whitespace() && !is_quoted
    };
    cmdline.split(ends).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

fn console(spec: &Spec, arguments: &mut Arguments) {
    if spec.console {
        arguments.option("-chardev", "stdio,id=console,signal=off");
        arguments.option("-serial", "chardev:console");
    } else {
        arguments.option("-serial", "none");
    }
}

fn agent(socket: &Path, bus: Bus, arguments: &mut Arguments) {
    let chardev = Value::new("socket").with("id", "agent").with("path", socket);
    arguments.option("-chardev", chardev.with("server", "on").with("wait", "off"));
    arguments.option("-device", Value::new(bus.device("virtio-serial")).with("max_ports", "2"));
    let port = Value::new("virtserialport").with("nr", "1").with("chardev", "agent");
    arguments.option("-device", port.with("name", AGENT_PORT));
}

/// A disk: every image of its chain as a node of its own, so that QEMU opens nothing that an image names.
fn block(index: usize, disk: &Disk, bus: Bus, arguments: &mut Arguments) {
    let node = |depth: usize| format!("disk{index}-{depth}");
    for (depth, backing) in disk.backing.iter().enumerate().rev() {
        let below = (depth + 1 < disk.backing.len()).then(|| node(depth + 2));
        image(&node(depth + 1), &backing.path, backing.format, true, below, arguments);
    }
    let below = (!disk.backing.is_empty()).then(|| node(1));
    image(&node(0), &disk.path, disk.format, disk.read_only, below, arguments);
    let mut device = Value::new(bus.device("virtio-blk")).with("drive", node(0));
    if let Some(serial) = &disk.serial {
        device = device.with("serial", serial);
    }
    arguments.option("-device", device);
}

fn image(
    node: &str,
    path: &Path,
    format: DiskFormat,
    read_only: bool,
    below: Option<String>,
    arguments: &mut Arguments,
) {
    let read_only = if read_only { "on" } else { "off" };
    let file = format!("{node}-file");
    let protocol = Value::new("driver=file").with("node-name", &file).with("filename", path);
    let protocol = protocol.with("read-only", read_only).with("auto-read-only", "off");
    arguments.option("-blockdev", protocol.with("discard", "unmap"));
    let mut layer = serde_json::json!({
        "driver": format.to_string(), "node-name": node, "file": file,
        "read-only": read_only == "on", "discard": "unmap",
    });
    if format == DiskFormat::Qcow2 {
        // QEMU takes the name that the image holds unless it is given a node, or the absence of one.
        layer["backing"] = below.into();
    }
    arguments.option("-blockdev", layer.to_string());
}

#[cfg(test)]
mod tests;
