#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vmwright_disk::MemDisk;
use vmwright_nbd::{Encryption, ErrorKind, Export, Exports, MetaContext, SessionLimits, StatusRange};

use crate::client::{
    ACK, Client, ERR_INVALID, ERR_POLICY, ERR_SHUTDOWN, ERR_TLS_REQD, ERR_TOO_BIG, ERR_UNKNOWN, ERR_UNSUP,
    info_data, meta_data, sized,
};
use crate::support::{End, connect, serve};

fn disk(len: usize) -> Arc<MemDisk> {
    Arc::new(MemDisk::new(len))
}

fn two() -> Vec<Export> {
    let first = Export::new("first", disk(1 << 20)).described("the first one");
    vec![first, Export::new("zweite ä", disk(4096)).writable()]
}

#[test]
fn the_greeting_offers_fixed_newstyle_without_zeroes() {
    let (client, connection) = connect(two());
    assert_eq!(client.handshake_flags, 3);
    drop(client);
    assert!(matches!(connection.end(), End::HungUp));
}

#[test]
fn a_client_with_unknown_flags_is_dropped() {
    let (stream, connection) = serve(two(), Encryption::Off, SessionLimits::default(), None);
    let mut client = Client::connect_with(stream, 7);
    assert_eq!(connection.end().refusal().kind(), ErrorKind::Protocol);
    assert_eq!(client.stream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn the_old_option_chooses_with_and_without_zeroes_behind_its_answer() {
    for (flags, zeroes) in [(3, 0), (1, 124), (0, 124)] {
        let (stream, connection) = serve(two(), Encryption::Off, SessionLimits::default(), None);
        let mut client = Client::connect_with(stream, flags);
        client.send_option(1, "zweite ä".as_bytes());
        let mut reply = vec![1; 10 + zeroes];
        client.stream.read_exact(&mut reply).unwrap();
        assert_eq!(reply[..8], 4096_u64.to_be_bytes());
        assert!(reply[10..].iter().all(|byte| *byte == 0));
        assert_eq!(client.read_simple(0, 512).unwrap(), [0; 512]);
        client.send(2, 0, 0, 0, &[]);
        connection.end().report();
    }
}

#[test]
fn the_old_option_can_only_refuse_by_hanging_up() {
    for name in [&b"third"[..], b"\xff\xff"] {
        let (mut client, connection) = connect(two());
        client.send_option(1, name);
        assert_eq!(connection.end().refusal().kind(), ErrorKind::Refused);
        assert_eq!(client.stream.read(&mut [0]).unwrap(), 0);
    }
}

#[test]
fn everything_that_is_exported_is_listed_with_its_description() {
    let (mut client, _connection) = connect(two());
    let replies = client.option(3, &[]);
    let entry = |name: &str, description: &str| [sized(name), description.as_bytes().to_vec()].concat();
    let expected = [(2, entry("first", "the first one")), (2, entry("zweite ä", "")), (ACK, Vec::new())];
    assert_eq!(replies, expected);
    assert_eq!(client.last(3, b"data"), ERR_INVALID, "a list takes no data");
}

#[test]
fn information_is_given_as_asked() {
    let (mut client, _connection) = connect(two());
    let replies = client.option(6, &info_data("first", &[1, 2, 3, 77]));
    let info = |kind: u16| replies.iter().find(|(_, data)| data.starts_with(&kind.to_be_bytes())).unwrap();
    assert_eq!(info(0).1[2..10], (1_u64 << 20).to_be_bytes());
    assert_eq!(info(1).1[2..], *b"first");
    assert_eq!(info(2).1[2..], *b"the first one");
    let sizes = [1_u32, 65536, 32 << 20].map(u32::to_be_bytes).concat();
    assert_eq!(info(3).1[2..], sizes);
    assert_eq!(replies.len(), 5);
    // Only what must be said is said unasked.
    assert_eq!(client.option(6, &info_data("zweite ä", &[])).len(), 2);
}

#[test]
fn a_client_that_names_nothing_gets_the_first_and_learns_its_name() {
    let (mut client, _connection) = connect(two());
    let replies = client.option(6, &info_data("", &[1]));
    assert!(replies.iter().any(|(_, data)| data == b"\0\x01first"));
    let chosen = client.go("");
    assert_eq!(chosen.size, 1 << 20);
}

#[test]
fn an_export_that_is_not_there_is_unknown_and_the_client_may_try_again() {
    let (mut client, _connection) = connect(two());
    assert_eq!(client.last(7, &info_data("third", &[])), ERR_UNKNOWN);
    assert_eq!(client.last(6, &info_data("firs", &[])), ERR_UNKNOWN);
    client.go("first");
}

#[test]
fn the_flags_say_what_can_be_done() {
    let (mut client, _connection) = connect(two());
    // has flags, read-only, flush, FUA, multi-conn, cache
    assert_eq!(client.go("first").flags, 0x1 | 0x2 | 0x4 | 0x8 | 0x100 | 0x400);
    let (mut client, _connection) = connect(two());
    client.structured();
    // has flags, flush, FUA, trim, write zeroes, don't fragment, multi-conn, cache, fast zero
    let flags = 0x1 | 0x4 | 0x8 | 0x20 | 0x40 | 0x80 | 0x100 | 0x400 | 0x800;
    assert_eq!(client.go("zweite ä").flags, flags);
}

#[test]
fn options_that_are_malformed_are_invalid_and_do_no_harm() {
    let (mut client, _connection) = connect(two());
    client.structured();
    let mut cut = info_data("first", &[1, 2]);
    cut.pop();
    let mut long_name = info_data("first", &[]);
    long_name[..4].copy_from_slice(&u32::MAX.to_be_bytes());
    let no_utf8 = [&2_u32.to_be_bytes()[..], &[0xff, 0xfe], &[0, 0]].concat();
    let endless = info_data(&"x".repeat(4097), &[]);
    let nul = info_data("fi\0rst", &[]);
    for data in [&cut[..], &long_name, &no_utf8, &endless, &nul, &[], &[0, 0, 0]] {
        for option in [6, 7] {
            assert_eq!(client.last(option, data), ERR_INVALID, "option {option} with {data:x?}");
        }
    }
    let mut many = meta_data("first", &["base:allocation"]);
    many[9..13].copy_from_slice(&u32::MAX.to_be_bytes());
    let mut trailing = meta_data("first", &[]);
    trailing.push(0);
    for data in [&many[..], &trailing, &meta_data("first", &["nocolon"]), &[]] {
        for option in [9, 10] {
            assert_eq!(client.last(option, data), ERR_INVALID, "option {option} with {data:x?}");
        }
    }
    assert_eq!(client.last(8, b"data"), ERR_INVALID);
    client.go("first");
}

#[test]
fn an_option_nobody_knows_is_unsupported_whatever_its_data() {
    let (mut client, _connection) = connect(two());
    for option in [0, 4, 11, 12, 0xffff_ffff] {
        assert_eq!(client.last(option, &[]), ERR_UNSUP);
        assert_eq!(client.last(option, &[7; 100_000]), ERR_UNSUP);
    }
    client.go("first");
}

#[test]
fn data_that_no_option_needs_is_too_big_and_absurd_data_ends_the_connection() {
    let (mut client, connection) = connect(two());
    client.structured();
    assert_eq!(client.last(7, &[0; 70_000]), ERR_TOO_BIG);
    let mut header = crate::client::OPTION_MAGIC.to_be_bytes().to_vec();
    header.extend([7_u32.to_be_bytes(), u32::MAX.to_be_bytes()].concat());
    client.stream.write_all(&header).unwrap();
    assert_eq!(connection.end().refusal().kind(), ErrorKind::Protocol);
}

#[test]
fn what_does_not_begin_like_an_option_ends_the_connection() {
    let (mut client, connection) = connect(two());
    client.stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert_eq!(connection.end().refusal().kind(), ErrorKind::Protocol);
}

#[test]
fn a_client_that_never_chooses_is_dropped_at_last() {
    let (mut client, connection) = connect(two());
    for _ in 0..4096 {
        assert_eq!(client.last(12, &[]), ERR_UNSUP);
    }
    assert_eq!(connection.end().refusal().kind(), ErrorKind::Protocol);
}

#[test]
fn goodbye_is_answered_even_with_data() {
    let (mut client, connection) = connect(two());
    assert_eq!(client.last(2, b"so long"), ACK);
    assert!(matches!(connection.end(), End::Aborted));
}

#[test]
fn a_server_that_stops_says_so_to_every_option_but_goodbye() {
    let (mut client, connection) = connect(two());
    connection.watch.stopping.store(true, Ordering::SeqCst);
    assert_eq!(client.last(3, &[]), ERR_SHUTDOWN);
    assert_eq!(client.last(7, &info_data("first", &[])), ERR_SHUTDOWN);
    assert_eq!(client.last(2, &[]), ACK);
}

#[test]
fn where_tls_is_required_nothing_else_is_answered_before_it() {
    let (stream, connection) = serve(two(), Encryption::Required, SessionLimits::default(), None);
    let mut client = Client::connect(stream);
    for (option, data) in
        [(3, vec![]), (6, info_data("first", &[])), (7, info_data("x", &[])), (8, vec![]), (99, vec![])]
    {
        assert_eq!(client.last(option, &data), ERR_TLS_REQD, "option {option}");
    }
    assert_eq!(client.last(5, b"data"), ERR_INVALID);
    assert_eq!(client.last(5, &[]), ACK);
    assert_eq!(client.last(5, &[]), ERR_INVALID, "it cannot be started twice");
    client.go("first");
    drop(client);
    connection.end().report();

    let (stream, connection) = serve(two(), Encryption::Required, SessionLimits::default(), None);
    let mut client = Client::connect(stream);
    client.send_option(1, b"first");
    assert_eq!(connection.end().refusal().kind(), ErrorKind::Refused);
}

#[test]
fn tls_forgets_what_was_agreed_on_before() {
    let (stream, _connection) = serve(two(), Encryption::Offered, SessionLimits::default(), None);
    let mut client = Client::connect(stream);
    client.structured();
    client.contexts("first", &["base:allocation"]);
    assert_eq!(client.last(5, &[]), ACK);
    let asked = meta_data("first", &["base:allocation"]);
    assert_eq!(client.last(10, &asked), ERR_INVALID, "chunks are to be agreed on anew");
    assert_eq!(client.go("first").flags & 0x80, 0);
    assert_eq!(client.error_of(7, 0, 0, 512, &[]), 22);
}

#[test]
fn a_server_without_tls_says_that_it_has_none() {
    let (mut client, _connection) = connect(two());
    assert_eq!(client.last(5, &[]), ERR_POLICY);
    client.go("first");
}

#[test]
fn a_client_of_the_time_before_options_gets_no_tls() {
    let (stream, _connection) = serve(two(), Encryption::Offered, SessionLimits::default(), None);
    let mut client = Client::connect_with(stream, 0);
    assert_eq!(client.last(5, &[]), ERR_INVALID);
}

struct Bitmap(&'static str);

impl MetaContext for Bitmap {
    fn name(&self) -> &str {
        self.0
    }

    fn status_at(&self, offset: u64) -> vmwright_disk::Result<StatusRange> {
        Ok(StatusRange { len: 65536 - offset % 65536, flags: (offset / 65536 % 2) as u32 })
    }
}

fn with_contexts() -> Vec<Export> {
    let export = Export::new("disk", disk(1 << 20)).showing_depth();
    let export = export.with_context(Arc::new(Bitmap("qemu:dirty-bitmap:b0")));
    vec![export.with_context(Arc::new(Bitmap("x-test:odd")))]
}

#[test]
fn contexts_are_listed_by_what_is_asked() {
    let (mut client, _connection) = connect(with_contexts());
    client.structured();
    let mut names = |queries: &[&str]| {
        let found = client.meta_option(9, "disk", queries);
        found.into_iter().map(|(_, name)| name).collect::<Vec<_>>()
    };
    let all = ["base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:b0", "x-test:odd"];
    assert_eq!(names(&[]), all);
    assert_eq!(names(&["base:"]), all[..1]);
    assert_eq!(names(&["qemu:"]), all[1..3]);
    assert_eq!(names(&["qemu:dirty-bitmap:"]), all[2..3]);
    assert_eq!(names(&["x-test:odd", "base:allocation"]), [all[0], all[3]]);
    assert!(names(&["qemu:dirty-bitmap:b1", "base:nothing", "other:x"]).is_empty());
}

#[test]
fn only_contexts_named_in_full_are_selected() {
    let (mut client, _connection) = connect(with_contexts());
    client.structured();
    assert!(client.contexts("disk", &["base:", "qemu:", "x-test:"]).is_empty());
    let selected = client.contexts("disk", &["x-test:odd", "base:allocation", "x-test:odd"]);
    assert_eq!(selected.len(), 2);
    assert_ne!(selected[0].0, selected[1].0, "each has a number of its own");
}

#[test]
fn contexts_need_chunks_and_an_export() {
    let (mut client, _connection) = connect(with_contexts());
    assert_eq!(client.last(9, &meta_data("disk", &[])), ERR_INVALID);
    assert_eq!(client.last(10, &meta_data("disk", &[])), ERR_INVALID);
    client.structured();
    assert_eq!(client.last(10, &meta_data("other", &[])), ERR_UNKNOWN);
}

#[test]
fn a_failed_selection_forgets_the_one_before() {
    let (mut client, _connection) = connect(with_contexts());
    client.structured();
    client.contexts("disk", &["base:allocation"]);
    assert_eq!(client.last(10, &meta_data("disk", &["nocolon"])), ERR_INVALID);
    client.go("disk");
    assert_eq!(client.error_of(7, 0, 0, 512, &[]), 22);
}

#[test]
fn contexts_of_another_export_are_not_those_of_this_one() {
    let (mut client, _connection) = connect(two());
    client.structured();
    client.contexts("first", &["base:allocation"]);
    client.go("zweite ä");
    assert_eq!(client.error_of(7, 0, 0, 512, &[]), 22);
}

#[test]
fn exports_that_clients_could_not_name_are_refused() {
    let refused = |exports: Vec<Export>| Exports::new(exports).unwrap_err().kind() == ErrorKind::InvalidInput;
    assert!(refused(vec![]));
    assert!(refused(vec![Export::new("a", disk(1)), Export::new("a", disk(1))]));
    assert!(refused(vec![Export::new("a\0", disk(1))]));
    assert!(refused(vec![Export::new("a".repeat(4097), disk(1))]));
    assert!(refused(vec![Export::new("a", disk(1)).with_context(Arc::new(Bitmap("nocolon")))]));
    assert!(refused(vec![Export::new("a", disk(1)).with_context(Arc::new(Bitmap("base:allocation")))]));
}
