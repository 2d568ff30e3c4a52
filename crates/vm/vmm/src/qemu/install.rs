//! What an installed QEMU says of itself.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::sync::watch;

use super::PACKAGE;
use super::arguments::Arguments;
use super::qmp::{PROMPT, Qmp};
use super::render::SANDBOX;
use crate::cache::{Cache, Key};
use crate::error::{Error, ErrorKind, Reason, Result};
use crate::process::{Process, Witness};
use crate::spawner::{Program, Spawner};

/// How long QEMU may take to start without a machine.
const START: Duration = Duration::from_secs(20);

/// The oldest version whose options are the ones that are written.
const OLDEST: Version = Version { major: 6, minor: 0, micro: 0 };

/// The name under which the answers are kept.
const CACHED_AS: &str = "qemu.json";

/// What an installed QEMU can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Installed {
    /// Its version.
    pub(super) version: Version,
    /// The most processors of each kind of machine.
    pub(super) machines: BTreeMap<String, u32>,
    /// The kinds of objects that it can make, as far as they are used here.
    pub(super) types: BTreeSet<String>,
    /// Whether it was built with KVM.
    pub(super) kvm: bool,
    /// Whether it runs with its sandbox on.
    pub(super) sandbox: bool,
}

/// A version of QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Version {
    major: u32,
    minor: u32,
    micro: u32,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// The kinds of objects that are used on one machine or another.
const TYPES: [&str; 11] = [
    "virtio-blk-device",
    "virtio-blk-pci",
    "virtio-rng-device",
    "virtio-rng-pci",
    "virtio-serial-device",
    "virtio-serial-pci",
    "virtserialport",
    "isa-serial",
    "isa-debugcon",
    "isa-debug-exit",
    "rng-builtin",
];

/// Asks QEMU, once for each boot of the host and each version.
pub(super) async fn inspect(
    program: &Path,
    cache: &Cache,
    spawner: &dyn Spawner,
) -> Result<(Installed, Key)> {
    let key = Key::of(program).map_err(|error| match std::fs::metadata(program) {
        Err(gone) if gone.kind() == io::ErrorKind::NotFound => {
            Reason::Missing { program: program.to_owned(), package: PACKAGE }.into()
        }
        _ => error,
    })?;
    if let Some(installed) = cache.get(CACHED_AS, &key) {
        return Ok((installed, key));
    }
    let installed = match ask(program, spawner, true).await {
        // Built without it, or on a kernel without it: then it must answer without it.
        Err(error) if matches!(error.kind(), ErrorKind::Exited | ErrorKind::Protocol) => {
            ask(program, spawner, false).await?
        }
        answer => answer?,
    };
    if installed.version < OLDEST {
        let (found, oldest) = (installed.version.to_string(), OLDEST.to_string());
        return Err(Reason::TooOld { program: program.to_owned(), found, oldest }.into());
    }
    cache.put(CACHED_AS, &key, &installed);
    Ok((installed, key))
}

/// Starts QEMU without a machine and asks over its standard input and output.
async fn ask(program: &Path, spawner: &dyn Spawner, sandbox: bool) -> Result<Installed> {
    let mut arguments = Arguments::default();
    arguments.flag("-no-user-config");
    arguments.flag("-nodefaults");
    arguments.option("-display", "none");
    arguments.option("-machine", "none");
    if sandbox {
        arguments.option("-sandbox", SANDBOX);
    }
    arguments.option("-chardev", "stdio,id=qmp,signal=off");
    arguments.option("-mon", "chardev=qmp,mode=control");
    let error = |source| Error::host("make", "a pair of sockets".as_ref(), source);
    let (near, far) = std::os::unix::net::UnixStream::pair().map_err(error)?;
    near.set_nonblocking(true).map_err(error)?;
    let near = UnixStream::from_std(near).map_err(error)?;
    let mut qemu = Program::new(program, arguments.into_vec());
    qemu.stdin = Some(far.try_clone().map_err(error)?.into());
    qemu.stdout = Some(far.into());
    let process = Process::start(spawner, qemu, Witness::default()).await?;
    let answers = process.during(program, "its probe", START, questions(near, sandbox)).await;
    process.kill().await;
    answers
}

async fn questions(stream: UnixStream, sandbox: bool) -> Result<Installed> {
    let qmp = Qmp::connect(stream, watch::channel(None).0).await?;
    let version = qmp.command("query-version", json!({}), PROMPT).await?;
    let machines = qmp.command("query-machines", json!({}), PROMPT).await?;
    let types = qmp.command("qom-list-types", json!({}), PROMPT).await?;
    let kvm = qmp.command("query-kvm", json!({}), PROMPT).await?;
    let unexpected = |problem| Reason::Protocol { program: "QEMU's monitor", problem, source: None };
    Ok(Installed {
        version: serde_json::from_value(version["qemu"].clone())
            .map_err(|_| unexpected("its version is no version"))?,
        machines: parse_machines(&machines).ok_or_else(|| unexpected("its list of machines is none"))?,
        types: parse_types(&types).ok_or_else(|| unexpected("its list of types is none"))?,
        kvm: kvm["present"].as_bool().ok_or_else(|| unexpected("it does not know whether it has KVM"))?,
        sandbox,
    })
}

/// Reads names, aliases and the most processors out of `query-machines`.
fn parse_machines(answer: &Value) -> Option<BTreeMap<String, u32>> {
    let mut machines = BTreeMap::new();
    for machine in answer.as_array()? {
        let cpus = u32::try_from(machine["cpu-max"].as_u64()?).ok()?;
        machines.insert(machine["name"].as_str()?.to_owned(), cpus);
        if let Some(alias) = machine["alias"].as_str() {
            machines.insert(alias.to_owned(), cpus);
        }
    }
    // Only these are ever asked for.
    machines.retain(|name, _| name == "microvm" || name == "q35");
    Some(machines)
}

fn parse_types(answer: &Value) -> Option<BTreeSet<String>> {
    let names = answer.as_array()?.iter().filter_map(|object| object["name"].as_str());
    Some(names.filter(|name| TYPES.contains(name)).map(str::to_owned).collect())
}
