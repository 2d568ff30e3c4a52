//! A client of QEMU's machine protocol: one JSON object a line, answers matched by id, events in between.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use crate::backend::ExitReason;
use crate::error::{Error, Reason, Result};

/// The longest line that is read; the longest known answer, all types of objects, has about 100 KiB.
const LINE_MAX: usize = 1 << 20;

/// How many commands may wait for being sent.
const QUEUE: usize = 16;

/// How long a command may take that only looks or sets.
pub(super) const PROMPT: Duration = Duration::from_secs(10);

/// One line from QEMU.
#[derive(Debug, PartialEq, Deserialize)]
struct Message {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    id: Option<u64>,
    #[serde(rename = "return")]
    answer: Option<Value>,
    error: Option<Refused>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
}

#[derive(Debug, PartialEq, Deserialize)]
struct Refused {
    class: String,
    desc: String,
}

type Answer = Result<Value, Refused>;

/// The commands that wait for their answers; `None` once the connection is over.
type Pending = Arc<Mutex<Option<HashMap<u64, oneshot::Sender<Answer>>>>>;

/// A connection whose capabilities were negotiated.
pub(super) struct Qmp {
    commands: mpsc::Sender<Vec<u8>>,
    pending: Pending,
    next: AtomicU64,
}

impl Qmp {
    /// Waits for the greeting and leaves negotiation mode; what ends the machine is told to `reason`.
    pub(super) async fn connect(
        stream: UnixStream,
        reason: watch::Sender<Option<ExitReason>>,
    ) -> Result<Self> {
        let (from, to) = stream.into_split();
        let mut from = BufReader::new(from);
        let greeting = read_message(&mut from).await?;
        if greeting.is_none_or(|message| message.greeting.is_none()) {
            return Err(protocol("the connection does not begin with a greeting"));
        }
        let pending = Pending::new(Mutex::new(Some(HashMap::new())));
        let (commands, queue) = mpsc::channel(QUEUE);
        tokio::spawn(write(queue, to));
        tokio::spawn(read(from, pending.clone(), reason));
        let qmp = Self { commands, pending, next: AtomicU64::new(1) };
        qmp.command("qmp_capabilities", json!({}), PROMPT).await?;
        Ok(qmp)
    }

    /// Gives a command and waits for its answer.
    pub(super) async fn command(&self, name: &str, arguments: Value, limit: Duration) -> Result<Value> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let answer = self.expect(id)?;
        let answered = timeout(limit, self.exchange(id, name, arguments, answer)).await;
        answered.unwrap_or_else(|_| {
            if let Some(waiting) = lock(&self.pending).as_mut() {
                waiting.remove(&id);
            }
            Err(Reason::Timeout { what: "an answer of QEMU's monitor", after: limit }.into())
        })
    }

    fn expect(&self, id: u64) -> Result<oneshot::Receiver<Answer>> {
        let (sender, receiver) = oneshot::channel();
        let mut pending = lock(&self.pending);
        pending.as_mut().ok_or_else(closed)?.insert(id, sender);
        Ok(receiver)
    }

    async fn exchange(
        &self,
        id: u64,
        name: &str,
        arguments: Value,
        answer: oneshot::Receiver<Answer>,
    ) -> Result<Value> {
        let mut line = json!({ "execute": name, "arguments": arguments, "id": id }).to_string();
        line.push('\n');
        self.commands.send(line.into_bytes()).await.map_err(|_| closed())?;
        let refused =
            |Refused { class, desc }| Reason::Refused { command: name.to_owned(), class, description: desc };
        Ok(answer.await.map_err(|_| closed())?.map_err(refused)?)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn protocol(problem: &'static str) -> Error {
    Reason::Protocol { program: "QEMU's monitor", problem, source: None }.into()
}

fn closed() -> Error {
    protocol("the connection has ended")
}

/// Sends whole lines, so that a caller who gives up never leaves half of one.
async fn write(mut queue: mpsc::Receiver<Vec<u8>>, mut to: OwnedWriteHalf) {
    while let Some(line) = queue.recv().await {
        if to.write_all(&line).await.is_err() {
            return;
        }
    }
}

async fn read(
    mut from: BufReader<OwnedReadHalf>,
    pending: Pending,
    reason: watch::Sender<Option<ExitReason>>,
) {
    // Nothing can follow a line that was not understood: who waits learns that the connection is over.
    while let Ok(Some(message)) = read_message(&mut from).await {
        if let Some(why) = shutdown_reason(&message) {
            reason.send_replace(Some(why));
        }
        let answer = match (message.answer, message.error) {
            (Some(answer), _) => Ok(answer),
            (None, Some(refused)) => Err(refused),
            (None, None) => continue,
        };
        let waiting = message.id.and_then(|id| lock(&pending).as_mut()?.remove(&id));
        if let Some(waiting) = waiting {
            // Its caller may have given up.
            let _ = waiting.send(answer);
        }
    }
    lock(&pending).take();
}

/// Reads one line, or nothing at the end.
async fn read_message(from: &mut (impl AsyncBufRead + Unpin)) -> Result<Option<Message>> {
    let mut line = Vec::new();
    loop {
        let available = match from.fill_buf().await {
            Ok(available) => available,
            Err(source) => return Err(Error::host("read from", "QEMU's monitor".as_ref(), source)),
        };
        if available.is_empty() {
            return if line.is_empty() { Ok(None) } else { Err(protocol("the last line is cut off")) };
        }
        let end = available.iter().position(|byte| *byte == b'\n');
        let take = end.map_or(available.len(), |end| end + 1);
        if line.len() + take > LINE_MAX {
            return Err(protocol("a line is too long"));
        }
        line.extend_from_slice(&available[..take]);
        from.consume(take);
        if end.is_some() {
            let not_json = |source| Reason::Protocol {
                program: "QEMU's monitor",
                problem: "a line is not a message",
                source: Some(source),
            };
            return Ok(Some(serde_json::from_slice(&line).map_err(not_json)?));
        }
    }
}

/// What a `SHUTDOWN` event says (QAPI `ShutdownCause`).
fn shutdown_reason(message: &Message) -> Option<ExitReason> {
    match message.event.as_deref()? {
        "SHUTDOWN" => {}
        "GUEST_PANICKED" => return Some(ExitReason::GuestPanic),
        _ => return None,
    }
    Some(match message.data.get("reason").and_then(Value::as_str)? {
        "guest-shutdown" => ExitReason::GuestShutdown,
        "guest-reset" | "subsystem-reset" => ExitReason::GuestReset,
        "guest-panic" => ExitReason::GuestPanic,
        "host-qmp-quit" => ExitReason::Killed,
        _ => ExitReason::MonitorFailed,
    })
}

#[cfg(any(test, feature = "test-util"))]
pub mod replay;

#[cfg(test)]
mod tests;
