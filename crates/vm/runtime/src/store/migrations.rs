//! The store's layout, one step per version.

/// Step `n` leads from version `n` to version `n + 1`. A step that was ever released is never changed.
pub(super) const MIGRATIONS: &[&str] = &["
CREATE TABLE vms (
    id TEXT PRIMARY KEY,
    status TEXT NOT NULL CHECK (status IN ('CREATED', 'RUNNING', 'PAUSED', 'STOPPED', 'ERROR')),
    config TEXT NOT NULL,
    network TEXT,
    pid INTEGER,
    socket_path TEXT,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    run TEXT,
    detail TEXT,
    ephemeral INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE ip_leases (
    ip TEXT PRIMARY KEY,
    vm_id TEXT NOT NULL UNIQUE,
    tap_device TEXT NOT NULL,
    created_at TEXT NOT NULL,
    FOREIGN KEY (vm_id) REFERENCES vms(id) ON DELETE CASCADE
);
CREATE TABLE ssh_forwards (
    vm_id TEXT PRIMARY KEY,
    host_port INTEGER NOT NULL UNIQUE,
    guest_port INTEGER NOT NULL,
    created_at TEXT NOT NULL,
    FOREIGN KEY (vm_id) REFERENCES vms(id) ON DELETE CASCADE
);
CREATE TABLE snapshots (
    name TEXT PRIMARY KEY,
    vm_id TEXT,
    path TEXT NOT NULL,
    config TEXT NOT NULL,
    created_at TEXT NOT NULL,
    FOREIGN KEY (vm_id) REFERENCES vms(id) ON DELETE SET NULL
);
CREATE TABLE images (
    vm_id TEXT NOT NULL,
    path BLOB NOT NULL,
    device INTEGER NOT NULL,
    inode INTEGER NOT NULL,
    writes INTEGER NOT NULL,
    created_at TEXT NOT NULL,
    PRIMARY KEY (vm_id, path),
    FOREIGN KEY (vm_id) REFERENCES vms(id) ON DELETE CASCADE
);
CREATE INDEX images_by_inode ON images (inode);
CREATE TABLE operations (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    vm_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('open', 'done', 'failed', 'undone')),
    owner_pid INTEGER NOT NULL,
    owner_start INTEGER NOT NULL,
    owner_boot TEXT NOT NULL,
    created_at TEXT NOT NULL,
    closed_at TEXT,
    FOREIGN KEY (vm_id) REFERENCES vms(id) ON DELETE CASCADE
);
CREATE UNIQUE INDEX one_open_operation ON operations (vm_id) WHERE state = 'open';
CREATE INDEX operations_by_vm ON operations (vm_id);
CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    vm_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    detail TEXT NOT NULL,
    created_at TEXT NOT NULL
);
"];
