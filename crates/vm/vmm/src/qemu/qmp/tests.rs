use std::io::Cursor;

use proptest::prelude::*;
use tokio::io::AsyncReadExt;

use super::*;

const GREETING: &str = r#"{"QMP": {"version": {}, "capabilities": ["oob"]}}"#;

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let limit = Duration::from_secs(60);
    runtime.block_on(async { timeout(limit, future).await.expect("no test takes for ever") })
}

/// QEMU's end of a connection.
struct Server(BufReader<UnixStream>);

impl Server {
    async fn say(&mut self, line: &str) {
        self.0.get_mut().write_all(line.as_bytes()).await.unwrap();
        self.0.get_mut().write_all(b"\r\n").await.unwrap();
    }

    async fn hear(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).await.unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// Greets and lets the client leave negotiation mode.
    async fn begin(&mut self) {
        self.say(GREETING).await;
        let command = self.hear().await;
        assert_eq!(command["execute"], "qmp_capabilities");
        self.say(&format!(r#"{{"return": {{}}, "id": {}}}"#, command["id"])).await;
    }
}

type Reason = watch::Receiver<Option<ExitReason>>;

async fn connected() -> (Qmp, Server, Reason) {
    let (near, far) = UnixStream::pair().unwrap();
    let (sender, receiver) = watch::channel(None);
    let mut server = Server(BufReader::new(far));
    let client = tokio::spawn(Qmp::connect(near, sender));
    server.begin().await;
    (client.await.unwrap().unwrap(), server, receiver)
}

#[test]
fn answers_find_their_commands_whatever_their_order() {
    block_on(async {
        let (qmp, mut server, _) = connected().await;
        let qmp = Arc::new(qmp);
        let ask = |name: &'static str| {
            let qmp = qmp.clone();
            tokio::spawn(async move { qmp.command(name, json!({}), PROMPT).await.unwrap() })
        };
        let (one, two) = (ask("one"), ask("two"));
        let (first, second) = (server.hear().await, server.hear().await);
        server.say(r#"{"event": "RTC_CHANGE", "data": {"offset": 1}}"#).await;
        for command in [&second, &first] {
            server.say(&format!(r#"{{"return": {}, "id": {}}}"#, command["execute"], command["id"])).await;
        }
        assert_eq!((one.await.unwrap(), two.await.unwrap()), (json!("one"), json!("two")));
    });
}

#[test]
fn a_refused_command_says_what_qemu_said() {
    block_on(async {
        let (qmp, mut server, _) = connected().await;
        let answer = tokio::spawn(async move { qmp.command("eject", json!({}), PROMPT).await });
        let id = server.hear().await["id"].clone();
        let error = json!({ "class": "GenericError", "desc": "no such thing" });
        server.say(&json!({ "error": error, "id": id }).to_string()).await;
        let error = answer.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Refused);
        assert_eq!(error.to_string(), "eject: GenericError: no such thing");
    });
}

#[test]
fn a_command_without_an_answer_ends_with_its_time_and_the_next_one_works() {
    block_on(async {
        let (qmp, mut server, _) = connected().await;
        let error = qmp.command("sleep", json!({}), Duration::from_millis(20)).await.unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Timeout);
        let late = server.hear().await["id"].clone();
        server.say(&json!({ "return": "late", "id": late }).to_string()).await;
        let next = tokio::spawn(async move { qmp.command("next", json!({}), PROMPT).await.unwrap() });
        let id = server.hear().await["id"].clone();
        server.say(&json!({ "return": "next", "id": id }).to_string()).await;
        assert_eq!(next.await.unwrap(), "next");
    });
}

#[test]
fn whoever_waits_learns_that_the_connection_is_over() {
    block_on(async {
        for last_words in ["", "no json\n", "{\"return\": 1, \"id\": "] {
            let (qmp, mut server, _) = connected().await;
            let waiting = tokio::spawn(async move {
                let first = qmp.command("quit", json!({}), PROMPT).await;
                (first, qmp.command("again", json!({}), PROMPT).await)
            });
            server.hear().await;
            server.0.get_mut().write_all(last_words.as_bytes()).await.unwrap();
            drop(server);
            let (first, second) = waiting.await.unwrap();
            assert_eq!(first.unwrap_err().kind(), crate::ErrorKind::Protocol, "{last_words:?}");
            assert_eq!(second.unwrap_err().kind(), crate::ErrorKind::Protocol, "{last_words:?}");
        }
    });
}

#[test]
fn a_connection_that_does_not_begin_with_a_greeting_is_refused() {
    block_on(async {
        for first in ["", "{}\n", "{\"event\": \"RESET\"}\n", "hello\n", "{\"QMP\": \n"] {
            let (near, mut far) = UnixStream::pair().unwrap();
            far.write_all(first.as_bytes()).await.unwrap();
            drop(far);
            let error = Qmp::connect(near, watch::channel(None).0).await.err().unwrap();
            assert_eq!(error.kind(), crate::ErrorKind::Protocol, "{first:?}");
        }
    });
}

#[test]
fn the_reason_of_an_end_is_the_last_that_was_said() {
    let cases = [
        ("guest-shutdown", ExitReason::GuestShutdown),
        ("guest-reset", ExitReason::GuestReset),
        ("guest-panic", ExitReason::GuestPanic),
        ("host-qmp-quit", ExitReason::Killed),
        ("host-signal", ExitReason::MonitorFailed),
        ("host-error", ExitReason::MonitorFailed),
    ];
    block_on(async {
        for (said, meant) in cases {
            let (_qmp, mut server, mut reason) = connected().await;
            server.say(r#"{"event": "RESET", "data": {"guest": true, "reason": "guest-reset"}}"#).await;
            let event = json!({ "event": "SHUTDOWN", "data": { "guest": true, "reason": said } });
            server.say(&event.to_string()).await;
            drop(server);
            while reason.changed().await.is_ok() {}
            assert_eq!(*reason.borrow(), Some(meant), "{said}");
        }
    });
}

#[test]
fn a_line_without_an_end_is_given_up_before_it_fills_the_memory() {
    block_on(async {
        let endless = tokio::io::repeat(b' ');
        let mut from = BufReader::new(endless.take(1 << 40));
        let error = read_message(&mut from).await.unwrap_err();
        assert!(error.to_string().contains("too long"), "{error}");
        let left = from.get_ref().limit();
        assert!((1 << 40) - left <= 2 * LINE_MAX as u64, "it stopped reading at once");
    });
}

/// Gives its bytes in pieces of the length stated.
fn in_pieces(bytes: Vec<u8>, piece: usize) -> impl AsyncBufRead + Unpin {
    BufReader::with_capacity(piece, Cursor::new(bytes))
}

proptest! {
    #[test]
    fn messages_come_out_as_they_went_in_however_they_are_cut(
        ids in prop::collection::vec(any::<u64>(), 0..20),
        text in "\\PC{0,40}",
        piece in 1usize..64,
    ) {
        let mut bytes = Vec::new();
        for id in &ids {
            bytes.extend_from_slice(json!({ "return": text, "id": id }).to_string().as_bytes());
            bytes.extend_from_slice(b"\r\n");
        }
        let read = block_on(async {
            let (mut from, mut read) = (in_pieces(bytes, piece), Vec::new());
            while let Some(message) = read_message(&mut from).await.unwrap() {
                assert_eq!(message.answer, Some(json!(text)));
                read.push(message.id.unwrap());
            }
            read
        });
        prop_assert_eq!(read, ids);
    }

    #[test]
    fn any_bytes_are_read_as_another_reader_would(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        piece in 1usize..64,
    ) {
        replay::check(&bytes, piece);
    }

    #[test]
    fn nearly_right_lines_are_read_as_another_reader_would(
        lines in prop::collection::vec(prop::sample::select(LINES), 0..8),
        cut in 0usize..400,
        piece in 1usize..64,
    ) {
        let bytes = lines.concat();
        replay::check(&bytes.as_bytes()[..cut.min(bytes.len())], piece);
    }
}

/// Messages, and what comes close to them.
const LINES: &[&str] = &[
    "{\"return\": {}, \"id\": 1}\r\n",
    "{\"event\": \"SHUTDOWN\", \"data\": {\"reason\": 7}}\n",
    "{\"error\": {\"class\": \"C\", \"desc\": \"d\"}, \"id\": 18446744073709551615}\n",
    "{\"return\": {}, \"id\": -1}\n",
    "{\"id\": 1, \"id\": 2}\n",
    "{\"event\": null}\n",
    "[]\n",
    "\n",
    "{}{}\n",
    "{\"error\": []}\n",
];
