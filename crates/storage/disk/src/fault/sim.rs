use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Loss;
use super::volatile::Cached;
use crate::host::{Conflict, FileKind, Handle, Host, LockMode, OpenMode, Region, Stat};

/// Who acts on the host.
const USER: u32 = 1000;

/// What happens to the chosen operation of a [`SimHost`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SimFault {
    /// The host stops before it; nothing works any more until [`SimHost::after_crash`].
    Crash,
    /// The host stops when this many bytes of a write are done, rounded down to whole sectors.
    TornCrash(usize),
    /// It fails without effect, and the host goes on. A sync that fails loses what it should have written.
    Fail(io::ErrorKind),
    /// It fails when this many bytes of a write are done, rounded down to whole sectors.
    TornFail(usize, io::ErrorKind),
}

/// A host filesystem in memory whose files and names are volatile until they are synced.
///
/// Operations that change something, or make something durable, are counted from zero. Folders need not be made.
///
/// ```
/// use vmwright_disk::fault::{Loss, SimHost};
/// use vmwright_disk::{Access, Disk, Transaction, TransactionOptions};
/// use std::path::Path;
///
/// let host = SimHost::new();
/// host.add("/disk", vec![0; 4096]);
/// let txn = Transaction::begin(TransactionOptions::default().on_host(&host));
/// txn.open(Path::new("/disk"), Access::Write)?.write_at(&[1; 512], 0)?;
/// assert_eq!(host.content("/disk").unwrap()[0], 0);
/// txn.commit()?;
/// assert_eq!(host.after_crash(Loss::Everything).content("/disk").unwrap()[0], 1);
/// # Ok::<(), vmwright_disk::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct SimHost(Arc<Mutex<World>>);

#[derive(Debug)]
struct World {
    /// No file grows longer than this.
    max_len: u64,
    inodes: Vec<Inode>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    pending_names: Vec<NameChange>,
    log: Vec<String>,
    fault: Option<(usize, SimFault)>,
    stopped: bool,
    next_handle: u64,
}

#[derive(Debug, Default)]
struct Inode {
    cached: Cached,
    owner: u32,
    locks: Vec<(u64, LockMode)>,
}

#[derive(Debug, Clone)]
enum NameChange {
    Create { path: PathBuf, inode: usize },
    Rename { from: PathBuf, to: PathBuf, inode: usize },
    Unlink { path: PathBuf },
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            Self::Create { path, inode } => {
                names.insert(path.clone(), *inode);
            }
            Self::Rename { from, to, inode } => {
                names.remove(from);
                names.insert(to.clone(), *inode);
            }
            Self::Unlink { path } => {
                names.remove(path);
            }
        }
    }

    fn is_in(&self, dir: &Path) -> bool {
        let (Self::Create { path, .. } | Self::Rename { to: path, .. } | Self::Unlink { path }) = self;
        path.parent() == Some(dir)
    }
}

impl World {
    fn new(max_len: u64) -> Self {
        Self {
            max_len,
            inodes: Vec::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            pending_names: Vec::new(),
            log: Vec::new(),
            fault: None,
            stopped: false,
            next_handle: 0,
        }
    }

    /// Counts an operation and lets it meet its fault; `tear` does part of it.
    fn operation(&mut self, what: String, tear: impl FnOnce(&mut Self, usize)) -> io::Result<()> {
        self.alive()?;
        let number = self.log.len();
        self.log.push(what);
        match self.fault {
            Some((nth, fault)) if nth == number => {
                match fault {
                    SimFault::Fail(kind) => return Err(kind.into()),
                    SimFault::Crash => {}
                    SimFault::TornCrash(bytes) => tear(self, bytes),
                    SimFault::TornFail(bytes, kind) => {
                        tear(self, bytes);
                        return Err(kind.into());
                    }
                }
                self.stopped = true;
                self.alive()
            }
            _ => Ok(()),
        }
    }

    fn alive(&self) -> io::Result<()> {
        if self.stopped { Err(io::Error::other("the simulated host has stopped")) } else { Ok(()) }
    }

    fn lookup(&self, path: &Path) -> io::Result<usize> {
        self.alive()?;
        self.names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn new_inode(&mut self, bytes: Vec<u8>) -> usize {
        self.inodes.push(Inode { cached: Cached::new(bytes), owner: USER, locks: Vec::new() });
        self.inodes.len() - 1
    }

    fn change_names(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.pending_names.push(change);
    }
}

impl Default for SimHost {
    fn default() -> Self {
        Self::new()
    }
}

impl SimHost {
    /// Makes a host without files, on which files may grow to a GiB.
    pub fn new() -> Self {
        Self::with_max_len(1 << 30)
    }

    /// Makes a host without files, on which no file grows longer than `max_len` bytes.
    pub fn with_max_len(max_len: u64) -> Self {
        Self(Arc::new(Mutex::new(World::new(max_len))))
    }

    /// Adds a file, durably.
    pub fn add(&self, path: impl Into<PathBuf>, bytes: Vec<u8>) {
        let (mut world, path) = (self.world(), path.into());
        let inode = world.new_inode(bytes);
        world.names.insert(path.clone(), inode);
        world.durable_names.insert(path, inode);
    }

    /// What the file at `path` holds, as a program that reads it would see.
    pub fn content(&self, path: impl AsRef<Path>) -> Option<Vec<u8>> {
        let world = self.world();
        let inode = world.names.get(path.as_ref())?;
        Some(world.inodes[*inode].cached.live().to_vec())
    }

    /// Overwrites part of a file as another program would, durably. Does nothing where there is no such file.
    pub fn meddle(&self, path: impl AsRef<Path>, offset: usize, bytes: &[u8]) {
        let mut world = self.world();
        if let Some(inode) = world.names.get(path.as_ref()).copied() {
            world.inodes[inode].cached.write(bytes, offset);
            world.inodes[inode].cached.sync();
        }
    }

    /// Gives a file to another user. Does nothing where there is no such file.
    pub fn chown(&self, path: impl AsRef<Path>, owner: u32) {
        let mut world = self.world();
        if let Some(inode) = world.names.get(path.as_ref()).copied() {
            world.inodes[inode].owner = owner;
        }
    }

    /// Every name there is.
    pub fn names(&self) -> Vec<PathBuf> {
        self.world().names.keys().cloned().collect()
    }

    /// Sets which operation meets a fault.
    pub fn set_fault(&self, nth: usize, fault: SimFault) {
        self.world().fault = Some((nth, fault));
    }

    /// The operations so far, such as "sync /disk", in order.
    pub fn log(&self) -> Vec<String> {
        self.world().log.clone()
    }

    /// How many sectors, lengths and names are volatile now.
    pub fn pending(&self) -> usize {
        let world = self.world();
        world.inodes.iter().map(|inode| inode.cached.pending()).sum::<usize>() + world.pending_names.len()
    }

    /// The host as it comes up after power was lost now.
    pub fn after_crash(&self, loss: Loss) -> Self {
        let world = self.world();
        let mut next = World::new(world.max_len);
        let mut number = 0;
        for inode in &world.inodes {
            let copy = next.new_inode(inode.cached.after_crash(loss, number));
            next.inodes[copy].owner = inode.owner;
            number += inode.cached.pending();
        }
        next.names = world.durable_names.clone();
        for change in &world.pending_names {
            if !loss.loses(number) {
                change.apply(&mut next.names);
            }
            number += 1;
        }
        next.durable_names = next.names.clone();
        Self(Arc::new(Mutex::new(next)))
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handle(&self, world: &mut World, inode: usize, path: &Path, counted: bool) -> Arc<dyn Handle> {
        world.next_handle += 1;
        let (host, path, id) = (self.clone(), path.to_owned(), world.next_handle);
        Arc::new(SimHandle { host, inode, path, id, counted })
    }
}

impl Host for SimHost {
    fn canonicalize(&self, path: &Path) -> io::Result<PathBuf> {
        self.world().lookup(path).map(|_| path.to_owned())
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn Handle>> {
        let mut world = self.world();
        let inode = match mode {
            OpenMode::Read | OpenMode::Write => world.lookup(path)?,
            OpenMode::Create | OpenMode::CreatePrivate if world.names.contains_key(path) => {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            OpenMode::Create | OpenMode::CreatePrivate => {
                world.operation(format!("create {}", path.display()), |_, _| {})?;
                let inode = world.new_inode(Vec::new());
                world.change_names(NameChange::Create { path: path.to_owned(), inode });
                inode
            }
        };
        Ok(self.handle(&mut world, inode, path, true))
    }

    fn user(&self) -> u32 {
        USER
    }

    fn identity(&self, path: &Path) -> io::Result<(u64, u64)> {
        Ok((1, self.world().lookup(path)? as u64 + 1))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut world = self.world();
        let inode = world.lookup(from)?;
        world.operation(format!("rename {}", to.display()), |_, _| {})?;
        world.change_names(NameChange::Rename { from: from.to_owned(), to: to.to_owned(), inode });
        Ok(())
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        let mut world = self.world();
        world.lookup(path)?;
        world.operation(format!("unlink {}", path.display()), |_, _| {})?;
        world.change_names(NameChange::Unlink { path: path.to_owned() });
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut world = self.world();
        world.operation(format!("sync {}", dir.display()), |_, _| {})?;
        let world = &mut *world;
        for change in world.pending_names.extract_if(.., |change| change.is_in(dir)) {
            change.apply(&mut world.durable_names);
        }
        Ok(())
    }

    fn can_create_in(&self, _dir: &Path) -> bool {
        true
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let world = self.world();
        world.alive()?;
        Ok(world.names.keys().filter(|path| path.parent() == Some(dir)).cloned().collect())
    }

    fn scratch(&self, dir: &Path) -> io::Result<Arc<dyn Handle>> {
        let mut world = self.world();
        world.alive()?;
        let inode = world.new_inode(Vec::new());
        Ok(self.handle(&mut world, inode, dir, false))
    }
}

#[derive(Debug)]
struct SimHandle {
    host: SimHost,
    inode: usize,
    path: PathBuf,
    id: u64,
    /// Temporary files without a name take no part in crashes.
    counted: bool,
}

impl SimHandle {
    fn change(
        &self,
        verb: &str,
        tear: impl FnOnce(&mut Cached, usize),
        work: impl FnOnce(&mut Cached),
    ) -> io::Result<()> {
        let mut world = self.host.world();
        if self.counted {
            let what = format!("{verb} {}", self.path.display());
            world.operation(what, |world, bytes| tear(&mut world.inodes[self.inode].cached, bytes))?;
        }
        work(&mut world.inodes[self.inode].cached);
        Ok(())
    }
}

/// How many of `bytes` end a sector when written at `offset`; all if the write is not longer.
fn whole_sectors(offset: usize, bytes: usize, len: usize) -> usize {
    let end = offset + bytes;
    if bytes >= len { len } else { (end - end % 512).saturating_sub(offset) }
}

impl Handle for SimHandle {
    fn stat(&self) -> io::Result<Stat> {
        let world = self.host.world();
        world.alive()?;
        let len = world.inodes[self.inode].cached.live().len() as u64;
        let links = world.names.values().filter(|inode| **inode == self.inode).count() as u64;
        Ok(Stat {
            device: 1,
            inode: self.inode as u64 + 1,
            len,
            links,
            owner: world.inodes[self.inode].owner,
            kind: FileKind::Regular,
        })
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let world = self.host.world();
        world.alive()?;
        let live = world.inodes[self.inode].cached.live();
        let range = (offset as usize).checked_add(buf.len()).and_then(|end| live.get(offset as usize..end));
        buf.copy_from_slice(range.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let at = offset as usize;
        let tear = |cached: &mut Cached, bytes: usize| {
            cached.write(&data[..whole_sectors(at, bytes, data.len())], at)
        };
        self.change("write", tear, |cached| cached.write(data, at))
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        let zeros = vec![0; len as usize];
        let at = offset as usize;
        let tear = |cached: &mut Cached, bytes: usize| {
            cached.write(&zeros[..whole_sectors(at, bytes, zeros.len())], at)
        };
        self.change("zero", tear, |cached| cached.write(&zeros, at))
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.zero(offset, len)
    }

    fn reserve(&self, _offset: u64, _len: u64) -> io::Result<()> {
        self.change("reserve", |_, _| {}, |_| {})
    }

    fn free_space(&self) -> io::Result<u64> {
        Ok(u64::MAX)
    }

    fn copies_on_write(&self) -> bool {
        false
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if len > self.host.world().max_len {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.change("resize", |_, _| {}, |cached| cached.resize(len as usize))
    }

    fn sync(&self, _metadata: bool) -> io::Result<()> {
        let result = self.change("sync", |_, _| {}, Cached::sync);
        let mut world = self.host.world();
        if result.is_err() && !world.stopped {
            world.inodes[self.inode].cached.fail_sync();
        }
        result
    }

    fn region_at(&self, offset: u64) -> io::Result<Region> {
        const BLOCK: usize = 4096;
        let world = self.host.world();
        world.alive()?;
        let live = world.inodes[self.inode].cached.live();
        let blocks = live.chunks(BLOCK).skip(offset as usize / BLOCK);
        let mut kinds = blocks.map(|block| block.iter().all(|byte| *byte == 0));
        let hole = kinds.next().unwrap_or(true);
        let same = 1 + kinds.take_while(|kind| *kind == hole).count() as u64;
        Ok(Region { hole, end: (offset / BLOCK as u64 + same) * BLOCK as u64 })
    }

    fn lock(&self, mode: LockMode) -> io::Result<Result<(), Conflict>> {
        let mut world = self.host.world();
        world.alive()?;
        let locks = &mut world.inodes[self.inode].locks;
        let excludes = |(id, held): &(u64, LockMode)| {
            *id != self.id && (mode == LockMode::Write || *held == LockMode::Write)
        };
        if locks.iter().any(excludes) {
            return Ok(Err(Conflict { holder: None }));
        }
        locks.push((self.id, mode));
        Ok(Ok(()))
    }
}

impl Drop for SimHandle {
    fn drop(&mut self) {
        self.host.world().inodes[self.inode].locks.retain(|(id, _)| *id != self.id);
    }
}
