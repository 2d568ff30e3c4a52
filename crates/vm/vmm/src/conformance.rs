//! What every backend must do, as a suite; with feature `test-util`.
//!
//! Each law starts machines of its own in directories below the one given, and panics where it is broken.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::process::Child;
use tokio::time::{sleep, timeout};

use crate::{
    Admitted, Backend, ErrorKind, ExitReason, Instance, PlainSpawner, ProcessIdentity, Program, Requirement,
    Resources, Spawner, Spec, Start, choose,
};

/// More than anything takes on the slowest machine; nothing is right or wrong for being quick.
const PATIENCE: Duration = Duration::from_secs(60);

/// A backend, and a machine of it that runs until it is told to end.
pub struct Subject<'a> {
    /// The backend.
    pub backend: &'a dyn Backend,
    /// A machine whose guest neither ends by itself nor listens to its power button.
    pub spec: &'a Spec,
    /// An empty directory with a short path.
    pub dir: &'a Path,
}

/// A spawner that remembers what it made.
#[derive(Default)]
pub struct Recorder(Mutex<Vec<ProcessIdentity>>);

impl Spawner for Recorder {
    fn spawn(&self, program: Program) -> io::Result<Child> {
        let child = PlainSpawner.spawn(program)?;
        let identity = child.id().and_then(|pid| ProcessIdentity::of(pid).ok().flatten());
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(identity);
        Ok(child)
    }
}

impl Recorder {
    /// Waits until nothing that was made here is alive.
    pub async fn all_gone(&self) {
        let made = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let gone = async {
            while made.iter().any(|process| process.is_alive().expect("/proc is readable")) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, gone).await.expect("no process is left behind");
    }

    /// How many processes were made.
    pub fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl Subject<'_> {
    /// Holds the backend to every law.
    pub async fn check(&self) {
        self.a_killed_machine_stays_killed().await;
        self.shutdown_ends_what_does_not_listen().await;
        self.facets_equal_capabilities().await;
        self.channels_are_there_exactly_where_asked_for().await;
        self.dropping_an_instance_ends_its_process().await;
        self.dropping_a_launch_leaves_no_process().await;
        self.a_directory_open_to_others_is_refused().await;
    }

    /// `kill` and `wait` answer the same exit however often they are called, and nothing is left.
    pub async fn a_killed_machine_stays_killed(&self) {
        let (spawner, dir) = (Recorder::default(), self.dir.join("kill"));
        let instance = self.launch(self.spec, &dir, &spawner).await;
        let identity = instance.identity().clone();
        assert!(identity.is_alive().expect("/proc is readable"), "the machine runs");
        assert!(
            timeout(Duration::from_millis(50), instance.wait()).await.is_err(),
            "it does not end by itself"
        );
        let exit = timeout(PATIENCE, instance.kill()).await.expect("a killed machine ends");
        assert_eq!(exit.reason, ExitReason::Killed);
        assert_eq!((exit.code, exit.signal), (None, Some(9)));
        assert_eq!(instance.kill().await, exit, "a second kill changes nothing");
        assert_eq!(instance.wait().await, exit);
        assert_eq!(instance.shutdown(PATIENCE).await, exit);
        assert!(!identity.is_alive().expect("/proc is readable"));
        spawner.all_gone().await;
        assert_eq!(leftovers(&dir), [] as [PathBuf; 0], "nothing lies in its directory");
    }

    /// `shutdown` takes its grace and then kills.
    pub async fn shutdown_ends_what_does_not_listen(&self) {
        let (spawner, dir) = (Recorder::default(), self.dir.join("shutdown"));
        let instance = self.launch(self.spec, &dir, &spawner).await;
        let ended = timeout(PATIENCE, instance.shutdown(Duration::from_millis(100))).await;
        let exit = ended.expect("the grace is over some time");
        assert!(matches!(exit.reason, ExitReason::Killed | ExitReason::GuestShutdown), "{exit:?}");
        assert_eq!(instance.wait().await, exit);
        spawner.all_gone().await;
    }

    /// An optional ability is there exactly where the capabilities say so, and works twice.
    pub async fn facets_equal_capabilities(&self) {
        let (spawner, dir) = (Recorder::default(), self.dir.join("facets"));
        let instance = self.launch(self.spec, &dir, &spawner).await;
        let offers = &instance.capabilities().offers;
        assert_eq!(instance.pause().is_some(), offers.contains(&Requirement::Pause));
        if let Some(facet) = instance.pause() {
            for _ in 0..2 {
                facet.pause().await.expect("a machine can be paused, and is then paused");
            }
            for _ in 0..2 {
                facet.resume().await.expect("a machine can be resumed, and is then running");
            }
        }
        instance.kill().await;
        if let Some(facet) = instance.pause() {
            assert!(facet.pause().await.is_err(), "what has ended cannot be paused");
        }
    }

    /// Agent and console are there where the specification wants them and nowhere else.
    pub async fn channels_are_there_exactly_where_asked_for(&self) {
        for wanted in [true, false] {
            let (spawner, dir) = (Recorder::default(), self.dir.join(format!("channels-{wanted}")));
            let spec = Spec { agent: wanted, console: wanted, ..self.spec.clone() };
            let instance = self.launch(&spec, &dir, &spawner).await;
            for _ in 0..2 {
                let agent =
                    timeout(PATIENCE, instance.agent()).await.expect("a connection does not take long");
                assert_eq!(agent.is_ok(), wanted, "{agent:?}");
            }
            let console = instance.console();
            assert_eq!(console.is_ok(), wanted);
            assert!(instance.console().is_err(), "a console is handed over once");
            instance.kill().await;
            if let Ok(console) = console {
                timeout(PATIENCE, ends(console)).await.expect("a console ends with its machine");
            }
        }
    }

    /// An instance that nobody holds any more takes its process with it.
    pub async fn dropping_an_instance_ends_its_process(&self) {
        let (spawner, dir) = (Recorder::default(), self.dir.join("drop"));
        drop(self.launch(self.spec, &dir, &spawner).await);
        spawner.all_gone().await;
    }

    /// A launch that is given up at any moment leaves no process.
    pub async fn dropping_a_launch_leaves_no_process(&self) {
        let mut spawned = 0;
        for step in 0..8 {
            let (spawner, dir) = (Recorder::default(), self.dir.join(format!("give-up-{step}")));
            let admitted = self.admit(self.spec, &spawner).await;
            let resources = Resources::new(&spawner);
            let launch = self.backend.launch(&admitted, &dir, Start::Boot, resources);
            let _ = timeout(Duration::from_millis(2 << step), launch).await;
            spawner.all_gone().await;
            spawned += spawner.count();
        }
        assert!(spawned > 0, "some of them came as far as a process");
    }

    /// Sockets are not made where others could reach them.
    pub async fn a_directory_open_to_others_is_refused(&self) {
        let (spawner, dir) = (Recorder::default(), self.dir.join("open"));
        fs::create_dir(&dir).expect("the directory given is empty");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o750)).expect("it belongs to the caller");
        let admitted = self.admit(self.spec, &spawner).await;
        let resources = Resources::new(&spawner);
        let refused = self.backend.launch(&admitted, &dir, Start::Boot, resources).await.err();
        assert_eq!(refused.map(|error| error.kind()), Some(ErrorKind::InvalidInput));
        spawner.all_gone().await;
    }

    async fn admit(&self, spec: &Spec, spawner: &dyn Spawner) -> Admitted {
        let probed = timeout(PATIENCE, self.backend.probe(spawner)).await.expect("a probe ends");
        let candidates = probed.expect("the backend is installed");
        for candidate in &candidates {
            assert_eq!(candidate.profile.backend(), self.backend.name());
        }
        choose(spec, &candidates).expect("the backend can serve the subject")
    }

    async fn launch(&self, spec: &Spec, dir: &Path, spawner: &dyn Spawner) -> Box<dyn Instance> {
        let admitted = self.admit(spec, spawner).await;
        let launch = self.backend.launch(&admitted, dir, Start::Boot, Resources::new(spawner));
        timeout(PATIENCE, launch).await.expect("a launch ends").expect("the subject starts")
    }
}

/// What lies in a directory.
fn leftovers(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).expect("the directory is still there");
    entries.map(|entry| entry.expect("it is readable").path()).collect()
}

/// Reads a console to its end.
async fn ends(mut console: tokio::net::UnixStream) {
    let mut sink = Vec::new();
    // A reset is an end as well.
    let _ = tokio::io::AsyncReadExt::read_to_end(&mut console, &mut sink).await;
}
