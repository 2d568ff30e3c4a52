//! What is measured of machines.

use std::fs;
use std::io::{Read, Write};
use std::num::NonZeroU64;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use vmwright_agent_proto::{Event, Exec, Message, PORT_NAME, Request, Session};

use super::timing::{ms, pair, repeat, time};
use super::{Bench, Row};
use crate::workspace::run as run_command;

/// A command that does nothing, as its source: there is none in a Debian that is linked statically.
const NO_OP: &str = "int main(void) { return 0; }\n";

/// `vmwright run` against QEMU by hand, to the end of the same first command.
pub(super) fn run_against_qemu(bench: &Bench) -> Result<Vec<Row>> {
    let disk = bench.disk.to_str().context("the path is not UTF-8")?;
    let run = || time(&mut bench.vmwright(["run", disk, "--", "/bin/true"]));
    run()?;
    let by_hand = ByHand::prepare(bench)?;
    let pair = pair(7, run, || by_hand.run())?;
    Ok(vec![Row {
        job: "`vmwright run` a Debian to the end of its first command; peer: QEMU by hand, same kernel and initramfs",
        ours: ms(pair.ours),
        peer: ms(pair.peer),
        ratio: Some(pair.ratio),
        target: "≤ 1.15",
        met: pair.ratio <= 1.15,
    }])
}

/// QEMU as somebody would start it by hand, with the kernel and initramfs that a run made and left in its cache.
struct ByHand {
    disk: PathBuf,
    kernel: PathBuf,
    initramfs: PathBuf,
    agent: PathBuf,
    cmdline: String,
}

impl ByHand {
    fn prepare(bench: &Bench) -> Result<Self> {
        let cache = bench.home().join("cache/boot");
        let cached = |prefix: &str| -> Result<PathBuf> {
            let mut entries = fs::read_dir(&cache)?.filter_map(|entry| Some(entry.ok()?.path()));
            let found = entries
                .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)));
            found.with_context(|| format!("no {prefix} in {}", cache.display()))
        };
        let copy = |prefix: &str| -> Result<PathBuf> {
            let copy = bench.work.join(prefix);
            fs::copy(cached(prefix)?, &copy)?;
            Ok(copy)
        };
        Ok(Self {
            disk: bench.disk.clone(),
            kernel: copy("kernel")?,
            initramfs: copy("initramfs")?,
            agent: bench.work.join("agent.sock"),
            cmdline: format!(
                "quiet cryptomgr.notests console=ttyS0 reboot=t panic=-1 tsc_early_khz={}",
                tsc_khz()?
            ),
        })
    }

    /// Boots, runs the command through the agent, and kills the machine.
    fn run(&self) -> Result<Duration> {
        let _ = fs::remove_file(&self.agent);
        let start = Instant::now();
        let mut qemu = self.spawn()?;
        let ran = self.connect().and_then(run_true);
        qemu.kill()?;
        qemu.wait()?;
        ran?;
        Ok(start.elapsed())
    }

    fn spawn(&self) -> Result<Child> {
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-M", "microvm", "-accel", "tcg", "-cpu", "max", "-m", "256M", "-smp", "1"]);
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "null"]);
        qemu.arg("-kernel")
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(&self.initramfs)
            .args(["-append", &self.cmdline]);
        let drive = format!("file={},if=none,id=root,format=qcow2,snapshot=on", self.disk.display());
        qemu.args(["-drive", &drive, "-device", "virtio-blk-device,drive=root,serial=root"]);
        let chardev = format!("socket,id=agent,path={},server=on,wait=off", self.agent.display());
        qemu.args(["-chardev", &chardev, "-device", "virtio-serial-device"]);
        qemu.args(["-device", &format!("virtserialport,chardev=agent,name={PORT_NAME}")]);
        qemu.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        qemu.spawn().context("cannot start qemu-system-x86_64")
    }

    fn connect(&self) -> Result<UnixStream> {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            match UnixStream::connect(&self.agent) {
                Ok(channel) => {
                    channel.set_read_timeout(Some(Duration::from_secs(60)))?;
                    return Ok(channel);
                }
                Err(error) if Instant::now() > deadline => return Err(error).context("QEMU did not come up"),
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }
}

/// Speaks to the agent until a command has ended.
fn run_true(mut channel: UnixStream) -> Result<()> {
    let mut session = Session::host(NonZeroU64::MIN.saturating_add(u64::from(std::process::id())));
    let request = Request::Exec(Exec { argv: vec![b"/bin/true".to_vec().into()], ..Exec::default() });
    let mut buffer = vec![0; 64 << 10];
    let mut request = Some(request);
    loop {
        let pending = session.output().len();
        if pending > 0 {
            channel.write_all(session.output())?;
            session.wrote(pending);
        }
        let count = channel.read(&mut buffer)?;
        ensure!(count > 0, "the guest ended");
        session.feed(&buffer[..count]);
        while let Some(event) = session.next_event()? {
            match event {
                Event::Established(_) => {
                    session.open(request.take().context("established twice")?)?;
                }
                Event::Message(_, Message::Exited(_)) => return Ok(()),
                Event::Message(_, Message::Failed(failure)) => bail!("{failure:?}"),
                _ => {}
            }
        }
    }
}

/// The frequency of the processor's counter, which a microVM under emulation has to be told.
fn tsc_khz() -> Result<u64> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let mhz = cpuinfo.lines().find_map(|line| line.strip_prefix("cpu MHz")?.split_once(": "));
    let (_, mhz) = mhz.context("/proc/cpuinfo states no frequency")?;
    Ok((mhz.trim().parse::<f64>()? * 1000.0) as u64)
}

/// A command in a running machine, and what the machine's guardian takes.
pub(super) fn exec_and_shim(bench: &Bench) -> Result<Vec<Row>> {
    let disk = bench.disk.to_str().context("the path is not UTF-8")?;
    run_command(&mut bench.vmwright(["vm", "create", "--disk", disk, "--name", "bench"]))?;
    let measured =
        run_command(&mut bench.vmwright(["vm", "start", "bench"])).and_then(|()| in_machine(bench));
    run_command(&mut bench.vmwright(["vm", "delete", "--force", "bench"]))?;
    measured
}

fn in_machine(bench: &Bench) -> Result<Vec<Row>> {
    let no_op = build_no_op(&bench.work)?;
    let no_op = no_op.to_str().context("the path is not UTF-8")?;
    run_command(&mut bench.vmwright(["vm", "cp", no_op, "bench:/usr/local/bin/no-op"]))?;
    // The system still starts its services after the agent answers: let it finish.
    let wait = "until [ -e /run/systemd/private ]; do sleep 0.1; done; systemctl is-system-running --wait";
    bench.vmwright(["vm", "exec", "bench", "--", "sh", "-c", wait]).stdout(Stdio::null()).status()?;
    let exec = |program| repeat(51, || time(&mut bench.vmwright(["vm", "exec", "bench", "--", program])));
    let no_op = exec("/usr/local/bin/no-op")?;
    let dynamic = exec("/bin/true")?;
    let inside = spawn_loop(bench)?;
    let overhead = dynamic.saturating_sub(inside);
    let resident = shim_memory(bench)?;
    let row = |job, ours, target, met| Row { job, ours, peer: String::new(), ratio: None, target, met };
    Ok(vec![
        row(
            "exec a static no-op in a running machine, whole process",
            ms(no_op),
            "≤ 5 ms",
            no_op.as_micros() <= 5000,
        ),
        row(
            "exec `/bin/true`, over a spawn loop inside the guest",
            format!("{} (of {})", ms(overhead), ms(dynamic)),
            "≤ 2 ms",
            overhead.as_micros() <= 2000,
        ),
        row(
            "resident memory of a machine's shim",
            format!("{:.1} MiB", resident as f64 / f64::from(1 << 20)),
            "< 8 MB",
            resident < 8_000_000,
        ),
    ])
}

fn build_no_op(work: &Path) -> Result<PathBuf> {
    let (source, program) = (work.join("no-op.c"), work.join("no-op"));
    fs::write(&source, NO_OP)?;
    run_command(Command::new("cc").args(["-static", "-O2", "-o"]).arg(&program).arg(&source))?;
    Ok(program)
}

/// How long a spawn of `/bin/true` takes within the guest.
fn spawn_loop(bench: &Bench) -> Result<Duration> {
    const SPAWNS: u32 = 200;
    let script = format!(
        "import os,time\nt=time.monotonic_ns()\nfor _ in range({SPAWNS}):\n p=os.posix_spawn('/bin/true',['true'],{{}})\n os.waitpid(p,0)\nprint(time.monotonic_ns()-t)"
    );
    let output = bench.vmwright(["vm", "exec", "bench", "--", "python3", "-c", &script]).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let nanoseconds: u64 = String::from_utf8_lossy(&output.stdout).trim().parse()?;
    Ok(Duration::from_nanos(nanoseconds) / SPAWNS)
}

/// The resident memory of the machine's shim, in bytes: the process whose child the monitor is.
fn shim_memory(bench: &Bench) -> Result<u64> {
    let output = bench.vmwright(["vm", "inspect", "bench", "--json"]).output()?;
    let machine: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let monitor = machine["pid"].as_u64().context("the machine has no process")?;
    let field = |pid: u64, name: &str| -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let number = value.and_then(|value| value.split_whitespace().next()).context("no such field")?;
        Ok(number.parse()?)
    };
    Ok(field(field(monitor, "PPid")?, "VmRSS")? * 1024)
}
