//! A host of its own for each test: a home directory, a disk image, and the agent that plays a machine.

use std::collections::BTreeSet;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use vmwright_runtime::{
    BackendChoice, CreateRequest, ExecRequest, ExitStatus, Options, Runtime, SessionEvent, VmName, fault,
};
use vmwright_vmm::fake::{Fake, Fault};

/// A host with nothing on it but a disk image.
pub(crate) struct Host {
    dir: tempfile::TempDir,
    pub(crate) base: PathBuf,
    pub(crate) agent: PathBuf,
    /// The example `vm`; as a machine it is one whose agent talks nonsense.
    pub(crate) program: PathBuf,
}

impl Host {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base.raw");
        std::fs::write(&base, vec![7; 1 << 20]).unwrap();
        // Closed before it is run: a program that somebody has open for writing is busy.
        let agent = dir.path().join("agent");
        std::fs::write(&agent, vmwright_boot::AGENT).unwrap();
        std::fs::set_permissions(&agent, std::fs::Permissions::from_mode(0o755)).unwrap();
        Self { dir, base, agent, program: program() }
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    pub(crate) fn runtime(&self) -> Runtime {
        Runtime::open(Options { binary: Some(self.program.clone()), ..Options::new(self.home()) }).unwrap()
    }

    pub(crate) fn request(&self, name: &str, fault: Fault) -> CreateRequest {
        let fake = Fake::new(&self.agent).with_fault(fault);
        CreateRequest {
            name: Some(name.parse().unwrap()),
            backend: BackendChoice::Fake(fake),
            ..CreateRequest::new(&self.base)
        }
    }

    /// A command of its own process.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(self.home()).args(args).env_remove(fault::VARIABLE);
        command
    }

    pub(crate) fn create_args<'a>(&'a self, name: &'a str) -> [&'a str; 4] {
        ["create", name, self.base.to_str().unwrap(), self.agent.to_str().unwrap()]
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    pub(crate) fn succeed(&self, args: &[&str]) {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    pub(crate) fn spawn(&self, args: &[&str]) -> Child {
        self.command(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    }

    /// Processes that have anything to do with this host: shims name the home, machines a socket beneath it.
    pub(crate) fn processes(&self) -> Vec<(u32, String)> {
        let dir = self.dir.path().to_str().unwrap();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            // Zombies have an empty command line; they are somebody else's to reap.
            let cmdline = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let cmdline = String::from_utf8_lossy(&cmdline).replace('\0', " ");
            if cmdline.contains(dir) {
                found.push((pid, cmdline));
            }
        }
        found
    }

    /// Waits until the kernel has taken the killed away.
    pub(crate) fn no_process_is_left(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let left = self.processes();
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "processes are left: {left:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Fails unless nothing but the empty store is left of anything.
    pub(crate) fn assert_nothing_is_left(&self) {
        self.no_process_is_left();
        let runtime = self.runtime();
        assert!(runtime.list().unwrap().is_empty());
        assert!(runtime.store().unwrap().open_operations().unwrap().is_empty());
        drop(runtime);
        let files = self.files();
        let expected: BTreeSet<_> = ["vmwright.db", "vmwright.db-setup"].map(PathBuf::from).into();
        assert_eq!(files, expected);
        assert_eq!(self.locks(), Vec::<String>::new());
        assert_eq!(self.control_groups(), Vec::<PathBuf>::new());
    }

    /// All files beneath the home, by their path in it.
    pub(crate) fn files(&self) -> BTreeSet<PathBuf> {
        files(&self.home())
    }

    /// The kernel's locks on files of this host.
    pub(crate) fn locks(&self) -> Vec<String> {
        let inodes: BTreeSet<u64> = files(self.dir.path())
            .iter()
            .map(|file| std::fs::metadata(self.dir.path().join(file)).unwrap().ino())
            .collect();
        let locks = std::fs::read_to_string("/proc/locks").unwrap();
        let inode = |line: &str| line.split_ascii_whitespace().nth(5)?.rsplit(':').next()?.parse().ok();
        // The test's own connections to the store are not meant.
        let own = format!(" {} ", std::process::id());
        let ours = |line: &&str| {
            !line.contains(&own) && inode(line).is_some_and(|inode: u64| inodes.contains(&inode))
        };
        locks.lines().filter(ours).map(str::to_owned).collect()
    }

    /// Control groups of VMs of this host. Their names hold a VM's name, which here holds the test's.
    fn control_groups(&self) -> Vec<PathBuf> {
        let mark = self.mark();
        let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
        let groups = roots.iter().filter_map(|root| std::fs::read_dir(root).ok()).flatten().flatten();
        groups
            .map(|group| group.path())
            .filter(|group| group.to_str().is_some_and(|g| g.contains(&mark)))
            .collect()
    }

    /// A name that no other test's VM has.
    pub(crate) fn vm(&self) -> String {
        format!("vm-{}", self.mark())
    }

    fn mark(&self) -> String {
        let name = self.dir.path().file_name().unwrap().to_str().unwrap();
        name.chars().filter(char::is_ascii_alphanumeric).collect()
    }
}

impl Drop for Host {
    /// A test that failed leaves its processes; by their numbers they can be ended.
    fn drop(&mut self) {
        for (pid, _) in self.processes() {
            if let Ok(Some(process)) = vmwright_vmm::ProcessIdentity::of(pid) {
                let _ = process.kill();
            }
        }
    }
}

/// All files beneath a directory, by their path in it.
fn files(dir: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in std::fs::read_dir(&next).into_iter().flatten().flatten() {
            match entry.file_type().unwrap().is_dir() {
                true => dirs.push(entry.path()),
                false => {
                    let _ = found.insert(entry.path().strip_prefix(dir).unwrap().to_owned());
                }
            }
        }
    }
    found
}

/// The example `vm`, which cargo builds beside the tests.
fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.ancestors().nth(2).unwrap().join("examples/vm");
    assert!(program.is_file(), "{} is absent: `cargo test -p vmwright-runtime` builds it", program.display());
    program
}

pub(crate) fn name(text: &str) -> VmName {
    text.parse().unwrap()
}

/// Runs a shell script in a VM and answers output, errors and status.
pub(crate) fn sh(runtime: &Runtime, vm: &VmName, script: &str) -> (String, String, ExitStatus) {
    let argv = [&b"/bin/sh"[..], b"-c", script.as_bytes()].map(<[u8]>::to_vec).to_vec();
    let mut session = runtime.exec(vm, &ExecRequest { argv, ..ExecRequest::default() }).unwrap();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    loop {
        match session.output.next_event().unwrap().unwrap() {
            SessionEvent::Stdout(bytes) => out.extend(bytes),
            SessionEvent::Stderr(bytes) => err.extend(bytes),
            SessionEvent::Exit(status) => {
                assert_eq!(session.output.next_event().unwrap(), None);
                return (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap(), status);
            }
        }
    }
}

/// Waits until something holds, as long as the slowest machine may need.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
