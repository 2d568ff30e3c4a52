use std::collections::BTreeMap;

use super::*;
use crate::capabilities::{Exclusion, Limits};
use crate::fake::Fake;
use crate::spec::{Backing, Boot, Disk, DiskFormat};

fn capabilities(profile: Profile, engines: &[Engine]) -> Capabilities {
    Capabilities {
        profile,
        version: "1".to_owned(),
        engines: engines.to_vec(),
        engines_missing: BTreeMap::from([(Engine::Kvm, "/dev/kvm is closed".to_owned())]),
        limits: Limits { cpus: 4, memory_min: 32 << 20, memory_max: 1 << 30, disks: 2, cmdline: 20 },
        disk_formats: [DiskFormat::Raw].into(),
        agent: true,
        console: false,
        offers: [Requirement::Pause].into(),
        lacks: BTreeMap::from([(Requirement::Sandbox, "it was built without".to_owned())]),
        exclusions: Vec::new(),
    }
}

fn microvm() -> Capabilities {
    capabilities(Profile::QemuMicrovm, &[Engine::Tcg])
}

fn spec() -> Spec {
    Spec { console: false, ..Spec::new("vm".parse().unwrap(), Boot::direct("/k")) }
}

/// What is refused, and why.
fn refused(spec: &Spec, capabilities: &Capabilities) -> Vec<(String, String)> {
    let refusals = admit(spec, capabilities).unwrap_err();
    assert_eq!(refusals.profile, capabilities.profile);
    refusals.list.into_iter().map(|refusal| (refusal.request, refusal.reason)).collect()
}

#[test]
fn what_can_be_served_is_admitted_with_an_engine() {
    let admitted = admit(&spec(), &microvm()).unwrap();
    assert_eq!((admitted.profile(), admitted.engine()), (Profile::QemuMicrovm, Engine::Tcg));
    assert_eq!(admitted.spec(), &spec());
    assert_eq!(admitted.why_engine(), "KVM cannot be used: /dev/kvm is closed");
}

#[test]
fn every_request_that_cannot_be_served_is_listed() {
    let mut spec = spec();
    spec.profile = Some(Profile::QemuQ35);
    (spec.machine.cpus, spec.machine.memory) = (5, 2 << 30);
    spec.machine.accelerator = Accelerator::Kvm;
    spec.boot.cmdline = "a".repeat(21);
    let backing = vec![Backing { path: "/b".into(), format: DiskFormat::Raw }];
    spec.disks =
        vec![Disk { backing, ..Disk::new("/d", DiskFormat::Qcow2) }, Disk::new("/e", DiskFormat::Raw)];
    spec.disks.push(Disk::new("/f", DiskFormat::Raw));
    spec.console = true;
    spec.requires = [Requirement::Sandbox, Requirement::Pause].into();
    let expected = [
        ("profile qemu/q35", "it is another kind of machine"),
        ("cpus 5", "it has at most 4"),
        ("memory 2147483648", "it has at most 1073741824"),
        ("3 disks", "it has at most 2"),
        ("kernel command line of 21 bytes", "it leaves 20 bytes to the caller"),
        ("disk 0 as qcow2", "it does not read this format"),
        ("console", "it has none"),
        ("sandbox", "it was built without"),
        ("accelerator kvm", "/dev/kvm is closed"),
    ];
    let expected: Vec<_> = expected.map(|(request, reason)| (request.to_owned(), reason.to_owned())).into();
    assert_eq!(refused(&spec, &microvm()), expected);
}

#[test]
fn memory_below_the_least_is_refused() {
    let mut spec = spec();
    spec.machine.memory = 16 << 20;
    let reason = "it needs at least 33554432".to_owned();
    assert_eq!(refused(&spec, &microvm()), [("memory 16777216".to_owned(), reason)]);
}

#[test]
fn a_channel_that_is_not_there_is_refused_and_not_left_out() {
    let without = Capabilities { agent: false, ..microvm() };
    assert_eq!(refused(&spec(), &without), [("agent channel".to_owned(), "it has none".to_owned())]);
    assert!(admit(&Spec { agent: false, ..spec() }, &without).is_ok());
}

#[test]
fn hardware_virtualization_takes_kvm_or_nothing() {
    let mut spec = spec();
    spec.requires = [Requirement::HardwareVirtualization].into();
    let reason = "/dev/kvm is closed".to_owned();
    assert_eq!(refused(&spec, &microvm()), [("hardware-virtualization".to_owned(), reason)]);
    let with_kvm = capabilities(Profile::QemuMicrovm, &[Engine::Kvm, Engine::Tcg]);
    assert_eq!(admit(&spec, &with_kvm).unwrap().engine(), Engine::Kvm);
    spec.machine.accelerator = Accelerator::Tcg;
    assert!(refused(&spec, &with_kvm)[0].1.contains("TCG is not"));
}

#[test]
fn the_first_engine_is_taken_unless_another_one_is_asked_for() {
    let with_kvm = capabilities(Profile::QemuMicrovm, &[Engine::Kvm, Engine::Tcg]);
    let mut spec = spec();
    let admitted = admit(&spec, &with_kvm).unwrap();
    assert_eq!(
        (admitted.engine(), admitted.why_engine().as_str()),
        (Engine::Kvm, "KVM was measured to work")
    );
    spec.machine.accelerator = Accelerator::Tcg;
    let admitted = admit(&spec, &with_kvm).unwrap();
    assert_eq!((admitted.engine(), admitted.why_engine().as_str()), (Engine::Tcg, "tcg was asked for"));
}

#[test]
fn two_requests_that_exclude_each_other_are_refused_with_the_reason() {
    let exclusion = Exclusion {
        one: Feature::Ability(Requirement::Pause),
        other: Feature::Engine(Engine::Tcg),
        reason: "it loses interrupts".to_owned(),
    };
    let capabilities = Capabilities { exclusions: vec![exclusion], ..microvm() };
    let mut spec = spec();
    assert!(admit(&spec, &capabilities).is_ok(), "one of the two alone is served");
    spec.requires = [Requirement::Pause].into();
    let expected = ("pause with tcg".to_owned(), "it loses interrupts".to_owned());
    assert_eq!(refused(&spec, &capabilities), [expected]);
}

#[test]
fn the_first_candidate_that_serves_everything_is_chosen() {
    let mut q35 = capabilities(Profile::QemuQ35, &[Engine::Tcg]);
    q35.console = true;
    let candidates = [microvm(), q35];
    assert_eq!(choose(&spec(), &candidates).unwrap().profile(), Profile::QemuMicrovm);
    let with_console = Spec { console: true, ..spec() };
    assert_eq!(choose(&with_console, &candidates).unwrap().profile(), Profile::QemuQ35);
}

#[test]
fn a_refusal_names_who_can_serve_the_request() {
    let mut q35 = capabilities(Profile::QemuQ35, &[Engine::Tcg]);
    q35.limits.cpus = 8;
    let mut spec = Spec { profile: Some(Profile::QemuMicrovm), ..spec() };
    spec.machine.cpus = 8;
    spec.requires = [Requirement::Sandbox].into();
    let error = choose(&spec, &[microvm(), q35]).unwrap_err();
    assert_eq!(error.kind(), crate::ErrorKind::Unsupported);
    let served: Vec<_> = error.refusals().unwrap().list.iter().map(|r| r.served_by.clone()).collect();
    assert_eq!(served, [vec![Profile::QemuQ35], vec![]]);
    assert_eq!(
        error.to_string(),
        "qemu/microvm cannot serve cpus 8: it has at most 4 (served by qemu/q35); sandbox: it was built without"
    );
}

#[test]
fn the_fake_is_taken_and_named_only_where_it_was_asked_for() {
    let candidates = [Fake::capabilities()];
    let error = choose(&spec(), &candidates).unwrap_err();
    assert!(error.to_string().contains("not available on this host"), "{error}");
    let named = Spec { profile: Some(Profile::Fake), ..spec() };
    let admitted = choose(&named, &candidates).unwrap();
    assert_eq!(admitted.engine(), Engine::Host);
    let mut hardware = Spec { profile: Some(Profile::QemuMicrovm), ..spec() };
    hardware.machine.cpus = 5;
    let error = choose(&hardware, &[microvm(), Fake::capabilities()]).unwrap_err();
    assert!(error.refusals().unwrap().list[0].served_by.is_empty());
}

#[test]
fn a_specification_that_makes_no_sense_is_not_compared_with_anybody() {
    let mut spec = spec();
    spec.machine.cpus = 0;
    assert_eq!(choose(&spec, &[microvm()]).unwrap_err().kind(), crate::ErrorKind::InvalidInput);
}
