//! Laws of the channel, told through both ends.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod oracle;

use std::num::NonZeroU64;

use proptest::prelude::*;
use vmwright_agent_proto::{
    ByteBuf, ErrorKind, Event, Exec, ExitStatus, Failure, FileInfo, Goodbye, Hello, MAX_DATA, MAX_FRAME,
    MAX_STREAMS, Message, Mode, Put, Request, Session, Shutdown, StreamId, WINDOW, WindowSize,
};

fn hello() -> Hello {
    Hello { version: "0.1.0".into(), mode: Mode::Init, boot_id: [3; 16] }
}

fn host(epoch: u64) -> Session {
    Session::host(NonZeroU64::new(epoch).unwrap())
}

fn events(session: &mut Session) -> Vec<Event> {
    std::iter::from_fn(|| session.next_event().unwrap()).collect()
}

/// Carries everything one way in pieces of `chunk` bytes.
fn carry(from: &mut Session, to: &mut Session, chunk: usize) -> Vec<Event> {
    let mut seen = Vec::new();
    while from.has_output() {
        let bytes = from.output().to_vec();
        from.wrote(bytes.len());
        for piece in bytes.chunks(chunk) {
            to.feed(piece);
            seen.extend(events(to));
        }
    }
    seen
}

fn established() -> (Session, Session) {
    let (mut host, mut agent) = (host(77), Session::agent(hello()));
    assert_eq!(carry(&mut host, &mut agent, 1), [Event::Begun]);
    assert_eq!(carry(&mut agent, &mut host, 1), [Event::Established(hello())]);
    // The announcement made the host say its preamble again, which changes nothing.
    carry(&mut host, &mut agent, 1);
    carry(&mut agent, &mut host, 1);
    assert!(host.is_established() && agent.is_established());
    (host, agent)
}

fn opened(host: &mut Session, agent: &mut Session) -> StreamId {
    let id = host.open(Request::Ping).unwrap();
    assert_eq!(carry(host, agent, 1000), [Event::Message(id, Message::Open(Request::Ping))]);
    id
}

fn bytes() -> impl Strategy<Value = ByteBuf> {
    prop::collection::vec(any::<u8>(), 0..100).prop_map(ByteBuf::from)
}

fn request() -> impl Strategy<Value = Request> {
    let size = (any::<u16>(), any::<u16>()).prop_map(|(rows, columns)| WindowSize { rows, columns });
    let exec = (
        prop::collection::vec(bytes(), 0..4),
        prop::collection::vec((bytes(), bytes()), 0..4),
        prop::option::of(bytes()),
        prop::option::of(".{0,20}"),
        prop::option::of(size),
        any::<bool>(),
    )
        .prop_map(|(argv, env, cwd, user, pty, stdin)| {
            Request::Exec(Exec { argv, env, cwd, user, pty, stdin })
        });
    let put = (bytes(), any::<Option<u16>>(), any::<Option<(u32, u32)>>(), any::<Option<(i64, u32)>>())
        .prop_map(|(path, mode, owner, modified)| Request::Put(Put { path, mode, owner, modified }));
    prop_oneof![
        exec,
        put,
        bytes().prop_map(|path| Request::Get { path }),
        any::<(i64, u32)>().prop_map(|(seconds, nanoseconds)| Request::SetClock { seconds, nanoseconds }),
        Just(Request::Ping),
        Just(Request::Shutdown(Shutdown::Reboot)),
        Just(Request::Shutdown(Shutdown::PowerOff)),
    ]
}

fn answer() -> impl Strategy<Value = Message> {
    let info = (any::<u64>(), any::<u16>(), any::<u32>(), any::<u32>(), any::<(i64, u32)>()).prop_map(
        |(size, mode, uid, gid, modified)| Message::File(FileInfo { size, mode, uid, gid, modified }),
    );
    prop_oneof![
        any::<u32>().prop_map(Message::Started),
        info,
        any::<u8>().prop_map(|code| Message::Exited(ExitStatus::Code(code))),
        any::<i32>().prop_map(|signal| Message::Exited(ExitStatus::Signal(signal))),
        Just(Message::Done),
        (any::<i32>(), ".{0,50}").prop_map(|(errno, action)| Message::Failed(Failure { errno, action })),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if std::env::var_os("VMWRIGHT_TORTURE").is_some() { 5000 } else { 64 }))]

    #[test]
    fn every_request_arrives_as_it_was_sent(request in request(), chunk in 1usize..200) {
        let (mut host, mut agent) = established();
        let id = host.open(request.clone()).unwrap();
        prop_assert_eq!(carry(&mut host, &mut agent, chunk), [Event::Message(id, Message::Open(request))]);
    }

    #[test]
    fn every_answer_arrives_as_it_was_sent(answer in answer(), chunk in 1usize..200) {
        let (mut host, mut agent) = established();
        let id = opened(&mut host, &mut agent);
        agent.send(id, answer.clone()).unwrap();
        prop_assert_eq!(carry(&mut agent, &mut host, chunk), [Event::Message(id, answer)]);
    }

    #[test]
    fn any_history_of_the_channel_leaves_it_usable(script in prop::collection::vec(any::<u8>(), 0..600)) {
        oracle::check(&script);
    }

    #[test]
    fn noise_never_gets_past_a_preamble(noise in prop::collection::vec(any::<u8>(), 0..5000)) {
        let (mut host, mut agent) = (host(5), Session::agent(hello()));
        agent.feed(&noise);
        prop_assert_eq!(events(&mut agent), []);
        carry(&mut host, &mut agent, 7);
        host.feed(&noise);
        prop_assert_eq!(events(&mut host), []);
        let seen = carry(&mut agent, &mut host, 7);
        prop_assert_eq!(seen, [Event::Established(hello())]);
    }
}

#[test]
fn a_session_cut_at_any_byte_is_followed_by_a_whole_one() {
    let mut first = host(0x5A5A_F1F1_9C9C_0101);
    let mut agent = Session::agent(hello());
    carry(&mut first, &mut agent, 100);
    carry(&mut agent, &mut first, 100);
    carry(&mut first, &mut agent, 100);
    let id = first.open(Request::Ping).unwrap();
    first.send_data(id, &[0xF1; 40]);
    let bytes = first.output().to_vec();
    for cut in 0..=bytes.len() {
        let mut agent = Session::agent(hello());
        carry(&mut host(0x5A5A_F1F1_9C9C_0101), &mut agent, 100);
        agent.feed(&bytes[..cut]);
        let told: Vec<_> = events(&mut agent);
        assert!(told.len() <= 2);
        let mut second = host(9);
        for chunk in [1, 5] {
            let seen = carry(&mut second, &mut agent, chunk);
            let wrong = |event: &Event| !matches!(event, Event::Begun | Event::Lost(_));
            assert!(!seen.iter().any(wrong), "cut at {cut}: {seen:?}");
            carry(&mut agent, &mut second, chunk);
        }
        assert!(second.is_established(), "cut at {cut}");
        opened(&mut second, &mut agent);
    }
}

#[test]
fn data_that_spells_out_a_preamble_is_only_data() {
    let (mut host, mut agent) = established();
    let id = opened(&mut host, &mut agent);
    let magic = Session::host(NonZeroU64::MIN).output()[..16].to_vec();
    // Every one-byte mask of the magic, so that no simple mask hides it.
    let masked = |mask: u8| magic.iter().map(move |byte| byte ^ mask);
    let evil: Vec<u8> = (0..=255).flat_map(masked).collect();
    assert_eq!(host.send_data(id, &evil), evil.len());
    let seen = carry(&mut host, &mut agent, 13);
    assert_eq!(seen, [Event::Message(id, Message::Data(ByteBuf::from(evil)))]);
}

#[test]
fn no_more_data_flows_than_was_granted() {
    let (mut host, mut agent) = established();
    let id = opened(&mut host, &mut agent);
    let data = vec![1; WINDOW + 1];
    assert_eq!(host.send_data(id, &data), WINDOW);
    carry(&mut host, &mut agent, 4096);
    assert_eq!((host.sendable(id), host.send_data(id, &data)), (0, 0));
    agent.consumed(id, WINDOW / 2);
    carry(&mut agent, &mut host, 4096);
    assert_eq!(host.sendable(id), WINDOW / 2);
}

#[test]
fn an_agent_that_overruns_the_window_is_cut_off() {
    let (mut host, mut agent) = established();
    let id = opened(&mut host, &mut agent);
    // A second agent believes that the host has taken everything on.
    for _ in 0..WINDOW / MAX_DATA {
        assert_eq!(agent.send_data(id, &vec![0; MAX_DATA]), MAX_DATA);
    }
    carry(&mut agent, &mut host, 4096);
    let (mut liar_host, mut liar) = established();
    let other = opened(&mut liar_host, &mut liar);
    liar.send_data(other, b"x");
    host.feed(liar.output());
    assert_eq!(host.next_event().unwrap_err().kind(), ErrorKind::Protocol);
}

#[test]
fn streams_take_turns() {
    let (mut host, mut agent) = established();
    let (a, b) = (opened(&mut host, &mut agent), opened(&mut host, &mut agent));
    agent.send_data(a, &vec![b'a'; WINDOW]);
    agent.send_data(b, &vec![b'b'; WINDOW]);
    let order: Vec<_> = carry(&mut agent, &mut host, MAX_FRAME)
        .into_iter()
        .map(|event| match event {
            Event::Message(id, Message::Data(_)) => id,
            event => panic!("{event:?}"),
        })
        .collect();
    assert_eq!(order.len(), 2 * WINDOW / MAX_DATA);
    assert!(order.chunks(2).all(|pair| pair[0] != pair[1]), "{order:?}");
}

#[test]
fn only_so_many_streams_can_be_open() {
    let (mut host, mut agent) = established();
    let ids: Vec<_> = (0..MAX_STREAMS).map(|_| opened(&mut host, &mut agent)).collect();
    assert_eq!(host.open(Request::Ping).unwrap_err().kind(), ErrorKind::TooManyStreams);
    agent.send(ids[3], Message::Done).unwrap();
    carry(&mut agent, &mut host, 100);
    opened(&mut host, &mut agent);
}

#[test]
fn a_request_too_large_for_a_frame_is_refused_at_once() {
    let (mut host, _) = established();
    let exec = Exec { argv: vec![ByteBuf::from(vec![0; MAX_FRAME])], ..Exec::default() };
    assert_eq!(host.open(Request::Exec(exec)).unwrap_err().kind(), ErrorKind::TooLarge);
    assert_eq!(host.open_streams(), 0);
}

#[test]
fn a_reset_drops_what_waits_and_ignores_what_crosses() {
    let (mut host, mut agent) = established();
    let id = opened(&mut host, &mut agent);
    host.send_data(id, b"never seen");
    host.send(id, Message::Reset).unwrap();
    agent.send_data(id, b"too late");
    agent.send(id, Message::Done).unwrap();
    assert_eq!(carry(&mut agent, &mut host, 100), []);
    assert_eq!(carry(&mut host, &mut agent, 100), []);
    assert_eq!(host.send(id, Message::Eof).unwrap_err().kind(), ErrorKind::Closed);
    let id = opened(&mut host, &mut agent);
    host.send(id, Message::Reset).unwrap();
    assert_eq!(carry(&mut host, &mut agent, 100), [Event::Message(id, Message::Reset)]);
    assert_eq!(agent.send(id, Message::Done).unwrap_err().kind(), ErrorKind::Closed);
}

#[test]
fn a_new_epoch_ends_the_old_streams_and_silences_their_frames() {
    let (mut old, mut agent) = established();
    let id = opened(&mut old, &mut agent);
    agent.send_data(id, b"of the old epoch");
    let stale = agent.output().to_vec();
    agent.wrote(stale.len());
    let mut new = host(78);
    assert_eq!(carry(&mut new, &mut agent, 100), [Event::Begun]);
    assert_eq!(agent.open_streams(), 0);
    new.feed(&stale);
    assert_eq!(events(&mut new), []);
    assert_eq!(carry(&mut agent, &mut new, 100), [Event::Established(hello())]);
    // A frame of the old host that was still under way.
    old.send_data(id, b"late");
    assert_eq!(carry(&mut old, &mut agent, 100), []);
}

#[test]
fn another_agent_at_the_far_end_ends_the_session() {
    let (mut host, _) = established();
    let mut other = Session::agent(hello());
    assert_eq!(carry(&mut other, &mut host, 100), [Event::Replaced]);
    assert!(!host.is_established());
}

#[test]
fn an_agent_without_a_common_version_is_named_incompatible() {
    let mut host = host(1);
    let mut preamble = Session::agent(hello()).output().to_vec();
    preamble[16] = 1;
    preamble[24..28].copy_from_slice(&[9, 0, 12, 0]);
    host.feed(&preamble);
    let error = host.next_event().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Incompatible);
    assert_eq!(error.to_string(), "the agent speaks versions 9 to 12, this side 1 to 1");
}

#[test]
fn goodbye_reaches_the_host() {
    let (mut host, mut agent) = established();
    agent.goodbye(Goodbye::PowerOff).unwrap();
    assert_eq!(carry(&mut agent, &mut host, 100), [Event::Goodbye(Goodbye::PowerOff)]);
    assert!(host.goodbye(Goodbye::Exit).is_err());
}

#[test]
fn neither_end_sends_the_others_messages() {
    let (mut host, mut agent) = established();
    let id = opened(&mut host, &mut agent);
    assert!(host.send(id, Message::Done).is_err());
    assert!(agent.send(id, Message::Eof).is_err());
    assert!(agent.open(Request::Ping).is_err());
}
