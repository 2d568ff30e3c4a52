use std::collections::BTreeSet;
use std::sync::Barrier;

use rusqlite::types::Value;

use super::*;
use crate::ErrorKind;
use crate::store::ImageUse;

fn store() -> (tempfile::TempDir, SqliteStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&dir.path().join("vmwright.db")).unwrap();
    (dir, store)
}

fn name(text: &str) -> VmName {
    text.parse().unwrap()
}

fn owner() -> ProcessIdentity {
    ProcessIdentity::current().unwrap()
}

fn add(store: &dyn Store, vm: &str) -> OperationId {
    let new = NewVm { name: &name(vm), config: "{}", images: &[], ephemeral: false };
    store.create_vm(&new, &owner()).unwrap()
}

fn add_done(store: &dyn Store, vm: &str) {
    let operation = add(store, vm);
    store.finish(operation, Outcome::Done, None).unwrap();
}

fn change(state: State) -> VmChange {
    VmChange { state, pid: Some(7), socket_path: Some("/s".into()), run: Some("r".into()), detail: None }
}

#[test]
fn a_vm_is_made_together_with_its_open_operation() {
    let (_dir, store) = store();
    let operation = add(&store, "a");
    let open = store.open_operations().unwrap();
    assert_eq!(open.len(), 1);
    assert_eq!((open[0].id, open[0].kind, &open[0].owner), (operation, OperationKind::Create, &owner()));
    let row = store.vm(&name("a")).unwrap().unwrap();
    assert_eq!(row.state, State::Created);
    assert!(row.created_at.ends_with('Z') && row.created_at.contains('T'), "{}", row.created_at);
    store.finish(operation, Outcome::Done, None).unwrap();
    assert!(store.open_operations().unwrap().is_empty());
}

#[test]
fn a_name_is_taken_once() {
    let (_dir, store) = store();
    add(&store, "a");
    let new = NewVm { name: &name("a"), config: "{}", images: &[], ephemeral: false };
    assert_eq!(store.create_vm(&new, &owner()).unwrap_err().kind(), ErrorKind::Exists);
    assert_eq!(store.open_operations().unwrap().len(), 1);
}

#[test]
fn a_vm_has_one_open_operation_at_most() {
    let (_dir, store) = store();
    add_done(&store, "a");
    let Begun::Opened(first) = store.begin(&name("a"), OperationKind::Start, &owner()).unwrap() else {
        panic!("taken")
    };
    let Begun::Taken(other) = store.begin(&name("a"), OperationKind::Stop, &owner()).unwrap() else {
        panic!("two operations")
    };
    assert_eq!((other.id, other.kind), (first, OperationKind::Start));
    store.finish(first, Outcome::Done, Some(&change(State::Running))).unwrap();
    assert_eq!(store.vm(&name("a")).unwrap().unwrap().state, State::Running);
    assert!(matches!(store.begin(&name("a"), OperationKind::Stop, &owner()).unwrap(), Begun::Opened(_)));
}

#[test]
fn only_one_of_many_takes_a_dead_owners_operation_over() {
    let (dir, store) = store();
    add(&store, "a");
    let operation = store.open_operations().unwrap().remove(0);
    let path = dir.path().join("vmwright.db");
    let barrier = Barrier::new(8);
    let winners: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8u32)
            .map(|index| {
                let (path, operation, barrier) = (&path, &operation, &barrier);
                scope.spawn(move || {
                    let store = SqliteStore::open(path).unwrap();
                    let mine = ProcessIdentity { pid: 1_000_000 + index, ..owner() };
                    barrier.wait();
                    usize::from(store.take_over(operation, &mine).unwrap())
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(winners, 1);
}

#[test]
fn a_change_that_comes_too_late_changes_nothing() {
    let (_dir, store) = store();
    let operation = add(&store, "a");
    store.finish(operation, Outcome::Done, Some(&change(State::Running))).unwrap();
    let ended = VmChange { state: State::Stopped, ..change(State::Stopped) };
    assert!(!store.change_vm(&name("a"), State::Running, Some("an earlier run"), &ended).unwrap());
    assert!(!store.change_vm(&name("a"), State::Running, None, &ended).unwrap());
    assert_eq!(store.vm(&name("a")).unwrap().unwrap().state, State::Running);
    assert!(store.change_vm(&name("a"), State::Running, Some("r"), &ended).unwrap());
    assert_eq!(store.vm(&name("a")).unwrap().unwrap().state, State::Stopped);
}

#[test]
fn concurrent_leases_never_meet() {
    let (dir, store) = store();
    let path = dir.path().join("vmwright.db");
    for index in 0..40 {
        add_done(&store, &format!("vm{index}"));
    }
    let barrier = Barrier::new(8);
    let leases: Vec<(IpLease, u16)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|thread| {
                let (path, barrier) = (&path, &barrier);
                scope.spawn(move || {
                    // A connection of its own, as another process would have.
                    let store = SqliteStore::open(path).unwrap();
                    barrier.wait();
                    let lease = |index: i32| {
                        let vm = name(&format!("vm{}", thread * 5 + index));
                        let lease = store.lease_ip(&vm, IpPool::default()).unwrap();
                        (lease, store.reserve_ssh_port(&vm, 22).unwrap())
                    };
                    (0..5).map(lease).collect::<Vec<_>>()
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let addresses: BTreeSet<_> = leases.iter().map(|(lease, _)| lease.ip).collect();
    let taps: BTreeSet<_> = leases.iter().map(|(lease, _)| lease.tap_device.as_str()).collect();
    let ports: BTreeSet<_> = leases.iter().map(|(_, port)| *port).collect();
    assert_eq!((addresses.len(), taps.len(), ports.len()), (40, 40, 40));
}

#[test]
fn a_lease_is_kept_until_released_or_the_vm_goes() {
    let (_dir, store) = store();
    add_done(&store, "a");
    add_done(&store, "b");
    let pool = IpPool { first: [10, 200, 255, 254].into(), last: [10, 200, 255, 254].into() };
    let lease = store.lease_ip(&name("a"), pool).unwrap();
    assert_eq!(store.lease_ip(&name("a"), pool).unwrap(), lease);
    assert!(lease.tap_device.len() <= 15, "{}", lease.tap_device);
    let error = store.lease_ip(&name("b"), pool).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    store.release_ip(&name("a")).unwrap();
    assert_eq!(store.lease_ip(&name("b"), pool).unwrap().ip, lease.ip);
    assert_eq!(store.reserve_ssh_port(&name("b"), 22).unwrap(), *SSH_PORTS.start());
    assert!(store.delete_vm(&name("b")).unwrap());
    assert_eq!(store.lease_ip(&name("a"), pool).unwrap().ip, lease.ip);
    assert_eq!(store.reserve_ssh_port(&name("a"), 22).unwrap(), *SSH_PORTS.start());
    store.release_ssh_port(&name("a")).unwrap();
    assert_eq!(store.lease_ip(&name("gone"), pool).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn addresses_and_devices_are_those_of_the_pool_of_old() {
    let (_dir, store) = store();
    add_done(&store, "a");
    let lease = store.lease_ip(&name("a"), IpPool::default()).unwrap();
    assert_eq!((lease.ip, lease.tap_device.as_str()), ([172, 16, 0, 2].into(), "tap2"));
}

#[test]
fn an_image_is_found_by_path_and_by_inode() {
    let (_dir, store) = store();
    let image = |path: &str, inode| ImageUse { path: path.into(), device: 1, inode, writes: false };
    let images = [image("/a.qcow2", 10), image("/b.raw", u64::MAX)];
    let new = NewVm { name: &name("a"), config: "{}", images: &images, ephemeral: false };
    store.create_vm(&new, &owner()).unwrap();
    let users = |path: &str, device, inode| store.image_users(Path::new(path), device, inode).unwrap();
    assert_eq!(users("/a.qcow2", 9, 9), [name("a")]);
    assert_eq!(users("/renamed", 1, u64::MAX), [name("a")]);
    assert_eq!(users("/renamed", 2, 10), []);
    store.delete_vm(&name("a")).unwrap();
    assert_eq!(users("/a.qcow2", 1, 10), []);
}

#[test]
fn a_store_of_a_newer_program_is_refused() {
    let (dir, store) = store();
    drop(store);
    let path = dir.path().join("vmwright.db");
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 999).unwrap();
    let error = SqliteStore::open(&path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("999"), "{error}");
}

#[test]
fn a_file_that_is_no_store_is_corrupt() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vmwright.db");
    std::fs::write(&path, vec![b'x'; 8192]).unwrap();
    assert_eq!(SqliteStore::open(&path).unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn many_commands_open_a_new_store_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vmwright.db");
    let barrier = Barrier::new(12);
    std::thread::scope(|scope| {
        for index in 0..12 {
            let (path, barrier) = (&path, &barrier);
            scope.spawn(move || {
                barrier.wait();
                let store = SqliteStore::open(path).unwrap();
                add_done(&store, &format!("vm{index}"));
                for _ in 0..10 {
                    let begun = store.begin(&name(&format!("vm{index}")), OperationKind::Start, &owner());
                    let Begun::Opened(id) = begun.unwrap() else { panic!("taken") };
                    store.finish(id, Outcome::Done, None).unwrap();
                }
            });
        }
    });
    let store = SqliteStore::open(&path).unwrap();
    assert_eq!(store.vms().unwrap().len(), 12);
    assert!(store.open_operations().unwrap().is_empty());
}

#[test]
fn history_stays_within_bounds() {
    let (_dir, store) = store();
    add_done(&store, "a");
    for _ in 0..50 {
        let Begun::Opened(id) = store.begin(&name("a"), OperationKind::Start, &owner()).unwrap() else {
            panic!("taken")
        };
        store.finish(id, Outcome::Failed, None).unwrap();
    }
    let count =
        |sql: &str| store.read(|connection| connection.query_row(sql, [], |row| row.get::<_, i64>(0)));
    assert_eq!(count("SELECT count(*) FROM operations").unwrap(), KEPT_OPERATIONS);
    store.record_event(&name("a"), "started", "x").unwrap();
    store.record_event(&name("a"), "stopped", "").unwrap();
    let events = store.events(0).unwrap();
    assert_eq!(events.iter().map(|event| event.kind.as_str()).collect::<Vec<_>>(), ["started", "stopped"]);
    assert_eq!(store.events(events[0].id).unwrap().len(), 1);
}

#[test]
fn settings_are_those_that_survive_a_crash() {
    let (_dir, store) = store();
    let setting = |name: &str| {
        store.read(|connection| connection.pragma_query_value(None, name, |row| row.get::<_, Value>(0)))
    };
    assert_eq!(setting("journal_mode").unwrap(), Value::Text("wal".into()));
    assert_eq!(setting("synchronous").unwrap(), Value::Integer(1));
    assert_eq!(setting("foreign_keys").unwrap(), Value::Integer(1));
}
