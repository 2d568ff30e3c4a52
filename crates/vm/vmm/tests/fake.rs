//! The fake backend, held to the laws of all backends and to its own.
#![allow(clippy::unwrap_used, reason = "helpers of tests end the test as tests do")]

mod support;

use std::path::Path;
use std::time::Duration;

use support::block_on;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use vmwright_judges::need;
use vmwright_vmm::conformance::{Recorder, Subject};
use vmwright_vmm::fake::{Fake, Fault};
use vmwright_vmm::{
    Admitted, Backend, Boot, ErrorKind, ExitReason, Instance, PlainSpawner, Profile, Resources, Result, Spec,
    Start, choose,
};

fn fake() -> Fake {
    Fake::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/listener.pl"))
}

fn spec() -> Spec {
    Spec { profile: Some(Profile::Fake), ..Spec::new("fake".parse().unwrap(), Boot::direct("/no/kernel")) }
}

fn admitted() -> Admitted {
    choose(&spec(), &[Fake::capabilities()]).unwrap()
}

async fn launch(fake: &Fake, dir: &Path) -> Result<Box<dyn Instance>> {
    fake.launch(&admitted(), dir, Start::Boot, Resources::new(&PlainSpawner)).await
}

#[test]
fn the_fake_backend_keeps_every_law() {
    need!("perl");
    let dir = tempfile::tempdir().unwrap();
    let (backend, spec) = (fake(), spec());
    block_on(Subject { backend: &backend, spec: &spec, dir: dir.path() }.check());
}

#[test]
fn the_agents_channel_reaches_the_program() {
    need!("perl");
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let instance = launch(&fake(), &dir.path().join("vm")).await.unwrap();
        for _ in 0..2 {
            let mut agent = instance.agent().await.unwrap();
            agent.write_all(b"hello").await.unwrap();
            let mut echo = [0; 5];
            agent.read_exact(&mut echo).await.unwrap();
            assert_eq!(&echo, b"hello");
        }
        let mut console = instance.console().unwrap();
        support::read_until(&mut console, "listening").await;
        let exit = instance.shutdown(support::PATIENCE).await;
        assert_eq!((exit.reason, exit.code), (ExitReason::GuestShutdown, Some(0)));
    });
}

#[test]
fn a_start_that_fails_after_the_process_exists_leaves_no_process() {
    need!("perl");
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (spawner, fake) = (Recorder::default(), fake().with_fault(Fault::StartFails));
        let resources = Resources::new(&spawner);
        let refused = fake.launch(&admitted(), &dir.path().join("vm"), Start::Boot, resources).await;
        assert_eq!(refused.err().unwrap().kind(), ErrorKind::Protocol);
        assert_eq!(spawner.count(), 1);
        spawner.all_gone().await;
        assert_eq!(std::fs::read_dir(dir.path().join("vm")).unwrap().count(), 0);
    });
}

#[test]
fn a_program_that_gives_up_leaves_its_words_in_the_error() {
    need!("perl");
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let error = launch(&fake(), &dir.path().join("refuse")).await.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Exited);
        assert!(error.to_string().contains("asks for a failure"), "{error}");
    });
}

#[test]
fn a_machine_that_dies_is_told_from_one_that_was_killed() {
    need!("perl");
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let fake = fake().with_fault(Fault::DiesAfter(20));
        let instance = launch(&fake, &dir.path().join("vm")).await.unwrap();
        let exit = instance.wait().await;
        assert_eq!((exit.reason, exit.signal), (ExitReason::MonitorFailed, Some(9)));
        assert_eq!(instance.kill().await, exit);
    });
}

#[test]
fn a_silent_agent_accepts_and_never_answers() {
    need!("perl");
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let fake = fake().with_fault(Fault::AgentSilent);
        let instance = launch(&fake, &dir.path().join("vm")).await.unwrap();
        let mut agent = instance.agent().await.unwrap();
        agent.write_all(b"hello").await.unwrap();
        let answer = timeout(Duration::from_millis(100), agent.read_u8()).await;
        assert!(answer.is_err(), "neither a byte nor an end came: {answer:?}");
        instance.kill().await;
    });
}

#[test]
fn a_slow_start_is_still_a_start() {
    need!("perl");
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let fake = fake().with_fault(Fault::Slow(50));
        let began = std::time::Instant::now();
        let instance = launch(&fake, &dir.path().join("vm")).await.unwrap();
        assert!(began.elapsed() >= Duration::from_millis(50));
        instance.kill().await;
    });
}

#[test]
fn a_machine_whose_directory_is_in_use_is_refused() {
    need!("perl");
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let instance = launch(&fake(), &dir.path().join("vm")).await.unwrap();
        let second = launch(&fake(), &dir.path().join("vm")).await.err().unwrap();
        assert_eq!(second.kind(), ErrorKind::InUse);
        assert!(instance.identity().is_alive().unwrap(), "the first one was left alone");
        instance.kill().await;
    });
}
