//! Clients that behave badly hurt nobody but themselves.
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vmwright_disk::{Disk, Extent, MemDisk, Result};
use vmwright_judges::need;
use vmwright_server::nbd::{Config, Export, Limits, Listen};

use crate::client::Client;
use crate::support::{Folder, Numbers, Running, qemu_io};

fn export() -> Export {
    Export::new("disk", Arc::new(MemDisk::new(4 << 20))).writable()
}

fn connect(server: &Running) -> UnixStream {
    let stream = UnixStream::connect(server.socket()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

fn client(server: &Running) -> Client<UnixStream> {
    let mut client = Client::connect(connect(server));
    client.go("disk");
    client
}

#[test]
fn clients_that_stall_die_or_send_garbage_do_not_hurt_others() {
    need!("qemu-io");
    let folder = Folder::new();
    let server = Running::one(&folder, export());
    let silent = connect(&server);
    // Asks for far more than its socket holds, and reads nothing of it.
    let mut greedy = client(&server);
    for _ in 0..64 {
        greedy.send(0, 0, 0, 4 << 20, &[]);
    }
    // Stops in the middle of a write.
    let mut halfway = client(&server);
    halfway.stream.write_all(&crate::client::request(1, 0, 1, 0, 1 << 20, &[9; 1000])).unwrap();
    let mut numbers = Numbers(11);
    for round in 0..20 {
        let mut garbage = connect(&server);
        let bytes: Vec<u8> = (0..3000).map(|_| numbers.below(256) as u8).collect();
        let _ = garbage.write_all(&bytes);
        let mut chosen = client(&server);
        let _ = chosen.stream.write_all(&bytes[round..]);
    }
    let text = qemu_io(&server.uri("disk"), &[], &["write -P 5 0 1M", "flush", "read -P 5 0 1M"]);
    assert!(!text.contains("failed"), "{text}");
    drop((silent, greedy, halfway));
    server.stop().unwrap();
}

#[test]
fn a_client_that_does_not_choose_in_time_is_left_however_it_dawdles() {
    let folder = Folder::new();
    let limits = Limits { negotiation: Duration::from_millis(1500), ..Limits::default() };
    let listen = Listen::Unix(folder.path("nbd.sock"));
    let server = Running::start(Config { limits, ..Config::new(vec![export()], listen) });
    let mut chosen = client(&server);
    let start = Instant::now();
    let mut slow = connect(&server);
    // A byte at a time, each in time: what counts is the whole.
    let mut gone = false;
    while start.elapsed() < Duration::from_secs(10) && !gone {
        std::thread::sleep(Duration::from_millis(50));
        gone = slow.write_all(&[0]).is_err();
    }
    assert!(gone, "it was left");
    let told = server.wait_for("Gone");
    assert!(told.contains("Failed"), "{told}");
    // Whoever has chosen may be silent for longer.
    assert_eq!(chosen.read_simple(0, 512).unwrap(), [0; 512]);
    server.stop().unwrap();
}

#[test]
fn clients_beyond_the_limit_are_turned_away_until_there_is_room() {
    let folder = Folder::new();
    let limits = Limits { clients: 2, ..Limits::default() };
    let listen = Listen::Unix(folder.path("nbd.sock"));
    let server = Running::start(Config { limits, ..Config::new(vec![export()], listen) });
    let first = client(&server);
    let _second = client(&server);
    let mut third = connect(&server);
    assert_eq!(third.read(&mut [0; 18]).unwrap(), 0, "nothing but the end");
    server.wait_for("Gone { client: 3, cause: TooMany }");
    drop(first);
    server.wait_for("Served");
    let start = Instant::now();
    loop {
        let mut greeting = [0; 18];
        if connect(&server).read(&mut greeting).unwrap() > 0 {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "there is room again");
    }
    server.stop().unwrap();
}

#[test]
fn a_client_that_is_idle_for_too_long_is_left_if_so_wished() {
    let folder = Folder::new();
    let limits = Limits { idle: Some(Duration::from_millis(100)), ..Limits::default() };
    let listen = Listen::Unix(folder.path("nbd.sock"));
    let server = Running::start(Config { limits, ..Config::new(vec![export()], listen) });
    let mut client = client(&server);
    assert_eq!(client.stream.read(&mut [0]).unwrap(), 0);
    assert!(server.wait_for("Served").contains("Idle"));
    server.stop().unwrap();
}

#[test]
fn the_owner_is_let_in_where_only_the_owner_is() {
    let folder = Folder::new();
    let listen = Listen::Unix(folder.path("nbd.sock"));
    let server = Running::start(Config { same_user: true, ..Config::new(vec![export()], listen) });
    client(&server);
    let told = server.wait_for("Connected");
    assert!(told.contains(&format!("pid: {}", std::process::id())), "{told}");
    server.stop().unwrap();
}

/// A disk whose code has a mistake.
struct Mistaken(MemDisk, AtomicBool);

impl Disk for Mistaken {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        assert!(!self.1.swap(false, Ordering::SeqCst), "a mistake");
        self.0.read_at(buf, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        self.0.write_at(data, offset)
    }

    fn zero_at(&self, offset: u64, len: u64) -> Result<()> {
        self.0.zero_at(offset, len)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.0.discard(offset, len)
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.0.set_len(len)
    }

    fn flush(&self) -> Result<()> {
        self.0.flush()
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        self.0.extent_at(offset)
    }
}

#[test]
fn a_disk_that_gives_up_takes_only_its_client_along() {
    let folder = Folder::new();
    let disk = Arc::new(Mistaken(MemDisk::new(4096), AtomicBool::new(true)));
    let server = Running::one(&folder, Export::new("disk", disk));
    let mut other = client(&server);
    let mut unlucky = client(&server);
    unlucky.send(0, 0, 0, 512, &[]);
    assert!(unlucky.reply(512).is_err(), "the connection ends");
    server.wait_for("Gone { client: 2, cause: Panicked }");
    assert_eq!(other.read_simple(0, 512).unwrap(), [0; 512]);
    server.stop().unwrap();
}
