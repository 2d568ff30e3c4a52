//! QEMU: the profiles `qemu/microvm` and `qemu/q35`, executed by KVM where that works and translated where not.

mod arguments;
mod guest;
mod images;
mod install;
mod instance;
mod kvm;
mod qmp;
mod render;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use kvm::{KvmVerdict, Measured};
#[cfg(feature = "test-util")]
pub use qmp::replay;
pub use render::{Surroundings, render};

use crate::admit::Admitted;
use crate::backend::{Backend, BoxFuture, Instance, Resources, Start};
use crate::cache::{Cache, Key};
use crate::capabilities::{Capabilities, Engine, Limits, Profile};
use crate::error::Result;
use crate::spawner::Spawner;
use crate::spec::{CMDLINE_MAX, DiskFormat, Requirement};
use crate::tsc;
use install::Installed;

/// The program's name.
const PROGRAM: &str = "qemu-system-x86_64";

/// The Debian package that has it.
const PACKAGE: &str = "qemu-system-x86";

/// The most processors that every kernel and both engines can start without extended APIC numbers.
const CPUS_MAX: u32 = 254;

/// The least memory in which a kernel starts.
const MEMORY_MIN: u64 = 32 << 20;

/// The most memory that fits below the 40 address bits that every translated processor has, the PCI hole left out.
const MEMORY_MAX: u64 = 1000 << 30;

/// A microvm has 24 virtio-mmio devices; the random numbers and the agent's channel take two.
const MICROVM_DISKS: usize = 22;

/// The root bus of a q35 has 32 slots, of which the chipset, the random numbers and the agent's channel take some.
const Q35_DISKS: usize = 24;

/// The QEMU that is installed on this host.
#[derive(Debug, Clone)]
pub struct Qemu {
    program: PathBuf,
    cache: Cache,
}

impl Qemu {
    /// Takes the program from `PATH`; what it says of itself is kept in `cache`, a directory made when needed.
    ///
    /// That it is not installed is [`Backend::probe`]'s answer.
    pub fn find(cache: impl Into<PathBuf>) -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&path).map(|dir| dir.join(PROGRAM)).find(|file| file.is_file());
        Self::new(found.unwrap_or_else(|| PROGRAM.into()), cache)
    }

    /// Takes a program by its path.
    pub fn new(program: impl Into<PathBuf>, cache: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), cache: Cache::new(cache.into()) }
    }

    /// The program that will be run.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Says whether KVM can be used; a guest is run for it at most once for each boot of the host.
    pub async fn kvm(&self, spawner: &dyn Spawner) -> Result<KvmVerdict> {
        let (installed, key) = install::inspect(&self.program, &self.cache, spawner).await?;
        self.kvm_of(&installed, &key, spawner).await
    }

    async fn kvm_of(&self, installed: &Installed, key: &Key, spawner: &dyn Spawner) -> Result<KvmVerdict> {
        let machine = if installed.machines.contains_key("microvm") { "microvm" } else { "q35" };
        let needed = ["isa-debugcon", "isa-debug-exit"];
        let no = |reason: &str| KvmVerdict { usable: false, reason: reason.to_owned(), measured: None };
        if !installed.kvm {
            return Ok(no("QEMU was built without KVM"));
        }
        if !needed.into_iter().all(|name| installed.types.contains(name)) {
            return Ok(no("QEMU was built without the devices by which a small guest reports"));
        }
        kvm::measure(&self.program, machine, &self.cache, key, spawner).await
    }
}

impl Backend for Qemu {
    fn name(&self) -> &'static str {
        "qemu"
    }

    fn probe<'a>(&'a self, spawner: &'a dyn Spawner) -> BoxFuture<'a, Result<Vec<Capabilities>>> {
        Box::pin(async move {
            let (installed, key) = install::inspect(&self.program, &self.cache, spawner).await?;
            let kvm = self.kvm_of(&installed, &key, spawner).await?;
            let profiles = [Profile::QemuMicrovm, Profile::QemuQ35].into_iter();
            Ok(profiles.filter_map(|profile| capabilities(profile, &installed, &kvm)).collect())
        })
    }

    fn launch<'a>(
        &'a self,
        spec: &'a Admitted,
        dir: &'a Path,
        start: Start,
        resources: Resources<'a>,
    ) -> BoxFuture<'a, Result<Box<dyn Instance>>> {
        Box::pin(async move {
            let Start::Boot = start;
            let tsc_khz = match spec.engine() {
                Engine::Tcg => Key::of(&self.program).ok().and_then(|key| tsc::khz(&self.cache, &key)),
                _ => None,
            };
            let spawner = resources.spawner;
            let instance = instance::launch(&self.program, spec, dir, tsc_khz, spawner).await?;
            Ok(Box::new(instance) as Box<dyn Instance>)
        })
    }
}

/// What one kind of machine can do, or nothing where this QEMU has no such machine.
fn capabilities(profile: Profile, installed: &Installed, kvm: &KvmVerdict) -> Option<Capabilities> {
    let (machine, suffix, disks) = match profile {
        Profile::QemuMicrovm => ("microvm", "device", MICROVM_DISKS),
        Profile::QemuQ35 => ("q35", "pci", Q35_DISKS),
        Profile::Fake => return None,
    };
    let cpus = *installed.machines.get(machine)?;
    let has = |kind: &str| installed.types.contains(&format!("{kind}-{suffix}"));
    if !has("virtio-rng") || !installed.types.contains("rng-builtin") {
        return None;
    }
    let (engines, engines_missing) = match kvm.usable {
        true => (vec![Engine::Kvm, Engine::Tcg], BTreeMap::new()),
        false => (vec![Engine::Tcg], BTreeMap::from([(Engine::Kvm, kvm.reason.clone())])),
    };
    let mut offers = vec![Requirement::Pause];
    let mut lacks = BTreeMap::new();
    for (ability, reason) in [
        (Requirement::HardwareVirtualization, (!kvm.usable).then(|| kvm.reason.clone())),
        (
            Requirement::Sandbox,
            (!installed.sandbox).then(|| "this QEMU does not run with -sandbox".to_owned()),
        ),
    ] {
        match reason {
            Some(reason) => drop(lacks.insert(ability, reason)),
            None => offers.push(ability),
        }
    }
    let has_block = has("virtio-blk");
    Some(Capabilities {
        profile,
        version: installed.version.to_string(),
        engines,
        engines_missing,
        limits: Limits {
            cpus: cpus.min(CPUS_MAX),
            memory_min: MEMORY_MIN,
            memory_max: MEMORY_MAX,
            disks: if has_block { disks } else { 0 },
            cmdline: CMDLINE_MAX - render::CMDLINE_RESERVE,
        },
        disk_formats: [DiskFormat::Raw, DiskFormat::Qcow2].into(),
        agent: has("virtio-serial") && installed.types.contains("virtserialport"),
        console: installed.types.contains("isa-serial"),
        offers: offers.into_iter().collect(),
        lacks,
        exclusions: Vec::new(),
    })
}
