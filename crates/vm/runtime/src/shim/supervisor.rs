//! One VM from its monitor's spawn to the last trace of it.

use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use vmwright_agent_proto::Goodbye;
use vmwright_vmm::{Admitted, Backend, Exit, Instance, Resources, Start};

use super::agent::SessionEnd;
use super::log::{MAX_LOG, RotatingLog};
use super::state::{ExitCause, ExitRecord, LeaseEnd, RECORD_VERSION, now, unasked};
use super::{Shared, transfer};
use crate::config::Restart;
use crate::fault;
use crate::protocol::{Ready, StartFailure};
use crate::sys::BoundSpawner;

/// How long a guest that has said goodbye may take to end.
const AFTER_GOODBYE: Duration = Duration::from_secs(60);
/// How long to wait before an agent that broke the protocol is spoken to again.
const AFTER_BREACH: Duration = Duration::from_secs(1);
/// What is read from the console at a time.
const CONSOLE_READ: usize = 8 * 1024;
/// A VM that is stopped because its time is over, or its user gone, gets so long.
const GRACE: Duration = Duration::from_secs(10);

/// Somebody wants the VM to end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Order {
    /// Who or what.
    pub(super) cause: ExitCause,
    /// How long the guest may take; at zero it is killed.
    pub(super) grace: Duration,
}

/// The connection to the command that started the VM: what it is told, and whether it is still there.
pub(super) struct Control {
    lines: BufReader<OwnedReadHalf>,
}

impl Control {
    pub(super) fn new(half: OwnedReadHalf) -> Self {
        Self { lines: BufReader::with_capacity(64, half) }
    }

    /// Waits until the command has gone.
    async fn closed(&mut self) {
        let mut line = Vec::new();
        while matches!(self.lines.read_until(b'\n', &mut line).await, Ok(1..)) {
            line.clear();
        }
    }
}

/// The end of a run that has one, and the failure to report where it never came up.
pub(super) struct Ended {
    pub(super) exit: ExitRecord,
    pub(super) failure: Option<StartFailure>,
}

/// Runs the VM until it has ended and is not started again.
pub(super) async fn run(
    shared: &Rc<Shared>,
    backend: &dyn Backend,
    admitted: &Admitted,
    orders: &mut mpsc::Receiver<Order>,
    control: &mut Control,
) -> Ended {
    let deadline = shared.launch.ttl_ms.map(|ttl| Instant::now() + Duration::from_millis(ttl));
    let mut life = Life { shared, orders, control, deadline, up: false };
    let mut restarts = 0;
    loop {
        let ended = life.once(backend, admitted).await;
        let again = match shared.launch.restart {
            Restart::OnFailure(max) => ended.exit.cause == ExitCause::Died && life.up && restarts < max,
            Restart::Never => false,
        };
        if !again {
            return ended;
        }
        restarts += 1;
        shared.log.line(&format!("the VM died, restart {restarts}"));
        shared.hub.reset();
        shared.note(|state| (state.vmm, state.agent, state.restarts) = (None, None, restarts));
    }
}

struct Life<'a> {
    shared: &'a Rc<Shared>,
    orders: &'a mut mpsc::Receiver<Order>,
    control: &'a mut Control,
    deadline: Option<Instant>,
    /// Whether it ever came up.
    up: bool,
}

/// Aborts a task when it goes out of scope.
struct Aborting(AbortHandle);

impl Drop for Aborting {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Life<'_> {
    /// One run of the monitor.
    async fn once(&mut self, backend: &dyn Backend, admitted: &Admitted) -> Ended {
        let resources = Resources::new(&BoundSpawner);
        let launch = backend.launch(admitted, self.shared.dir.sockets(), Start::Boot, resources);
        let abandons = !self.up || self.shared.launch.lease.is_some();
        // Dropping the launch leaves no process behind.
        let launched = tokio::select! {
            launched = launch => launched,
            () = self.control.closed(), if abandons => return self.abandoned(None),
            Some(order) = self.orders.recv() => return self.ended(order.cause, None, None),
        };
        let instance: Rc<dyn Instance> = match launched {
            Ok(instance) => instance.into(),
            Err(error) => return self.never_up(None, false, chain(&error)),
        };
        fault::point("shim.launched");
        *self.shared.vmm.borrow_mut() = Some(instance.identity().clone());
        self.shared.note(|state| state.vmm = Some(instance.identity().clone()));
        fault::point("shim.recorded");
        let console = admitted.spec().console.then(|| instance.console()).and_then(Result::ok);
        let console = console.map(|console| spawn_local(drain(console, self.shared.clone())));
        let agent = Aborting(spawn_local(converse(instance.clone(), self.shared.clone())).abort_handle());
        let ended = self.live(&*instance).await;
        drop(agent);
        if let Some(console) = console {
            // What the guest printed last explains its end; the console ends with the monitor.
            let _ = timeout(Duration::from_secs(2), console).await;
        }
        *self.shared.vmm.borrow_mut() = None;
        ended
    }

    /// From the monitor's spawn to its end.
    async fn live(&mut self, instance: &dyn Instance) -> Ended {
        if !self.up
            && let Some(ended) = self.come_up(instance).await
        {
            return ended;
        }
        let mut status = self.shared.hub.status();
        let leaving = status.wait_for(|status| leaves(status.goodbye));
        let leased = self.shared.launch.lease;
        tokio::select! {
            exit = instance.wait() => {
                let goodbye = self.shared.hub.status().borrow().goodbye.is_some();
                self.ended(unasked(&exit, goodbye), Some(exit), None)
            }
            Some(order) = self.orders.recv() => self.stop(instance, order).await,
            () = at(self.deadline) => self.stop(instance, Order { cause: ExitCause::Ttl, grace: GRACE }).await,
            () = self.control.closed(), if leased.is_some() => {
                let grace = if leased == Some(LeaseEnd::Delete) { Duration::ZERO } else { GRACE };
                self.stop(instance, Order { cause: ExitCause::Lease, grace }).await
            }
            _ = leaving => {
                // The guest has begun to end by itself; it is helped where it does not get there.
                let exit = match timeout(AFTER_GOODBYE, instance.wait()).await {
                    Ok(exit) => exit,
                    Err(_) => instance.kill().await,
                };
                self.ended(ExitCause::Guest, Some(exit), None)
            }
        }
    }

    /// Waits for the agent; answers with the end where it came first.
    async fn come_up(&mut self, instance: &dyn Instance) -> Option<Ended> {
        let patience = Duration::from_millis(self.shared.launch.agent_timeout_ms);
        let mut status = self.shared.hub.status();
        let agent = tokio::select! {
            status = status.wait_for(|status| status.hello.is_some()) => {
                status.ok().and_then(|status| status.hello.clone())
            }
            exit = instance.wait() => {
                let message = format!("its monitor ended before its agent answered: {}", say(&exit));
                return Some(self.never_up(Some(exit), true, message));
            }
            () = sleep(patience) => {
                let exit = instance.kill().await;
                let message = format!("no answer from its agent within {} s", patience.as_secs_f32());
                return Some(self.never_up(Some(exit), true, message));
            }
            Some(order) = self.orders.recv() => return Some(self.stop(instance, order).await),
            () = self.control.closed() => {
                let exit = instance.kill().await;
                return Some(self.abandoned(Some(exit)));
            }
        };
        self.shared.note(|state| state.agent = agent);
        fault::point("shim.answered");
        self.up = true;
        let ready = Ready { shim: self.shared.identity.clone(), vmm: instance.identity().clone() };
        self.shared.report_ready(ready).await;
        None
    }

    /// Ends the guest as gently as there is time for.
    async fn stop(&mut self, instance: &dyn Instance, mut order: Order) -> Ended {
        self.shared.log.line(&format!("stopping ({:?}, {:?})", order.cause, order.grace));
        fault::point("shim.stopping");
        let exit = {
            let gently = gentle_end(self.shared, instance, order.grace);
            tokio::pin!(gently);
            loop {
                tokio::select! {
                    exit = &mut gently => break exit,
                    // Whoever has less patience gets their way.
                    Some(next) = self.orders.recv() => if next.grace.is_zero() {
                        order.cause = next.cause;
                        break instance.kill().await;
                    },
                }
            }
        };
        self.ended(order.cause, Some(exit), None)
    }

    fn ended(&self, cause: ExitCause, vmm: Option<Exit>, detail: Option<String>) -> Ended {
        let goodbye = self.shared.hub.status().borrow().goodbye.is_some();
        let run = self.shared.launch.run.clone();
        let exit = ExitRecord { version: RECORD_VERSION, run, cause, vmm, goodbye, detail, at: now() };
        let failure = (!self.up)
            .then(|| StartFailure { silent: false, message: "it was stopped while it started".to_owned() });
        Ended { exit, failure }
    }

    /// The end of a run that never was one; of a restarted VM it is one more death.
    fn never_up(&self, vmm: Option<Exit>, silent: bool, message: String) -> Ended {
        let cause = if self.up { ExitCause::Died } else { ExitCause::StartFailed };
        let failure = (!self.up).then(|| StartFailure { silent, message: message.clone() });
        Ended { failure, ..self.ended(cause, vmm, Some(message)) }
    }

    /// The starting command has gone before it knew that the VM runs: nobody knows of it.
    fn abandoned(&self, vmm: Option<Exit>) -> Ended {
        self.ended(ExitCause::Lease, vmm, None)
    }
}

fn leaves(goodbye: Option<Goodbye>) -> bool {
    matches!(goodbye, Some(Goodbye::PowerOff | Goodbye::Reboot))
}

/// Asks the agent, then presses the power button, then kills.
async fn gentle_end(shared: &Shared, instance: &dyn Instance, grace: Duration) -> Exit {
    if grace.is_zero() {
        return instance.kill().await;
    }
    let deadline = Instant::now() + grace;
    // The last third is for guests whose agent says yes and whose init does not act.
    let asked = async {
        match transfer::power_off(shared).await {
            true => instance.wait().await,
            false => std::future::pending().await,
        }
    };
    let has_agent = shared.hub.status().borrow().hello.is_some();
    if has_agent && let Ok(exit) = timeout(grace.mul_f32(0.66), asked).await {
        return exit;
    }
    instance.shutdown(deadline.saturating_duration_since(Instant::now())).await
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Keeps up a session with the agent for as long as the monitor runs.
async fn converse(instance: Rc<dyn Instance>, shared: Rc<Shared>) {
    loop {
        let channel = match instance.agent().await {
            Ok(channel) => channel,
            Err(error) => {
                shared.log.line(&format!("no channel to the agent: {}", chain(&error)));
                sleep(AFTER_BREACH).await;
                continue;
            }
        };
        loop {
            let end = shared.hub.carry(&channel, super::epoch()).await;
            match end {
                SessionEnd::Replaced => continue,
                SessionEnd::Closed => {}
                SessionEnd::Broken(error) => {
                    shared.log.line(&format!("the agent breaks the protocol: {error}"))
                }
                SessionEnd::Host(error) => shared.log.line(&format!("the agent's channel failed: {error}")),
            }
            break;
        }
        drop(channel);
        sleep(AFTER_BREACH).await;
    }
}

/// Keeps what the guest prints. A guest whose console nobody reads would stand still.
async fn drain(mut console: UnixStream, shared: Rc<Shared>) {
    let mut log = match RotatingLog::open(&shared.dir.console_log(), MAX_LOG) {
        Ok(log) => Some(log),
        Err(error) => {
            shared.log.line(&format!("cannot keep the console: {error}"));
            None
        }
    };
    let mut buffer = vec![0; CONSOLE_READ];
    while let Ok(len @ 1..) = console.read(&mut buffer).await {
        if let Some(file) = &mut log
            && let Err(error) = file.write(&buffer[..len])
        {
            shared.log.line(&format!("cannot keep the console any more: {error}"));
            log = None;
        }
    }
}

/// How a monitor ended, in words.
fn say(exit: &Exit) -> String {
    let mut text = exit.reason.to_string();
    match (exit.code, exit.signal) {
        (_, Some(signal)) => text.push_str(&format!(", signal {signal}")),
        (Some(code), _) if code != 0 => text.push_str(&format!(", exit code {code}")),
        _ => {}
    }
    match exit.stderr.trim() {
        "" => {}
        words => text.push_str(&format!(", saying: {words}")),
    }
    text
}

/// An error with its causes, on one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    text
}
