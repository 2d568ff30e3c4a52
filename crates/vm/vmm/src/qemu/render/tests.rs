use super::*;
use crate::spec::{Backing, Boot, DiskFormat};
use crate::{Capabilities, Limits, choose};

fn capabilities(profile: Profile, engines: &[Engine]) -> Capabilities {
    Capabilities {
        profile,
        version: "7.2.22".to_owned(),
        engines: engines.to_vec(),
        engines_missing: [].into(),
        limits: Limits { cpus: 254, memory_min: 1 << 20, memory_max: 1 << 40, disks: 22, cmdline: 1024 },
        disk_formats: [DiskFormat::Raw, DiskFormat::Qcow2].into(),
        agent: true,
        console: true,
        offers: [Requirement::Pause, Requirement::Sandbox].into(),
        lacks: [].into(),
        exclusions: Vec::new(),
    }
}

fn surroundings() -> Surroundings {
    Surroundings { qmp: "/vm/q".into(), agent: "/vm/a".into(), tsc_khz: Some(2_596_136) }
}

fn spec() -> Spec {
    Spec::new("web".parse().unwrap(), Boot::direct("/boot/vmlinuz"))
}

/// The arguments one to a line, values behind their options.
fn lines(spec: &Spec, capabilities: Capabilities) -> String {
    let admitted = choose(spec, &[capabilities]).unwrap();
    let arguments = render(&admitted, &surroundings());
    let mut text = String::new();
    for argument in &arguments {
        let argument = argument.to_str().unwrap();
        let is_option = argument.starts_with('-') && !argument.contains(' ');
        text.push_str(if text.is_empty() {
            ""
        } else if is_option {
            "\n"
        } else {
            " "
        });
        text.push_str(argument);
    }
    text
}

fn assert_golden(actual: &str, golden: &str) {
    assert!(actual == golden.trim_end(), "this is what was rendered:\n{actual}");
}

#[test]
fn the_smallest_microvm_is_this() {
    let mut spec = spec();
    (spec.agent, spec.console) = (false, false);
    let actual = lines(&spec, capabilities(Profile::QemuMicrovm, &[Engine::Tcg]));
    assert_golden(&actual, include_str!("golden/microvm-smallest.txt"));
}

#[test]
fn a_microvm_with_everything_is_this() {
    let mut spec = spec();
    spec.boot.initramfs = Some("/boot/initrd,img".into());
    spec.boot.cmdline = "root=LABEL=root ro -- single".to_owned();
    (spec.machine.cpus, spec.machine.memory) = (4, 2 << 30);
    spec.disks = vec![
        Disk {
            backing: vec![
                Backing { path: "/images/middle.qcow2".into(), format: DiskFormat::Qcow2 },
                Backing { path: "/images/base,1.raw".into(), format: DiskFormat::Raw },
            ],
            serial: Some("root".to_owned()),
            ..Disk::new("/vm/overlay.qcow2", DiskFormat::Qcow2)
        },
        Disk { read_only: true, ..Disk::new("/images/data.raw", DiskFormat::Raw) },
    ];
    let actual = lines(&spec, capabilities(Profile::QemuMicrovm, &[Engine::Tcg]));
    assert_golden(&actual, include_str!("golden/microvm-everything.txt"));
}

#[test]
fn a_q35_on_kvm_is_this() {
    let mut spec = spec();
    spec.disks = vec![Disk::new("/vm/disk.qcow2", DiskFormat::Qcow2)];
    let actual = lines(&spec, capabilities(Profile::QemuQ35, &[Engine::Kvm, Engine::Tcg]));
    assert_golden(&actual, include_str!("golden/q35-kvm.txt"));
}

#[test]
fn a_qemu_that_has_no_sandbox_is_not_told_to_use_one() {
    let mut without = capabilities(Profile::QemuMicrovm, &[Engine::Tcg]);
    without.offers.remove(&Requirement::Sandbox);
    assert!(!lines(&spec(), without).contains("-sandbox"));
}

#[test]
fn what_the_caller_settled_on_the_command_line_stays() {
    let mut spec = spec();
    spec.boot.cmdline = "console=hvc0 panic=5 tsc_early_khz=1 rebooting=1".to_owned();
    let admitted = choose(&spec, &[capabilities(Profile::QemuMicrovm, &[Engine::Tcg])]).unwrap();
    let words = cmdline(&admitted, Some(7));
    assert_eq!(words, "console=hvc0 panic=5 tsc_early_khz=1 rebooting=1 reboot=t");
}

#[test]
fn a_quoted_value_keeps_its_spaces() {
    let mut spec = spec();
    spec.boot.cmdline = r#"dyndbg="file a.c  +p" quiet"#.to_owned();
    let admitted = choose(&spec, &[capabilities(Profile::QemuQ35, &[Engine::Tcg])]).unwrap();
    let words = cmdline(&admitted, None);
    assert_eq!(words, r#"dyndbg="file a.c  +p" quiet console=ttyS0 reboot=t panic=-1"#);
}

#[test]
fn what_is_added_to_a_command_line_fits_into_its_reserve() {
    let admitted = choose(&spec(), &[capabilities(Profile::QemuMicrovm, &[Engine::Tcg])]).unwrap();
    assert!(cmdline(&admitted, Some(u64::MAX)).len() < CMDLINE_RESERVE);
}

#[test]
fn a_comma_in_a_path_stays_within_its_value() {
    use std::os::unix::ffi::OsStringExt;
    let value = Value::new("socket").with("path", "/a,b,,c").with("server", "on");
    assert_eq!(OsString::from(value), "socket,path=/a,,b,,,,c,server=on");
    let raw = OsString::from_vec(vec![b'/', 0xff, b',']);
    assert_eq!(OsString::from(Value::new("x").with("y", raw)).into_vec(), b"x,y=/\xff,,");
}
