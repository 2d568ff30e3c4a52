//! How servers begin and end.
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

use std::os::unix::net::UnixStream;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use vmwright_disk::fault::{Fault, FaultDisk};
use vmwright_disk::{Disk, ErrorKind, Extent, MemDisk, Result};
use vmwright_judges::{need, run};
use vmwright_server::nbd::{Config, Export, Lifetime, Listen, Server, Stop};

use crate::client::Client;
use crate::support::{Folder, Running};

fn memory() -> Export {
    Export::new("disk", Arc::new(MemDisk::new(1 << 20))).writable()
}

fn config(folder: &Folder) -> Config {
    Config::new(vec![memory()], Listen::Unix(folder.path("nbd.sock")))
}

fn client(server: &Running) -> Client<UnixStream> {
    let mut client = Client::connect(UnixStream::connect(server.socket()).unwrap());
    client.go("disk");
    client
}

#[test]
fn a_server_ends_when_the_last_client_has_gone_if_so_wished() {
    need!("nbdinfo");
    let folder = Folder::new();
    let server = Running::start(Config { lifetime: Lifetime::LastClient, ..config(&folder) });
    // Looking is not using.
    run("nbdinfo", ["--list", &server.uri("")]);
    let first = client(&server);
    let mut second = client(&server);
    drop(first);
    server.wait_for("Served");
    assert_eq!(second.read_simple(0, 512).unwrap(), [0; 512]);
    assert!(server.is_running());
    drop(second);
    assert_eq!(server.wait().unwrap().clients, 2);
    assert!(!folder.path("nbd.sock").exists());
}

#[test]
fn a_server_goes_on_without_clients_until_it_is_told_to_stop() {
    let folder = Folder::new();
    let server = Running::start(config(&folder));
    drop(client(&server));
    server.wait_for("Served");
    std::thread::sleep(Duration::from_millis(50));
    assert!(server.is_running());
    let clients = server.stop().unwrap().clients;
    assert_eq!(clients, 1);
    assert!(!folder.path("nbd.sock").exists());
}

#[test]
fn stopping_does_not_wait_for_idle_clients() {
    let folder = Folder::new();
    let server = Running::start(config(&folder));
    let _silent = UnixStream::connect(server.socket()).unwrap();
    let _idle = client(&server);
    server.wait_for("Serving");
    let start = Instant::now();
    server.stop().unwrap();
    assert!(start.elapsed() < Duration::from_secs(5));
}

/// A disk whose writes take their time.
struct Slow(MemDisk, Barrier);

impl Disk for Slow {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.0.read_at(buf, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        self.1.wait();
        std::thread::sleep(Duration::from_millis(300));
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
fn requests_under_way_are_answered_before_a_server_stops() {
    let folder = Folder::new();
    let disk = Arc::new(Slow(MemDisk::new(1 << 20), Barrier::new(2)));
    let server = Running::one(&folder, Export::new("disk", disk.clone()).writable());
    let mut client = client(&server);
    client.send(1, 0, 0, 4, b"data");
    disk.1.wait();
    let report = server.stop().unwrap();
    assert_eq!(report.bytes_written, 4);
    assert_eq!(client.reply(0).unwrap().0.error(), 0);
    assert_eq!(disk.0.to_bytes()[..4], *b"data");
}

#[test]
fn changes_that_cannot_be_made_durable_are_the_servers_error() {
    let folder = Folder::new();
    let disk = Arc::new(FaultDisk::with_fault(Arc::new(MemDisk::new(4096)), 1, Fault::NoSpace));
    let server = Running::one(&folder, Export::new("disk", disk).writable());
    let mut client = client(&server);
    assert_eq!(client.error_of(1, 0, 0, 4, b"data"), 0);
    drop(client);
    server.wait_for("NotFlushed");
    assert_eq!(server.stop().unwrap_err().kind(), ErrorKind::NoSpace);
}

#[test]
fn addresses_that_others_can_reach_must_be_allowed() {
    let listen = |text: &str| Listen::Tcp(text.parse().unwrap());
    for address in ["0.0.0.0:0", "[::]:0"] {
        let error = Server::bind(Config::new(vec![memory()], listen(address))).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains("allowed explicitly"), "{error}");
    }
    let allowed = Config { remote: true, ..Config::new(vec![memory()], listen("0.0.0.0:0")) };
    let server = Server::bind(allowed).unwrap();
    let Listen::Tcp(address) = &server.places().unwrap()[0] else { panic!("it listens on TCP") };
    assert_ne!(address.port(), 0, "the port that was taken is told");
    Server::bind(Config::new(vec![memory()], listen("127.0.0.1:0"))).unwrap();
}

#[test]
fn a_server_listens_in_several_places() {
    let folder = Folder::new();
    let mut config = config(&folder);
    config.listen.push(Listen::Unix(folder.path("second.sock")));
    let server = Running::start(config);
    for name in ["nbd.sock", "second.sock"] {
        let mut client = Client::connect(UnixStream::connect(folder.path(name)).unwrap());
        client.go("disk");
    }
    server.stop().unwrap();
}

#[test]
fn a_server_needs_something_to_serve_and_somewhere_to_listen() {
    let folder = Folder::new();
    let nothing = Config { exports: Vec::new(), ..config(&folder) };
    assert_eq!(Server::bind(nothing).err().unwrap().kind(), ErrorKind::InvalidInput);
    let nowhere = Config { listen: Vec::new(), ..config(&folder) };
    assert_eq!(Server::bind(nowhere).err().unwrap().kind(), ErrorKind::InvalidInput);
    let stop = Stop::new().unwrap();
    stop.stop();
    // One that was never run leaves no name behind.
    drop(Server::bind(config(&folder)).unwrap());
    assert!(!folder.path("nbd.sock").exists());
    Server::bind(config(&folder)).unwrap().run(&stop).unwrap();
}
