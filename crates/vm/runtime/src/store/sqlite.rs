use std::net::Ipv4Addr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};

use super::migrations::MIGRATIONS;
use super::{
    Begun, EventRow, IpLease, IpPool, NewVm, Operation, OperationId, OperationKind, Outcome, SSH_PORTS,
    Store, VmChange, VmRow, filesystem,
};
use crate::lock::FileLock;
use crate::machine::State;
use crate::{Error, Result, VmName};
use vmwright_vmm::ProcessIdentity;

/// How long a command waits for another one's transaction; each takes about a millisecond.
const BUSY_TIMEOUT: Duration = Duration::from_secs(20);
/// Now, in ISO 8601 with milliseconds.
const NOW: &str = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')";
const VM_COLUMNS: &str =
    "id, status, config, network, pid, socket_path, run, detail, ephemeral, created_at, updated_at";
const OPERATION_COLUMNS: &str = "id, vm_id, kind, owner_pid, owner_start, owner_boot";
const KEPT_EVENTS: i64 = 10_000;
const KEPT_OPERATIONS: i64 = 20;

/// The store in one SQLite file.
#[derive(Debug)]
pub struct SqliteStore {
    connection: Mutex<Connection>,
}

impl SqliteStore {
    /// Opens the store, making or upgrading it where needed.
    ///
    /// Refused where the file lies on a network filesystem, and where a newer program made it.
    pub fn open(path: &Path) -> Result<Self> {
        filesystem::refuse_network(path.parent().unwrap_or(Path::new(".")))?;
        let mut connection = Connection::open(path).map_err(Error::store("open"))?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(Error::store("open"))?;
        if version(&connection)? != MIGRATIONS.len() as i64 {
            // Turning on WAL is the one thing that the busy timeout does not cover.
            let _alone = FileLock::exclusive(&path.with_extension("db-setup"), Some(BUSY_TIMEOUT))?;
            connection.pragma_update(None, "journal_mode", "WAL").map_err(Error::store("set up"))?;
            migrate(&mut connection, path)?;
        }
        connection.pragma_update(None, "synchronous", "NORMAL").map_err(Error::store("set up"))?;
        connection.pragma_update(None, "foreign_keys", true).map_err(Error::store("set up"))?;
        Ok(Self { connection: Mutex::new(connection) })
    }

    /// Runs `work` in a transaction that holds the write lock from its start.
    fn write<T>(&self, action: &'static str, work: impl FnOnce(&Transaction<'_>) -> Result<T>) -> Result<T> {
        // A panic inside `work` has rolled its transaction back: the connection is as good as before.
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let transaction = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(Error::store(action))?;
        let answer = work(&transaction)?;
        transaction.commit().map_err(Error::store(action))?;
        Ok(answer)
    }

    fn read<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        work(&connection).map_err(Error::store("read"))
    }
}

fn version(connection: &Connection) -> Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(Error::store("open"))
}

fn migrate(connection: &mut Connection, path: &Path) -> Result<()> {
    let known = MIGRATIONS.len() as i64;
    let transaction = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(Error::store("upgrade"))?;
    // Read again under the lock: another command may have done it meanwhile.
    let found = version(&transaction)?;
    let missing = usize::try_from(found).ok().and_then(|found| MIGRATIONS.get(found..));
    let Some(missing) = missing else { return Err(Error::store_version(path, found, known)) };
    for step in missing {
        transaction.execute_batch(step).map_err(Error::store("upgrade"))?;
    }
    transaction.pragma_update(None, "user_version", known).map_err(Error::store("upgrade"))?;
    transaction.commit().map_err(Error::store("upgrade"))
}

/// A value of the wrong kind in a column.
fn unexpected(column: usize, value: &str) -> rusqlite::Error {
    let kind = rusqlite::types::Type::Text;
    rusqlite::Error::FromSqlConversionFailure(column, kind, format!("unexpected {value:?}").into())
}

fn vm_row(row: &Row<'_>) -> rusqlite::Result<VmRow> {
    let name: String = row.get(0)?;
    let state: String = row.get(1)?;
    Ok(VmRow {
        name: name.parse().map_err(|_| unexpected(0, &name))?,
        state: State::from_name(&state).ok_or_else(|| unexpected(1, &state))?,
        config: row.get(2)?,
        network: row.get(3)?,
        pid: row.get(4)?,
        socket_path: row
            .get::<_, Option<Vec<u8>>>(5)?
            .map(|path| PathBuf::from(std::ffi::OsString::from_vec(path))),
        run: row.get(6)?,
        detail: row.get(7)?,
        ephemeral: row.get(8)?,
        created_at: row.get(9)?,
        updated_at: row.get(10)?,
    })
}

fn operation_row(row: &Row<'_>) -> rusqlite::Result<Operation> {
    let vm: String = row.get(1)?;
    let kind: String = row.get(2)?;
    Ok(Operation {
        id: OperationId(row.get(0)?),
        vm: vm.parse().map_err(|_| unexpected(1, &vm))?,
        kind: OperationKind::from_name(&kind).ok_or_else(|| unexpected(2, &kind))?,
        owner: ProcessIdentity {
            pid: row.get(3)?,
            start_time: row.get::<_, i64>(4)? as u64,
            boot_id: row.get(5)?,
        },
    })
}

fn open_operation(connection: &Connection, name: &VmName) -> rusqlite::Result<Option<Operation>> {
    let sql = format!("SELECT {OPERATION_COLUMNS} FROM operations WHERE vm_id = ?1 AND state = 'open'");
    connection.query_row(&sql, [name.as_str()], operation_row).optional()
}

fn insert_operation(
    transaction: &Transaction<'_>,
    name: &VmName,
    kind: OperationKind,
    owner: &ProcessIdentity,
) -> rusqlite::Result<OperationId> {
    let sql = format!(
        "INSERT INTO operations (vm_id, kind, state, owner_pid, owner_start, owner_boot, created_at) \
         VALUES (?1, ?2, 'open', ?3, ?4, ?5, {NOW})"
    );
    let values = params![name.as_str(), kind.name(), owner.pid, owner.start_time as i64, owner.boot_id];
    transaction.execute(&sql, values)?;
    Ok(OperationId(transaction.last_insert_rowid()))
}

fn update_vm(transaction: &Transaction<'_>, name: &str, change: &VmChange) -> rusqlite::Result<usize> {
    let sql = format!(
        "UPDATE vms SET status = ?2, pid = ?3, socket_path = ?4, run = ?5, detail = ?6, updated_at = {NOW} \
         WHERE id = ?1"
    );
    let socket_path = change.socket_path.as_ref().map(|path| path.as_os_str().as_bytes());
    let values = params![name, change.state.name(), change.pid, socket_path, change.run, change.detail];
    transaction.execute(&sql, values)
}

fn exists(transaction: &Transaction<'_>, name: &VmName) -> Result<()> {
    let found = transaction
        .query_row("SELECT 1 FROM vms WHERE id = ?1", [name.as_str()], |_| Ok(()))
        .optional()
        .map_err(Error::store("read"))?;
    found.ok_or_else(|| Error::no_such_vm(name))
}

impl Store for SqliteStore {
    fn create_vm(&self, vm: &NewVm<'_>, owner: &ProcessIdentity) -> Result<OperationId> {
        self.write("add a VM to", |transaction| {
            let fail = || Error::store("add a VM to");
            let sql = format!(
                "INSERT INTO vms (id, status, config, ephemeral, created_at, updated_at) \
                 VALUES (?1, 'CREATED', ?2, ?3, {NOW}, {NOW}) ON CONFLICT DO NOTHING"
            );
            let values = params![vm.name.as_str(), vm.config, vm.ephemeral];
            if transaction.execute(&sql, values).map_err(fail())? == 0 {
                return Err(Error::vm_exists(vm.name));
            }
            let sql = format!(
                "INSERT INTO images (vm_id, path, device, inode, writes, created_at) \
                 VALUES (?1, ?2, ?3, ?4, ?5, {NOW})"
            );
            for image in vm.images {
                let path = image.path.as_os_str().as_bytes();
                let values =
                    params![vm.name.as_str(), path, image.device as i64, image.inode as i64, image.writes];
                transaction.execute(&sql, values).map_err(fail())?;
            }
            insert_operation(transaction, vm.name, OperationKind::Create, owner).map_err(fail())
        })
    }

    fn vm(&self, name: &VmName) -> Result<Option<VmRow>> {
        let sql = format!("SELECT {VM_COLUMNS} FROM vms WHERE id = ?1");
        self.read(|connection| connection.query_row(&sql, [name.as_str()], vm_row).optional())
    }

    fn vms(&self) -> Result<Vec<VmRow>> {
        let sql = format!("SELECT {VM_COLUMNS} FROM vms ORDER BY id");
        self.read(|connection| connection.prepare(&sql)?.query_map([], vm_row)?.collect())
    }

    fn change_vm(&self, name: &VmName, state: State, run: Option<&str>, change: &VmChange) -> Result<bool> {
        self.write("change a VM in", |transaction| {
            let fail = || Error::store("change a VM in");
            let sql = "SELECT 1 FROM vms WHERE id = ?1 AND status = ?2 AND run IS ?3";
            let values = params![name.as_str(), state.name(), run];
            let same = transaction.query_row(sql, values, |_| Ok(())).optional().map_err(fail())?;
            match same {
                Some(()) => Ok(update_vm(transaction, name.as_str(), change).map_err(fail())? == 1),
                None => Ok(false),
            }
        })
    }

    fn configure_vm(&self, name: &VmName, config: &str) -> Result<()> {
        self.write("configure a VM in", |transaction| {
            exists(transaction, name)?;
            let sql = format!("UPDATE vms SET config = ?2, updated_at = {NOW} WHERE id = ?1");
            let changed = transaction.execute(&sql, params![name.as_str(), config]);
            changed.map(drop).map_err(Error::store("configure a VM in"))
        })
    }

    fn delete_vm(&self, name: &VmName) -> Result<bool> {
        self.write("remove a VM from", |transaction| {
            let removed = transaction.execute("DELETE FROM vms WHERE id = ?1", [name.as_str()]);
            Ok(removed.map_err(Error::store("remove a VM from"))? == 1)
        })
    }

    fn begin(&self, name: &VmName, kind: OperationKind, owner: &ProcessIdentity) -> Result<Begun> {
        self.write("open an operation in", |transaction| {
            exists(transaction, name)?;
            if let Some(open) = open_operation(transaction, name).map_err(Error::store("read"))? {
                return Ok(Begun::Taken(open));
            }
            let id = insert_operation(transaction, name, kind, owner);
            Ok(Begun::Opened(id.map_err(Error::store("open an operation in"))?))
        })
    }

    fn take_over(&self, operation: &Operation, owner: &ProcessIdentity) -> Result<bool> {
        self.write("take over an operation in", |transaction| {
            let old = &operation.owner;
            let changed = transaction.execute(
                "UPDATE operations SET owner_pid = ?2, owner_start = ?3, owner_boot = ?4 WHERE id = ?1 \
                 AND state = 'open' AND owner_pid = ?5 AND owner_start = ?6 AND owner_boot = ?7",
                params![
                    operation.id.0,
                    owner.pid,
                    owner.start_time as i64,
                    owner.boot_id,
                    old.pid,
                    old.start_time as i64,
                    old.boot_id
                ],
            );
            Ok(changed.map_err(Error::store("take over an operation in"))? == 1)
        })
    }

    fn finish(&self, id: OperationId, outcome: Outcome, change: Option<&VmChange>) -> Result<()> {
        self.write("close an operation in", |transaction| {
            let fail = || Error::store("close an operation in");
            let sql = "SELECT vm_id FROM operations WHERE id = ?1 AND state = 'open'";
            let vm: Option<String> =
                transaction.query_row(sql, [id.0], |row| row.get(0)).optional().map_err(fail())?;
            let Some(vm) = vm else { return Ok(()) };
            let sql = format!("UPDATE operations SET state = ?2, closed_at = {NOW} WHERE id = ?1");
            transaction.execute(&sql, params![id.0, outcome.name()]).map_err(fail())?;
            let sql = "DELETE FROM operations WHERE vm_id = ?1 AND state <> 'open' AND id NOT IN \
                       (SELECT id FROM operations WHERE vm_id = ?1 ORDER BY id DESC LIMIT ?2)";
            transaction.execute(sql, params![vm, KEPT_OPERATIONS]).map_err(fail())?;
            if let Some(change) = change {
                update_vm(transaction, &vm, change).map_err(fail())?;
            }
            Ok(())
        })
    }

    fn open_operations(&self) -> Result<Vec<Operation>> {
        let sql = format!("SELECT {OPERATION_COLUMNS} FROM operations WHERE state = 'open' ORDER BY id");
        self.read(|connection| connection.prepare(&sql)?.query_map([], operation_row)?.collect())
    }

    fn image_users(&self, path: &Path, device: u64, inode: u64) -> Result<Vec<VmName>> {
        let sql = "SELECT DISTINCT vm_id FROM images WHERE path = ?1 OR (device = ?2 AND inode = ?3) ORDER BY vm_id";
        let values = params![path.as_os_str().as_bytes(), device as i64, inode as i64];
        let name = |row: &Row<'_>| {
            let name: String = row.get(0)?;
            name.parse().map_err(|_| unexpected(0, &name))
        };
        self.read(|connection| connection.prepare(sql)?.query_map(values, name)?.collect())
    }

    fn lease_ip(&self, name: &VmName, pool: IpPool) -> Result<IpLease> {
        self.write("lease an address in", |transaction| {
            let fail = || Error::store("lease an address in");
            exists(transaction, name)?;
            let sql = "SELECT vm_id, ip, tap_device FROM ip_leases";
            let mut leases = transaction.prepare(sql).map_err(fail())?;
            let row = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
            let leases: Vec<(String, String, String)> =
                leases.query_map([], row).and_then(Iterator::collect).map_err(fail())?;
            if let Some((_, ip, tap_device)) = leases.iter().find(|(vm, ..)| vm == name.as_str()) {
                let ip = ip.parse().map_err(|_| Error::row(name.as_str(), "address", ip))?;
                return Ok(IpLease { ip, tap_device: tap_device.clone() });
            }
            let taken: std::collections::HashSet<&str> =
                leases.iter().map(|(_, ip, _)| ip.as_str()).collect();
            let mut candidates = u32::from(pool.first)..=u32::from(pool.last);
            let free = candidates.find(|ip| !taken.contains(Ipv4Addr::from(*ip).to_string().as_str()));
            let Some(free) = free else {
                return Err(Error::exhausted("address", pool.first.to_string(), pool.last.to_string()));
            };
            let ip = Ipv4Addr::from(free);
            // At most fifteen characters, whatever the pool: the number in hexadecimal where it is long.
            let [a, b, .., last] = ip.octets();
            let tap_device = if [a, b] == [172, 16] && ip.octets()[2] == 0 {
                format!("tap{last}")
            } else {
                format!("tap{free:x}")
            };
            let sql = format!(
                "INSERT INTO ip_leases (ip, vm_id, tap_device, created_at) VALUES (?1, ?2, ?3, {NOW})"
            );
            let values = params![ip.to_string(), name.as_str(), tap_device];
            transaction.execute(&sql, values).map_err(fail())?;
            Ok(IpLease { ip, tap_device })
        })
    }

    fn release_ip(&self, name: &VmName) -> Result<()> {
        self.write("release an address in", |transaction| {
            let removed = transaction.execute("DELETE FROM ip_leases WHERE vm_id = ?1", [name.as_str()]);
            removed.map(drop).map_err(Error::store("release an address in"))
        })
    }

    fn reserve_ssh_port(&self, name: &VmName, guest_port: u16) -> Result<u16> {
        self.write("reserve a port in", |transaction| {
            let fail = || Error::store("reserve a port in");
            exists(transaction, name)?;
            let sql = "SELECT vm_id, host_port FROM ssh_forwards";
            let mut forwards = transaction.prepare(sql).map_err(fail())?;
            let forwards: Vec<(String, u16)> = forwards
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
                .and_then(Iterator::collect)
                .map_err(fail())?;
            if let Some((_, port)) = forwards.iter().find(|(vm, _)| vm == name.as_str()) {
                return Ok(*port);
            }
            let taken: std::collections::HashSet<u16> = forwards.iter().map(|(_, port)| *port).collect();
            let Some(port) = SSH_PORTS.into_iter().find(|port| !taken.contains(port)) else {
                let (first, last) = (SSH_PORTS.start().to_string(), SSH_PORTS.end().to_string());
                return Err(Error::exhausted("port", first, last));
            };
            let sql = format!(
                "INSERT INTO ssh_forwards (vm_id, host_port, guest_port, created_at) VALUES (?1, ?2, ?3, {NOW})"
            );
            transaction.execute(&sql, params![name.as_str(), port, guest_port]).map_err(fail())?;
            Ok(port)
        })
    }

    fn release_ssh_port(&self, name: &VmName) -> Result<()> {
        self.write("release a port in", |transaction| {
            let removed = transaction.execute("DELETE FROM ssh_forwards WHERE vm_id = ?1", [name.as_str()]);
            removed.map(drop).map_err(Error::store("release a port in"))
        })
    }

    fn record_event(&self, name: &VmName, kind: &str, detail: &str) -> Result<()> {
        self.write("record an event in", |transaction| {
            let fail = || Error::store("record an event in");
            let sql =
                format!("INSERT INTO events (vm_id, kind, detail, created_at) VALUES (?1, ?2, ?3, {NOW})");
            transaction.execute(&sql, params![name.as_str(), kind, detail]).map_err(fail())?;
            let oldest = transaction.last_insert_rowid().saturating_sub(KEPT_EVENTS);
            transaction.execute("DELETE FROM events WHERE id <= ?1", [oldest]).map(drop).map_err(fail())
        })
    }

    fn events(&self, after: i64) -> Result<Vec<EventRow>> {
        let sql = "SELECT id, vm_id, kind, detail, created_at FROM events WHERE id > ?1 ORDER BY id";
        let event = |row: &Row<'_>| {
            Ok(EventRow {
                id: row.get(0)?,
                vm: row.get(1)?,
                kind: row.get(2)?,
                detail: row.get(3)?,
                created_at: row.get(4)?,
            })
        };
        self.read(|connection| connection.prepare(sql)?.query_map([after], event)?.collect())
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
