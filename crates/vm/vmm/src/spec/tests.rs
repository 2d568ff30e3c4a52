use super::*;

fn spec() -> Spec {
    Spec::new("vm".parse().unwrap(), Boot::direct("/k"))
}

#[test]
fn a_specification_is_read_back_as_it_was_written() {
    let mut spec = spec();
    spec.profile = Some(Profile::QemuQ35);
    spec.requires = [Requirement::Pause, Requirement::HardwareVirtualization].into();
    let backing = vec![Backing { path: "/base".into(), format: DiskFormat::Raw }];
    let disk = Disk { backing, serial: Some("a-1".into()), ..Disk::new("/d", DiskFormat::Qcow2) };
    spec.disks = vec![Disk { read_only: true, ..disk }];
    let text = serde_json::to_string(&spec).unwrap();
    assert!(text.contains(r#""profile":"qemu/q35""#) && text.contains("hardware-virtualization"), "{text}");
    assert_eq!(serde_json::from_str::<Spec>(&text).unwrap(), spec);
}

#[test]
fn a_short_specification_has_an_agent_a_console_and_no_disk() {
    let read: Spec = serde_json::from_str(r#"{"name": "vm", "boot": {"kernel": "/k"}}"#).unwrap();
    assert_eq!(read, spec());
    assert!(read.agent && read.console && read.disks.is_empty());
}

#[test]
fn a_field_that_nobody_knows_is_refused_at_every_level() {
    for text in [
        r#"{"name": "vm", "boot": {"kernel": "/k"}, "gpu": true}"#,
        r#"{"name": "vm", "boot": {"kernel": "/k", "firmware": "/f"}}"#,
        r#"{"name": "vm", "boot": {"kernel": "/k"}, "machine": {"cores": 2}}"#,
        r#"{"name": "vm", "boot": {"kernel": "/k"}, "disks": [{"path": "/d", "format": "raw", "cache": "none"}]}"#,
        r#"{"name": "vm", "boot": {"kernel": "/k"}, "disks": [{"path": "/d", "format": "vmdk"}]}"#,
        r#"{"name": "vm", "boot": {"kernel": "/k"}, "requires": ["teleport"]}"#,
        r#"{"name": "-vm", "boot": {"kernel": "/k"}}"#,
    ] {
        assert!(serde_json::from_str::<Spec>(text).is_err(), "{text}");
    }
}

#[test]
fn a_name_cannot_be_a_path_an_option_or_a_list() {
    for good in ["a", "web-1", "0", "A_b.c", &"x".repeat(63)] {
        assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
    }
    for bad in ["", "-a", ".", "..", ".a", "_a", "a/b", "a,b", "a b", "ä", "a\n", "a\0", &"x".repeat(64)] {
        assert!(bad.parse::<Name>().is_err(), "{bad:?}");
    }
}

#[test]
fn a_machine_without_processors_or_with_odd_memory_makes_no_sense() {
    let with = |cpus, memory| {
        let mut spec = spec();
        (spec.machine.cpus, spec.machine.memory) = (cpus, memory);
        spec.validate().err().map(|error| error.to_string())
    };
    assert_eq!(with(1, MEMORY_UNIT), None);
    assert!(with(0, MEMORY_UNIT).unwrap().contains("at least one processor"));
    for memory in [0, 1, MEMORY_UNIT - 1, MEMORY_UNIT + 1, u64::MAX] {
        assert!(with(1, memory).unwrap().contains(&memory.to_string()));
    }
}

#[test]
fn a_kernel_without_a_path_or_with_a_broken_command_line_makes_no_sense() {
    let with = |boot| Spec { boot, ..spec() }.validate();
    assert!(with(Boot::direct("")).is_err());
    assert!(with(Boot { initramfs: Some("".into()), ..Boot::direct("/k") }).is_err());
    let cmdline = |cmdline: String| with(Boot { cmdline, ..Boot::direct("/k") });
    assert_eq!(cmdline("a".repeat(CMDLINE_MAX)), Ok(()));
    let error = cmdline("a".repeat(CMDLINE_MAX + 1)).unwrap_err();
    assert_eq!(error, SpecError::Boot(BootError::CmdlineLength { len: 2048 }));
    let error = cmdline("quiet\ninit=/x".into()).unwrap_err();
    assert_eq!(error, SpecError::Boot(BootError::CmdlineControl { position: 5 }));
}

#[test]
fn a_disk_that_makes_no_sense_is_named_by_its_place() {
    let with = |disk| {
        let spec = Spec { disks: vec![Disk::new("/ok", DiskFormat::Raw), disk], ..spec() };
        match spec.validate() {
            Err(SpecError::Disk { index: 1, error }) => Some(error),
            Ok(()) => None,
            other => panic!("{other:?}"),
        }
    };
    let raw = |path: &str| Backing { path: path.into(), format: DiskFormat::Raw };
    let qcow2 = Disk::new("/d", DiskFormat::Qcow2);
    assert_eq!(with(Disk { backing: vec![raw("/b")], ..qcow2.clone() }), None);
    assert_eq!(with(Disk { backing: vec![raw("")], ..qcow2.clone() }), Some(DiskError::EmptyPath));
    let two = vec![raw("/b"), raw("/c")];
    assert_eq!(with(Disk { backing: two, ..qcow2.clone() }), Some(DiskError::RawWithBacking));
    let raw_above = Disk { backing: vec![raw("/b")], ..Disk::new("/d", DiskFormat::Raw) };
    assert_eq!(with(raw_above), Some(DiskError::RawWithBacking));
    let serial = |serial: &str| with(Disk { serial: Some(serial.into()), ..qcow2.clone() });
    assert_eq!(serial("root_1.A-"), None);
    assert_eq!(serial(""), Some(DiskError::SerialLength { len: 0 }));
    assert_eq!(serial(&"s".repeat(21)), Some(DiskError::SerialLength { len: 21 }));
    assert_eq!(serial("a,b"), Some(DiskError::SerialCharacter));
}

#[test]
fn two_disks_cannot_have_one_serial_number() {
    let disk =
        |serial: Option<&str>| Disk { serial: serial.map(str::to_owned), ..Disk::new("/d", DiskFormat::Raw) };
    let with = |serials: [Option<&str>; 3]| Spec { disks: serials.map(disk).into(), ..spec() }.validate();
    assert_eq!(with([None, Some("a"), None]), Ok(()));
    let error = SpecError::SameSerial { first: 0, second: 2 };
    assert_eq!(with([Some("a"), Some("b"), Some("a")]), Err(error));
}
