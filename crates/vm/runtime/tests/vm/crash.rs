//! Whoever is killed, wherever: afterwards nothing is left, or what is left is as it should be.

use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use vmwright_judges::{can_mount, skip};
use vmwright_runtime::store::{NewVm, Outcome};
use vmwright_runtime::{ErrorKind, ExitCause, Runtime, StartOptions, State, VmName, fault};
use vmwright_vmm::ProcessIdentity;
use vmwright_vmm::fake::Fault;

use crate::host::{Host, eventually, name, sh};

/// Brings a VM as far as `verb` and lets somebody die at `point` while it does that.
fn die_at(host: &Host, vm: &str, point: &str) {
    let by_shim = point.starts_with("shim.");
    let verb = match point.split('.').next().unwrap() {
        "shim"
            if fault::POINTS.iter().position(|p| *p == point)
                < fault::POINTS.iter().position(|p| *p == "start.ready") =>
        {
            "start"
        }
        "shim" => "stop",
        verb => verb,
    };
    let verbs = ["create", "start", "stop", "delete"];
    for step in &verbs[..=verbs.iter().position(|v| *v == verb).unwrap()] {
        let create = host.create_args(vm);
        let args: &[&str] = if *step == "create" { &create } else { &[step, vm] };
        let mut command = host.command(args);
        // A shim has its environment from the command that started it.
        let armed = if by_shim { *step == "start" } else { *step == verb };
        if armed {
            command.env(fault::VARIABLE, point);
        }
        let output = command.output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        if *step == verb && !by_shim {
            assert_eq!(output.status.signal(), Some(9), "{point}: {step} did not die: {errors}");
        } else if *step != verb {
            assert!(output.status.success(), "{point}: {step}: {errors}");
        }
    }
}

/// Nothing may remain of a VM's run; of the VM itself only its directory.
fn assert_no_run_is_left(host: &Host, point: &str) {
    host.no_process_is_left();
    assert_eq!(std::fs::read_dir(host.home().join("run")).unwrap().count(), 0, "{point}: sockets");
    assert_eq!(host.locks(), Vec::<String>::new(), "{point}: locks");
    let files = host.files();
    let temporary = |file: &&std::path::PathBuf| {
        let name = file.file_name().unwrap().to_str().unwrap();
        name.ends_with(".new") || name.contains("part") || name == "state.json" || name == "launch.json"
    };
    assert_eq!(files.iter().filter(temporary).count(), 0, "{point}: {files:?}");
}

fn reconciled_after(point: &str) {
    let host = Host::new();
    let vm = host.vm();
    die_at(&host, &vm, point);
    let runtime = host.runtime();
    runtime.reconcile().unwrap();
    assert!(runtime.reconcile().unwrap().is_empty(), "{point}: a second time");
    assert!(runtime.store().unwrap().open_operations().unwrap().is_empty(), "{point}");
    let vm = name(&vm);
    match runtime.list().unwrap().first() {
        None => {}
        Some(info) if info.state == State::Running => {
            assert_eq!(sh(&runtime, &vm, "echo alive").0, "alive\n", "{point}");
            runtime.delete(&vm, true).unwrap();
        }
        Some(info) => {
            assert!(matches!(info.state, State::Created | State::Stopped), "{point}: {:?}", info.state);
            assert_no_run_is_left(&host, point);
            // What was undone can be done.
            runtime.start(&vm, &StartOptions::default()).unwrap();
            runtime.delete(&vm, true).unwrap();
        }
    }
    drop(runtime);
    host.assert_nothing_is_left();
}

#[test]
fn death_at_every_point_leaves_nothing_after_reconcile() {
    let points = Mutex::new(fault::POINTS.iter());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let Some(point) = points.lock().unwrap().next() else { return };
                    reconciled_after(point);
                }
            });
        }
    });
}

#[test]
fn commands_killed_at_any_moment_leave_nothing_after_reconcile() {
    let rounds = if std::env::var_os("VMWRIGHT_TORTURE").is_some() { 400 } else { 24 };
    let host = Host::new();
    let runtime = host.runtime();
    for round in 0..rounds {
        let vm = format!("{}-{round}", host.vm());
        let create = host.create_args(&vm);
        let steps: [&[&str]; 4] = [&create, &["start", &vm], &["stop", &vm], &["delete", &vm]];
        // A different moment of each round's script, from the first step to the last.
        let mut patience = Duration::from_micros(2_500 * (round as u64 * 7 % 40));
        for step in steps {
            let mut child = host.command(step).stderr(Stdio::null()).spawn().unwrap();
            let killed = !ends_within(&mut child, &mut patience);
            if killed {
                child.kill().unwrap();
                child.wait().unwrap();
                break;
            }
        }
        runtime.reconcile().unwrap();
        if let Some(info) = runtime.list().unwrap().first() {
            runtime.delete(&info.name, true).unwrap();
        }
    }
    drop(runtime);
    host.assert_nothing_is_left();
}

/// Waits for a child as long as there is patience, which that uses up.
fn ends_within(child: &mut Child, patience: &mut Duration) -> bool {
    const STEP: Duration = Duration::from_micros(500);
    loop {
        if child.try_wait().unwrap().is_some() {
            return true;
        }
        let Some(left) = patience.checked_sub(STEP) else { return false };
        *patience = left;
        std::thread::sleep(STEP);
    }
}

fn running(host: &Host) -> (Runtime, VmName) {
    let (runtime, vm) = (host.runtime(), name(&host.vm()));
    runtime.create(&host.request(vm.as_str(), Fault::None)).unwrap();
    runtime.start(&vm, &StartOptions::default()).unwrap();
    (runtime, vm)
}

#[test]
fn a_machine_dies_with_its_shim_and_no_orphan_is_left() {
    let host = Host::new();
    let (runtime, vm) = running(&host);
    assert!(runtime.shim(&vm).unwrap().unwrap().kill().unwrap());
    host.no_process_is_left();
    let info = runtime.inspect(&vm).unwrap();
    assert_eq!((info.state, info.exit.unwrap().cause), (State::Error, ExitCause::Lost));
    assert_eq!(runtime.reconcile().unwrap().died, std::slice::from_ref(&vm));
    assert_no_run_is_left(&host, "shim killed");
    runtime.start(&vm, &StartOptions::default()).unwrap();
    runtime.delete(&vm, true).unwrap();
    drop(runtime);
    host.assert_nothing_is_left();
}

#[test]
fn a_killed_machine_is_recorded_exactly() {
    let host = Host::new();
    let (runtime, vm) = running(&host);
    let pid = runtime.inspect(&vm).unwrap().pid.unwrap();
    assert!(ProcessIdentity::of(pid).unwrap().unwrap().kill().unwrap());
    let ended = runtime.wait(&vm, Some(Duration::from_secs(20))).unwrap().unwrap();
    let exit = ended.exit.unwrap();
    assert_eq!((ended.state, exit.cause), (State::Error, ExitCause::Died));
    assert_eq!(exit.vmm.unwrap().signal, Some(9));
    runtime.delete(&vm, false).unwrap();
    drop(runtime);
    host.assert_nothing_is_left();
}

#[test]
fn a_run_whose_command_is_killed_leaves_nothing() {
    let host = Host::new();
    let args = ["run", host.base.to_str().unwrap(), host.agent.to_str().unwrap()];
    let mut child = host.spawn(&args);
    let mut line = String::new();
    let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut out, &mut line).unwrap();
    let (runtime, vm) = (host.runtime(), name(line.trim()));
    assert_eq!(sh(&runtime, &vm, "echo here").0, "here\n");
    let dir = runtime.inspect(&vm).unwrap().dir;
    child.kill().unwrap();
    child.wait().unwrap();
    // The shim alone sees to it; the store is all that waits for the next command.
    host.no_process_is_left();
    assert!(!dir.path().exists() && !dir.sockets().exists());
    assert_eq!(runtime.image_users(&host.base).unwrap(), [], "its image is free");
    assert!(runtime.list().unwrap().is_empty());
    drop(runtime);
    host.assert_nothing_is_left();
}

/// Points the record of a dead shim at another process.
fn accuse(host: &Host, vm: &VmName, change: impl Fn(&mut serde_json::Value)) {
    let path = host.runtime().home().vm(vm).path().join("state.json");
    let mut state: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for process in ["shim", "vmm"] {
        change(&mut state[process]);
    }
    std::fs::write(&path, serde_json::to_vec(&state).unwrap()).unwrap();
}

fn victim() -> (Child, ProcessIdentity) {
    let child = Command::new("sleep").arg("600").spawn().unwrap();
    let identity = ProcessIdentity::of(child.id()).unwrap().unwrap();
    (child, identity)
}

#[test]
fn a_reused_pid_is_never_killed() {
    let host = Host::new();
    let (runtime, vm) = running(&host);
    runtime.shim(&vm).unwrap().unwrap().kill().unwrap();
    host.no_process_is_left();
    let (mut child, identity) = victim();
    accuse(&host, &vm, |process| process["pid"] = identity.pid.into());
    runtime.reconcile().unwrap();
    assert!(identity.is_alive().unwrap());
    assert_eq!(runtime.inspect(&vm).unwrap().state, State::Stopped);
    child.kill().unwrap();
    child.wait().unwrap();
    runtime.delete(&vm, false).unwrap();
}

#[test]
fn records_from_before_the_host_restarted_kill_nobody() {
    let host = Host::new();
    let (runtime, vm) = running(&host);
    runtime.shim(&vm).unwrap().unwrap().kill().unwrap();
    host.no_process_is_left();
    let (mut child, identity) = victim();
    accuse(&host, &vm, |process| {
        process["pid"] = identity.pid.into();
        process["start_time"] = identity.start_time.into();
        process["boot_id"] = "11111111-2222-3333-4444-555555555555".into();
    });
    let info = runtime.inspect(&vm).unwrap();
    assert_eq!(info.state, State::Error);
    assert_eq!(info.exit.unwrap().detail.as_deref(), Some("the host restarted"));
    runtime.reconcile().unwrap();
    assert!(identity.is_alive().unwrap());
    child.kill().unwrap();
    child.wait().unwrap();
    runtime.delete(&vm, false).unwrap();
}

#[test]
fn a_stale_socket_is_replaced_and_a_living_one_never() {
    let host = Host::new();
    let (runtime, vm) = (host.runtime(), name(&host.vm()));
    let made = runtime.create(&host.request(vm.as_str(), Fault::None)).unwrap();
    std::fs::create_dir(made.dir.sockets()).unwrap();
    let socket = made.dir.shim_socket();
    let listener = UnixListener::bind(&socket).unwrap();
    let error = runtime.start(&vm, &StartOptions::default()).unwrap_err();
    assert!(error.to_string().contains("shim.sock"), "{error}");
    // A dropped listener leaves its name behind.
    drop(listener);
    assert!(socket.exists());
    runtime.start(&vm, &StartOptions::default()).unwrap();
    runtime.delete(&vm, true).unwrap();
}

#[test]
fn a_start_whose_command_died_is_undone_by_whoever_looks() {
    let host = Host::new();
    let vm = host.vm();
    host.succeed(&host.create_args(&vm));
    let output = host.command(&["start", &vm]).env(fault::VARIABLE, "start.ready").output().unwrap();
    assert_eq!(output.status.signal(), Some(9));
    // No row says "starting" for ever, and nothing runs that nobody knows of.
    let runtime = host.runtime();
    assert_eq!(runtime.list().unwrap()[0].state, State::Created);
    host.no_process_is_left();
    runtime.delete(&name(&vm), false).unwrap();
    drop(runtime);
    host.assert_nothing_is_left();
}

#[test]
fn a_living_owners_operation_refuses_others_and_is_never_undone() {
    let host = Host::new();
    let (runtime, vm) = (host.runtime(), name(&host.vm()));
    let store = runtime.store().unwrap();
    let mut child = Command::new("sleep").arg("600").spawn().unwrap();
    let owner = ProcessIdentity::of(child.id()).unwrap().unwrap();
    let config = serde_json::to_string(&runtime_config(&host)).unwrap();
    let new = NewVm { name: &vm, config: &config, images: &[], ephemeral: false };
    let operation = store.create_vm(&new, &owner).unwrap();
    let error = runtime.delete(&vm, false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse);
    assert!(error.to_string().contains(&child.id().to_string()), "{error}");
    assert!(runtime.reconcile().unwrap().is_empty());
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(runtime.reconcile().unwrap().operations.len(), 1);
    assert!(runtime.list().unwrap().is_empty());
    // What somebody else has settled is settled.
    store.finish(operation, Outcome::Done, None).unwrap();
}

/// A configuration that parses; its VM is never started.
fn runtime_config(host: &Host) -> vmwright_runtime::VmConfig {
    let runtime = host.runtime();
    let vm = name("config");
    let config = runtime.create(&host.request(vm.as_str(), Fault::None)).unwrap().config;
    runtime.delete(&vm, false).unwrap();
    config
}

#[test]
fn a_directory_that_the_store_does_not_know_is_removed() {
    let host = Host::new();
    let runtime = host.runtime();
    runtime.list().unwrap();
    runtime.store().unwrap();
    std::fs::create_dir(host.home().join("vms/forsaken")).unwrap();
    std::fs::write(host.home().join("vms/forsaken/disk.qcow2"), b"x").unwrap();
    std::fs::create_dir(host.home().join("run/0123456789ab")).unwrap();
    assert_eq!(runtime.reconcile().unwrap().orphans, [name("forsaken")]);
    drop(runtime);
    host.assert_nothing_is_left();
}

#[test]
fn a_full_disk_leaves_no_half_made_vm() {
    if !can_mount() {
        skip!("mounting is not allowed here");
    }
    let host = Host::new();
    let home = host.home();
    std::fs::create_dir(&home).unwrap();
    vmwright_judges::run("mount", ["-t", "tmpfs", "-o", "size=1m,mode=0700", "none", home.to_str().unwrap()]);
    let runtime = host.runtime();
    let mut made = Vec::new();
    let error = loop {
        let vm = format!("{}-{}", host.vm(), made.len());
        match runtime.create(&host.request(&vm, Fault::None)) {
            Ok(info) => made.push(info.name),
            Err(error) => break error,
        }
        assert!(made.len() < 100, "the disk never gets full");
    };
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    // Every VM there is is whole; what failed is gone as soon as there is room to write that down.
    let mut left = runtime.list();
    if left.is_err() {
        let last = made.pop().unwrap();
        let _ = std::fs::remove_dir_all(runtime.home().vm(&last).path());
        left = runtime.list();
    }
    for info in left.unwrap() {
        assert!(info.config.disk.is_file() || !made.contains(&info.name), "{}", info.name);
    }
    drop(runtime);
    eventually("the home is let go of", || {
        vmwright_judges::output("umount", [home.to_str().unwrap()]).status.success()
    });
}
