//! `vmwright vm create`

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;
use vmwright_runtime::{BackendChoice, CreateRequest, DiskMode, Restart, VmName};
use vmwright_vmm::Accelerator;

use super::{answer, parse_duration, runtime};
use crate::output::{line, parse_size, size};

/// What `vm create` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The disk image to boot from
    #[arg(long, value_name = "IMAGE")]
    disk: PathBuf,
    /// The machine's name; one is made up otherwise
    #[arg(long)]
    name: Option<VmName>,
    /// Let the machine write to the image itself, instead of an overlay of its own
    #[arg(long)]
    shared_disk: bool,
    #[command(flatten)]
    hardware: Hardware,
    /// End the machine after this time, such as 10m
    #[arg(long, value_parser = parse_duration)]
    ttl: Option<Duration>,
    /// Start the machine again when its monitor dies, at most so often
    #[arg(long, value_name = "TIMES")]
    restart_on_failure: Option<u32>,
    /// Say what would be made, and make nothing
    #[arg(long)]
    dry_run: bool,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// What a machine is made of, besides its disk.
#[derive(clap::Args)]
pub(crate) struct Hardware {
    /// The monitor that runs the machine: auto, qemu, qemu/microvm, qemu/q35
    #[arg(long, default_value = "auto")]
    backend: BackendChoice,
    /// What executes the guest's instructions
    #[arg(long, value_enum, default_value = "auto")]
    accel: AcceleratorName,
    /// A kernel other than the disk's own: a vmlinuz or ELF file, or a kernel package
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Words to append to the kernel's command line
    #[arg(long, value_name = "WORDS", default_value = "")]
    cmdline_append: String,
    /// Memory, such as 512M
    #[arg(long, value_parser = parse_size, default_value = "256M")]
    memory: u64,
    /// Processors
    #[arg(long, default_value_t = 1)]
    cpus: u32,
}

/// The engines by the names the field uses.
#[derive(Clone, Copy, ValueEnum)]
enum AcceleratorName {
    Auto,
    Kvm,
    Tcg,
}

impl Hardware {
    /// Puts these choices into a request.
    pub(crate) fn apply(&self, request: &mut CreateRequest) {
        request.backend = self.backend.clone();
        request.accelerator = match self.accel {
            AcceleratorName::Auto => Accelerator::Auto,
            AcceleratorName::Kvm => Accelerator::Kvm,
            AcceleratorName::Tcg => Accelerator::Tcg,
        };
        request.kernel = self.kernel.clone();
        request.cmdline_append = self.cmdline_append.clone();
        request.memory = self.memory;
        request.cpus = self.cpus;
    }
}

/// Makes the machine.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut request = CreateRequest::new(&args.disk);
    request.name = args.name.clone();
    request.disk_mode = if args.shared_disk { DiskMode::Shared } else { DiskMode::Isolated };
    request.ttl = args.ttl;
    request.restart = args.restart_on_failure.map_or(Restart::Never, Restart::OnFailure);
    args.hardware.apply(&mut request);
    if args.dry_run {
        let disk = if args.shared_disk { "writing to" } else { "with an overlay on" };
        let name = args.name.as_ref().map_or("a machine", VmName::as_str);
        line(format!("would create {name} {disk} {}, {}", args.disk.display(), size(request.memory)))?;
        return Ok(ExitCode::SUCCESS);
    }
    let created = runtime()?.create(&request);
    let vm = created.with_context(|| format!("cannot create a machine on {}", args.disk.display()))?;
    answer(&vm, args.json)
}
