use std::path::PathBuf;

use vmwright_judges::{need, run, tool};

use super::*;
use crate::spawner::PlainSpawner;

/// A verdict of a guest that is translated, so that it means the same on every host.
fn verdict(text: &[u8], deadline: Duration) -> KvmVerdict {
    let program = tool("qemu-system-x86_64").unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let trial = Trial { program: &program, machine: "microvm", engine: Engine::Tcg, deadline, text };
    runtime.block_on(trial.run(&PlainSpawner)).unwrap()
}

/// More than a guest that works can need.
const LONG: Duration = Duration::from_secs(60);

/// The guest with one place changed.
fn broken(from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut places = TEXT.windows(from.len()).enumerate().filter(|(_, window)| *window == from);
    let (at, _) = places.next().expect("the guest has these bytes");
    assert!(places.next().is_none(), "and has them once");
    let mut text = TEXT.to_vec();
    text[at..at + to.len()].copy_from_slice(to);
    text
}

const SYSCALL: [u8; 2] = [0x0f, 0x05];

#[test]
fn the_committed_guest_is_what_its_source_assembles_to() {
    need!("as", "ld", "objcopy");
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/qemu/probe");
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).into_os_string();
    run("as", ["--64".into(), "-o".into(), at("guest.o"), source.join("guest.S").into_os_string()]);
    let script = source.join("guest.ld").into_os_string();
    run(
        "ld",
        ["-m".into(), "elf_x86_64".into(), "-T".into(), script, "-o".into(), at("guest"), at("guest.o")],
    );
    for (section, committed) in [(".text", TEXT), (".reset", RESET)] {
        let args = ["-O", "binary", "-j", section].map(Into::into);
        run("objcopy", args.into_iter().chain([at("guest"), at("bytes")]));
        assert!(fs::read(at("bytes")).unwrap() == committed, "{section} differs: assemble guest.rs again");
    }
}

#[test]
fn the_guest_makes_ten_thousand_system_calls_from_ring_3() {
    need!("qemu-system-x86_64");
    let verdict = verdict(TEXT, LONG);
    assert!(verdict.usable, "{}", verdict.reason);
    assert_eq!(verdict.measured.unwrap().syscalls, 10_000);
}

#[test]
fn a_guest_that_hangs_runs_into_the_deadline() {
    need!("qemu-system-x86_64");
    // The first system call becomes a jump to itself.
    let first = [&SYSCALL[..], &[0xff, 0xcb]].concat();
    let verdict = verdict(&broken(&first, &[0xeb, 0xfe]), Duration::from_millis(500));
    assert_eq!((verdict.usable, verdict.measured), (false, None));
    assert!(verdict.reason.contains("did not end within 500 ms"), "{}", verdict.reason);
}

#[test]
fn a_guest_that_faults_ends_without_a_report() {
    need!("qemu-system-x86_64");
    // Without a table of interrupts an undefined instruction resets the processor.
    let first = [&SYSCALL[..], &[0xff, 0xcb]].concat();
    let verdict = verdict(&broken(&first, &[0x0f, 0x0b]), LONG);
    assert_eq!((verdict.usable, verdict.measured), (false, None));
    assert!(verdict.reason.contains("without a report"), "{}", verdict.reason);
}

#[test]
fn a_guest_that_counts_wrong_is_not_believed() {
    need!("qemu-system-x86_64");
    let verdict = verdict(&broken(&SYSCALLS.to_le_bytes(), &9_999_u32.to_le_bytes()), LONG);
    assert_eq!((verdict.usable, verdict.measured), (false, None));
    assert!(verdict.reason.contains("9999 system calls instead of 10000"), "{}", verdict.reason);
}

#[test]
fn a_known_bad_module_rules_kvm_out_before_anything_runs() {
    let modules = tempfile::tempdir().unwrap();
    let device = modules.path().join("kvm-device");
    let none = ruled_out(modules.path(), &device).unwrap();
    assert!(none.reason.contains("cannot open"), "{}", none.reason);
    fs::write(&device, b"").unwrap();
    assert_eq!(ruled_out(modules.path(), &device), None, "nothing speaks against it but a measurement");
    fs::create_dir(modules.path().join("kvm_pvm")).unwrap();
    let bad = ruled_out(modules.path(), &device).unwrap();
    assert!(!bad.usable && bad.reason.contains("kvm_pvm"), "{}", bad.reason);
}

#[test]
fn only_the_whole_report_is_read_as_one() {
    assert_eq!(parse("ring 3 syscalls 10000\n"), Some(10_000));
    for report in
        ["", "ring 3 syscalls \n", "ring 3 syscalls 10000", "ring 0 syscalls 1\n", "ring 3 syscalls 1\n\n"]
    {
        assert_eq!(parse(report), None, "{report:?}");
    }
}
