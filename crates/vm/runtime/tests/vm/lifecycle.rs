//! A VM's whole life, with a process on this host in place of a machine.

use std::io::Write;
use std::ops::ControlFlow;
use std::time::Duration;

use crate::host::{Host, eventually, name, sh};
use vmwright_runtime::{
    BackendChoice, DiskMode, ErrorKind, ExecRequest, ExitCause, ExitStatus, PutRequest, Restart, RunRequest,
    Runtime, SessionEvent, StartOptions, State, StopOptions,
};
use vmwright_vmm::ProcessIdentity;
use vmwright_vmm::fake::{Fake, Fault};

fn started(host: &Host) -> (Runtime, vmwright_runtime::VmName) {
    let (runtime, vm) = (host.runtime(), name(&host.vm()));
    runtime.create(&host.request(vm.as_str(), Fault::None)).unwrap();
    runtime.start(&vm, &StartOptions::default()).unwrap();
    (runtime, vm)
}

#[test]
fn a_vm_lives_from_create_to_delete_and_leaves_nothing() {
    let host = Host::new();
    let (runtime, vm) = (host.runtime(), name(&host.vm()));
    let made = runtime.create(&host.request(vm.as_str(), Fault::None)).unwrap();
    assert_eq!(made.state, State::Created);
    assert!(made.config.disk.is_file());
    assert_eq!(runtime.image_users(&host.base).unwrap(), std::slice::from_ref(&vm));

    let started = runtime.start(&vm, &StartOptions::default()).unwrap();
    assert_eq!(started.vm.state, State::Running);
    assert!(started.notices.is_empty());
    assert!(runtime.agent_answers(&vm).unwrap());
    // A second start changes nothing.
    assert_eq!(runtime.start(&vm, &StartOptions::default()).unwrap().vm.pid, started.vm.pid);

    assert_eq!(
        sh(&runtime, &vm, "echo out; echo err >&2; exit 7"),
        ("out\n".into(), "err\n".into(), ExitStatus::Code(7))
    );
    assert_eq!(sh(&runtime, &vm, "kill -9 $$").2, ExitStatus::Signal(9));

    let error = runtime.delete(&vm, false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse);
    let stopped = runtime.stop(&vm, &StopOptions::default()).unwrap();
    assert_eq!(stopped.state, State::Stopped);
    assert_eq!(stopped.exit.unwrap().cause, ExitCause::Stopped);
    host.no_process_is_left();
    // A second stop changes nothing.
    assert_eq!(runtime.stop(&vm, &StopOptions::default()).unwrap().state, State::Stopped);
    let error = runtime.exec(&vm, &ExecRequest::default()).unwrap_err();
    assert!(error.to_string().contains("STOPPED"), "{error}");

    runtime.start(&vm, &StartOptions::default()).unwrap();
    runtime.delete(&vm, true).unwrap();
    assert_eq!(runtime.inspect(&vm).unwrap_err().kind(), ErrorKind::NotFound);
    drop(runtime);
    host.assert_nothing_is_left();
}

#[test]
fn input_output_and_signals_pass_through() {
    let host = Host::new();
    let (runtime, vm) = started(&host);
    let argv = vec![b"cat".to_vec()];
    let session = runtime.exec(&vm, &ExecRequest { argv, stdin: true, ..ExecRequest::default() }).unwrap();
    let (input, mut output) = (session.input, session.output);
    // More than every window and pipe on the way holds.
    let sent: Vec<u8> = (0..3_000_000u32).map(|index| (index % 251) as u8).collect();
    let copy = sent.clone();
    let feeder = std::thread::spawn(move || {
        input.write(&copy).unwrap();
        input.close().unwrap();
    });
    let mut received = Vec::new();
    let status = loop {
        match output.next_event().unwrap().unwrap() {
            SessionEvent::Stdout(bytes) => received.extend(bytes),
            SessionEvent::Stderr(bytes) => panic!("{}", String::from_utf8_lossy(&bytes)),
            SessionEvent::Exit(status) => break status,
        }
    };
    feeder.join().unwrap();
    assert_eq!(status, ExitStatus::Code(0));
    assert!(received == sent);

    let argv = ["sleep", "600"].map(|arg| arg.as_bytes().to_vec()).to_vec();
    let mut session =
        runtime.exec(&vm, &ExecRequest { argv, stdin: true, ..ExecRequest::default() }).unwrap();
    // Behind data that nobody reads.
    session.input.write(&[0; 60_000]).unwrap();
    session.input.signal(15).unwrap();
    assert_eq!(session.output.next_event().unwrap(), Some(SessionEvent::Exit(ExitStatus::Signal(15))));
    assert!(session.input.write(b"too late").is_err());
    runtime.delete(&vm, true).unwrap();
}

#[test]
fn surroundings_of_a_program_are_as_asked() {
    let host = Host::new();
    let (runtime, vm) = started(&host);
    let script = "echo $COLOUR; pwd; test -t 0 && stty size";
    let argv = ["/bin/sh", "-c", script].map(|arg| arg.as_bytes().to_vec()).to_vec();
    let request = ExecRequest {
        argv,
        env: vec![(b"COLOUR".to_vec(), b"blue".to_vec())],
        cwd: Some(b"/proc".to_vec()),
        pty: Some((33, 99)),
        ..ExecRequest::default()
    };
    let mut session = runtime.exec(&vm, &request).unwrap();
    let mut text = Vec::new();
    while let Some(SessionEvent::Stdout(bytes)) = session.output.next_event().unwrap() {
        text.extend(bytes);
    }
    let text = String::from_utf8(text).unwrap();
    assert_eq!(text.lines().map(str::trim_end).collect::<Vec<_>>(), ["blue", "/proc", "33 99"]);
    let argv = vec![b"/no/such/program".to_vec()];
    let mut session = runtime.exec(&vm, &ExecRequest { argv, ..ExecRequest::default() }).unwrap();
    assert_eq!(session.output.next_event().unwrap_err().kind(), ErrorKind::NotFound);
    runtime.delete(&vm, true).unwrap();
}

#[test]
fn a_program_ends_with_the_command_that_ran_it() {
    let host = Host::new();
    let (runtime, vm) = started(&host);
    let mark = host.dir().join("mark");
    let script = format!("echo ready; sleep 600; touch {}", mark.display());
    let argv = ["/bin/sh", "-c", &script].map(|arg| arg.as_bytes().to_vec()).to_vec();
    let mut session = runtime.exec(&vm, &ExecRequest { argv, ..ExecRequest::default() }).unwrap();
    assert_eq!(session.output.next_event().unwrap(), Some(SessionEvent::Stdout(b"ready\n".to_vec())));
    let running = |host: &Host| host.processes().iter().any(|(_, line)| line.contains("sleep 600; touch"));
    assert!(running(&host));
    drop(session);
    eventually("the program ends", || !running(&host));
    runtime.delete(&vm, true).unwrap();
}

#[test]
fn files_go_in_and_out_whole() {
    let host = Host::new();
    let (runtime, vm) = started(&host);
    let path = host.dir().join("in the guest");
    let content: Vec<u8> = (0..1_000_003u32).map(|index| (index % 253) as u8).collect();
    let request = PutRequest {
        path: path.to_str().unwrap().into(),
        mode: Some(0o640),
        modified: Some((1_000_000_000, 5)),
        ..PutRequest::default()
    };
    assert_eq!(runtime.put(&vm, &request, &mut content.as_slice()).unwrap(), content.len() as u64);
    let mut back = Vec::new();
    let info = runtime.get(&vm, &request.path, &mut back).unwrap();
    assert!(back == content);
    assert_eq!((info.size, info.mode, info.modified), (content.len() as u64, 0o640, (1_000_000_000, 5)));
    let error = runtime.get(&vm, b"/no/such/file", &mut back).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let request = PutRequest { path: b"/proc/no/such/folder".to_vec(), ..PutRequest::default() };
    assert!(runtime.put(&vm, &request, &mut content.as_slice()).is_err());
    runtime.delete(&vm, true).unwrap();
}

#[test]
fn many_commands_share_one_agent() {
    let host = Host::new();
    let (runtime, vm) = started(&host);
    std::thread::scope(|scope| {
        for index in 0..12 {
            let (runtime, vm) = (&runtime, &vm);
            scope.spawn(move || {
                for round in 0..5 {
                    let (out, _, status) = sh(runtime, vm, &format!("echo {index} {round}; exit {index}"));
                    assert_eq!((out, status), (format!("{index} {round}\n"), ExitStatus::Code(index)));
                }
            });
        }
    });
    runtime.delete(&vm, true).unwrap();
}

#[test]
fn twenty_vms_are_made_and_started_at_once() {
    let host = Host::new();
    let names: Vec<_> = (0..20).map(|index| format!("{}-{index}", host.vm())).collect();
    std::thread::scope(|scope| {
        for vm in &names {
            let host = &host;
            scope.spawn(move || {
                host.succeed(&host.create_args(vm));
                host.succeed(&["start", vm]);
            });
        }
    });
    let runtime = host.runtime();
    let list = runtime.list().unwrap();
    assert_eq!(list.len(), 20);
    assert!(list.iter().all(|vm| vm.state == State::Running));
    assert_eq!(runtime.image_users(&host.base).unwrap().len(), 20);
    std::thread::scope(|scope| {
        for vm in &names {
            let runtime = &runtime;
            scope.spawn(move || {
                assert_eq!(sh(runtime, &name(vm), "echo hi").0, "hi\n");
                runtime.delete(&name(vm), true).unwrap();
            });
        }
    });
    drop(runtime);
    host.assert_nothing_is_left();
}

#[test]
fn a_start_that_fails_after_the_spawn_leaves_no_child() {
    let host = Host::new();
    let (runtime, vm) = (host.runtime(), name(&host.vm()));
    runtime.create(&host.request(vm.as_str(), Fault::StartFails)).unwrap();
    let error = runtime.start(&vm, &StartOptions::default()).unwrap_err();
    assert!(error.to_string().contains("cannot start"), "{error}");
    host.no_process_is_left();
    assert_eq!(runtime.inspect(&vm).unwrap().state, State::Created);
    assert_eq!(std::fs::read_dir(runtime.home().root().join("run")).unwrap().count(), 0);
    runtime.delete(&vm, false).unwrap();
    drop(runtime);
    host.assert_nothing_is_left();
}

#[test]
fn a_guest_that_never_answers_is_given_up_with_its_last_words() {
    let host = Host::new();
    let (runtime, vm) = (host.runtime(), name(&host.vm()));
    runtime.create(&host.request(vm.as_str(), Fault::AgentSilent)).unwrap();
    // The machine is a process that prints nothing: an earlier run's console stands for what it printed.
    let dir = runtime.inspect(&vm).unwrap().dir;
    std::fs::write(dir.console_log(), b"Booting\r\nKernel panic \x1b[31m- not syncing\n\n").unwrap();
    let options = StartOptions { agent_timeout: Duration::from_millis(300) };
    let error = runtime.start(&vm, &options).unwrap_err();
    let silence = error.guest_silence().unwrap_or_else(|| panic!("{error}"));
    assert_eq!(silence.console, ["Booting", "Kernel panic \u{FFFD}[31m- not syncing"]);
    assert!(error.to_string().contains("within 0.3 s"), "{error}");
    host.no_process_is_left();
    assert_eq!(runtime.inspect(&vm).unwrap().state, State::Created);
    runtime.delete(&vm, false).unwrap();
}

#[test]
fn a_machine_that_dies_is_an_error_until_reconciled() {
    let host = Host::new();
    let (runtime, vm) = (host.runtime(), name(&host.vm()));
    runtime.create(&host.request(vm.as_str(), Fault::DiesAfter(150))).unwrap();
    runtime.start(&vm, &StartOptions::default()).unwrap();
    let ended = runtime.wait(&vm, Some(Duration::from_secs(20))).unwrap().unwrap();
    assert_eq!(ended.state, State::Error);
    let exit = ended.exit.unwrap();
    assert_eq!(exit.cause, ExitCause::Died);
    assert_eq!(exit.vmm.unwrap().signal, Some(9));
    let error = runtime.start(&vm, &StartOptions::default()).unwrap_err();
    assert!(error.to_string().contains("reconcile"), "{error}");
    assert_eq!(runtime.reconcile().unwrap().died, std::slice::from_ref(&vm));
    assert_eq!(runtime.inspect(&vm).unwrap().state, State::Stopped);
    assert!(runtime.reconcile().unwrap().is_empty());
    assert_eq!(runtime.prune().unwrap(), [vm]);
    drop(runtime);
    host.assert_nothing_is_left();
}

#[test]
fn a_machine_that_dies_is_started_again_as_often_as_asked() {
    let host = Host::new();
    let (runtime, vm) = (host.runtime(), name(&host.vm()));
    let mut request = host.request(vm.as_str(), Fault::DiesAfter(100));
    request.restart = Restart::OnFailure(2);
    runtime.create(&request).unwrap();
    runtime.start(&vm, &StartOptions::default()).unwrap();
    let ended = runtime.wait(&vm, Some(Duration::from_secs(20))).unwrap().unwrap();
    assert_eq!(ended.state, State::Error);
    let log = std::fs::read_to_string(ended.dir.shim_log()).unwrap();
    assert!(log.contains("restart 1") && log.contains("restart 2") && !log.contains("restart 3"), "{log}");
    runtime.delete(&vm, false).unwrap();
    host.no_process_is_left();
}

#[test]
fn a_machine_that_was_started_again_has_its_new_process() {
    let host = Host::new();
    let (runtime, vm) = (host.runtime(), name(&host.vm()));
    let mut request = host.request(vm.as_str(), Fault::None);
    request.restart = Restart::OnFailure(1);
    runtime.create(&request).unwrap();
    runtime.start(&vm, &StartOptions::default()).unwrap();
    let pid = || runtime.inspect(&vm).unwrap().pid;
    let first = pid().unwrap();
    assert!(ProcessIdentity::of(first).unwrap().unwrap().kill().unwrap());
    eventually("the second process is known", || pid().is_some_and(|second| second != first));
    runtime.delete(&vm, true).unwrap();
    host.no_process_is_left();
}

#[test]
fn a_vm_ends_when_its_time_is_over() {
    let host = Host::new();
    let (runtime, vm) = (host.runtime(), name(&host.vm()));
    let mut request = host.request(vm.as_str(), Fault::None);
    request.ttl = Some(Duration::from_millis(400));
    runtime.create(&request).unwrap();
    runtime.start(&vm, &StartOptions::default()).unwrap();
    assert!(runtime.wait(&vm, Some(Duration::ZERO)).unwrap().is_none());
    let ended = runtime.wait(&vm, Some(Duration::from_secs(20))).unwrap().unwrap();
    assert_eq!((ended.state, ended.exit.unwrap().cause), (State::Stopped, ExitCause::Ttl));
    runtime.delete(&vm, false).unwrap();
}

#[test]
fn a_base_that_changed_refuses_the_start_and_nothing_else_does() {
    let host = Host::new();
    let (runtime, vm) = (host.runtime(), name(&host.vm()));
    runtime.create(&host.request(vm.as_str(), Fault::None)).unwrap();
    runtime.start(&vm, &StartOptions::default()).unwrap();
    runtime.stop(&vm, &StopOptions::default()).unwrap();
    let mut base = std::fs::File::options().append(true).open(&host.base).unwrap();
    base.write_all(&[1]).unwrap();
    drop(base);
    let error = runtime.start(&vm, &StartOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse);
    assert!(error.to_string().contains("length"), "{error}");
    assert!(runtime.store().unwrap().open_operations().unwrap().is_empty());
    // A shared disk is there to be changed.
    let shared = format!("{}-shared", host.vm());
    let mut request = host.request(&shared, Fault::None);
    request.disk_mode = DiskMode::Shared;
    let made = runtime.create(&request).unwrap();
    assert_eq!(made.config.disk, host.base.canonicalize().unwrap());
    std::fs::write(&host.base, vec![8; 1 << 20]).unwrap();
    runtime.start(&name(&shared), &StartOptions::default()).unwrap();
    runtime.delete(&name(&shared), true).unwrap();
    assert!(host.base.is_file());
    runtime.delete(&vm, false).unwrap();
    drop(runtime);
    host.assert_nothing_is_left();
}

#[test]
fn a_disk_that_is_absent_leaves_no_trace_of_the_attempt() {
    let host = Host::new();
    let runtime = host.runtime();
    let mut request = host.request(&host.vm(), Fault::None);
    request.disk = host.dir().join("absent.qcow2");
    assert_eq!(runtime.create(&request).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(runtime.list().unwrap().is_empty());
}

#[test]
fn a_run_leaves_nothing_whether_finished_or_dropped() {
    let host = Host::new();
    let runtime = host.runtime();
    let request = RunRequest::new(host.request(&host.vm(), Fault::None));
    let ephemeral = runtime.run(&request).unwrap();
    assert_eq!(sh(&runtime, ephemeral.name(), "echo here").0, "here\n");
    ephemeral.finish().unwrap();
    drop(runtime);
    host.assert_nothing_is_left();

    let runtime = host.runtime();
    drop(runtime.run(&request).unwrap());
    host.no_process_is_left();
    eventually("the row goes with the VM", || runtime.list().unwrap().is_empty());
    drop(runtime);
    host.assert_nothing_is_left();
}

#[test]
fn a_run_that_is_kept_stays_stopped() {
    let host = Host::new();
    let runtime = host.runtime();
    let vm = name(&host.vm());
    let request = RunRequest { keep: true, ..RunRequest::new(host.request(vm.as_str(), Fault::None)) };
    runtime.run(&request).unwrap().finish().unwrap();
    assert_eq!(runtime.inspect(&vm).unwrap().state, State::Stopped);
    // Whoever runs it dies: it is stopped all the same.
    runtime.delete(&vm, false).unwrap();
    drop(runtime.run(&request).unwrap());
    let ended = runtime.wait(&vm, Some(Duration::from_secs(20))).unwrap().unwrap();
    assert_eq!((ended.state, ended.exit.unwrap().cause), (State::Stopped, ExitCause::Lease));
    runtime.delete(&vm, false).unwrap();
}

#[test]
fn logs_are_followed_to_the_end() {
    let host = Host::new();
    let (runtime, vm) = started(&host);
    let dir = runtime.inspect(&vm).unwrap().dir;
    let mut console = std::fs::File::options().append(true).create(true).open(dir.console_log()).unwrap();
    console.write_all(b"first\n").unwrap();
    let mut seen = Vec::new();
    runtime
        .logs(&vm, false, &mut |bytes| {
            seen.extend_from_slice(bytes);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(seen, b"first\n");
    let follower = std::thread::spawn({
        let (runtime, vm) = (host.runtime(), vm.clone());
        move || {
            let mut seen = Vec::new();
            let mut take = |bytes: &[u8]| {
                seen.extend_from_slice(bytes);
                ControlFlow::Continue(())
            };
            runtime.logs(&vm, true, &mut take).unwrap();
            seen
        }
    });
    std::thread::sleep(Duration::from_millis(50));
    // The log is full and begins anew.
    std::fs::rename(dir.console_log(), dir.console_log().with_extension("log.1")).unwrap();
    std::fs::write(dir.console_log(), b"second\n").unwrap();
    runtime.stop(&vm, &StopOptions::default()).unwrap();
    assert_eq!(follower.join().unwrap(), b"first\nsecond\n");
    runtime.delete(&vm, false).unwrap();
}

#[test]
fn a_shim_is_small() {
    let host = Host::new();
    let (runtime, vm) = started(&host);
    for _ in 0..20 {
        sh(&runtime, &vm, "echo hi");
    }
    let shim = runtime.shim(&vm).unwrap().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", shim.pid)).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    let kilobytes: u64 = line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(kilobytes < 8 * 1024, "{line}");
    runtime.delete(&vm, true).unwrap();
}

#[test]
fn an_agent_that_talks_nonsense_is_no_agent_and_harms_nobody() {
    let host = Host::new();
    let (runtime, vm) = (host.runtime(), name(&host.vm()));
    let mut request = host.request(vm.as_str(), Fault::None);
    request.backend = BackendChoice::Fake(Fake::new(&host.program));
    runtime.create(&request).unwrap();
    let options = StartOptions { agent_timeout: Duration::from_millis(800) };
    let watcher = std::thread::spawn({
        let (runtime, vm) = (host.runtime(), vm.clone());
        move || {
            let mut largest = 0;
            let begun = std::time::Instant::now();
            while begun.elapsed() < Duration::from_millis(800) {
                let shim = runtime.shim(&vm).ok().flatten();
                let status =
                    shim.and_then(|shim| std::fs::read_to_string(format!("/proc/{}/status", shim.pid)).ok());
                let line = status.as_deref().and_then(|status| {
                    status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next())
                });
                let kilobytes: Option<u64> = line.and_then(|number| number.parse().ok());
                largest = largest.max(kilobytes.unwrap_or(0));
                std::thread::sleep(Duration::from_millis(20));
            }
            largest
        }
    });
    let error = runtime.start(&vm, &options).unwrap_err();
    assert!(error.guest_silence().is_some(), "{error}");
    let largest = watcher.join().unwrap();
    assert!(largest > 0 && largest < 16 * 1024, "{largest} kB");
    host.no_process_is_left();
    runtime.delete(&vm, false).unwrap();
}
