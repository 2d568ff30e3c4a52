use std::sync::Arc;

use vmwright_disk::Disk;

use crate::context::{ALLOCATION, DEPTH, MetaContext, StatusRange, allocation_at, depth_at};
use crate::error::Reason;
use crate::layout::{
    CAN_MULTI_CONN, HAS_FLAGS, MAX_STRING, READ_ONLY, SEND_CACHE, SEND_DF, SEND_FAST_ZERO, SEND_FLUSH,
    SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES,
};
use crate::{MAX_PAYLOAD, Result};

/// A disk under a name by which clients choose it; read-only unless made [`Export::writable`].
#[derive(Clone)]
pub struct Export {
    name: String,
    description: Option<String>,
    disk: Arc<dyn Disk>,
    read_only: bool,
    preferred_block: u32,
    fast_zero: bool,
    depth: bool,
    contexts: Vec<Arc<dyn MetaContext>>,
}

impl Export {
    /// Exports a disk for reading.
    pub fn new(name: impl Into<String>, disk: Arc<dyn Disk>) -> Self {
        Self {
            name: name.into(),
            description: None,
            disk,
            read_only: true,
            preferred_block: 64 << 10,
            fast_zero: false,
            depth: false,
            contexts: Vec::new(),
        }
    }

    /// Lets clients write too, where the disk allows that.
    ///
    /// Clients are told that several connections may be used at once: whoever else writes to what lies beneath must do
    /// so through the same disk.
    pub fn writable(mut self) -> Self {
        self.read_only = self.disk.is_read_only();
        self
    }

    /// Says what this is, for people.
    pub fn described(mut self, description: impl Into<String>) -> Self {
        self.description = Some(description.into());
        self
    }

    /// Sets the size in bytes of requests that are carried out best, such as the image's cluster size; 64 KiB by default.
    ///
    /// The protocol wants a power of two; what is not one is rounded up, and kept between 512 bytes and 32 MiB.
    pub fn preferring_blocks_of(mut self, bytes: u64) -> Self {
        let bytes = u32::try_from(bytes).unwrap_or(MAX_PAYLOAD).clamp(512, MAX_PAYLOAD);
        self.preferred_block = bytes.next_power_of_two();
        self
    }

    /// Says that the disk always makes a range zero faster than it would write zeros.
    ///
    /// Without it, a client that wants zeros only if that is fast gets them only where there are zeros already.
    pub fn zeroing_fast(mut self) -> Self {
        self.fast_zero = true;
        self
    }

    /// Offers `qemu:allocation-depth`, by which a client sees how deep in a chain of images each range is.
    pub fn showing_depth(mut self) -> Self {
        self.depth = true;
        self
    }

    /// Offers something more that is known about the disk.
    pub fn with_context(mut self, context: Arc<dyn MetaContext>) -> Self {
        self.contexts.push(context);
        self
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What this is, for people.
    pub fn description(&self) -> Option<&str> {
        self.description.as_deref()
    }

    /// The disk.
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// Whether every attempt to change it is refused.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    pub(crate) fn preferred_block(&self) -> u32 {
        self.preferred_block
    }

    pub(crate) fn zeroes_fast(&self) -> bool {
        self.fast_zero
    }

    /// The transmission flags.
    pub(crate) fn flags(&self, structured: bool) -> u16 {
        // Every connection reaches the same disk, whose flush covers all writes.
        let mut flags = HAS_FLAGS | SEND_FLUSH | SEND_FUA | CAN_MULTI_CONN | SEND_CACHE;
        flags |= match self.read_only {
            true => READ_ONLY,
            false => SEND_TRIM | SEND_WRITE_ZEROES | SEND_FAST_ZERO,
        };
        if structured { flags | SEND_DF } else { flags }
    }

    /// The names of all contexts, in the order of their numbers.
    pub(crate) fn context_names(&self) -> impl Iterator<Item = (ContextId, &str)> {
        let fixed = [(ContextId::Allocation, ALLOCATION), (ContextId::Depth, DEPTH)];
        let count = if self.depth { 2 } else { 1 };
        let own = self.contexts.iter().enumerate();
        fixed.into_iter().take(count).chain(own.map(|(at, context)| (ContextId::Own(at), context.name())))
    }

    pub(crate) fn status_at(&self, context: ContextId, offset: u64) -> vmwright_disk::Result<StatusRange> {
        match context {
            ContextId::Allocation => allocation_at(&*self.disk, offset),
            ContextId::Depth => depth_at(&*self.disk, offset),
            ContextId::Own(at) => match self.contexts.get(at) {
                Some(context) => context.status_at(offset),
                // The flags are defined so that zero says nothing.
                None => Ok(StatusRange { len: self.disk.len().saturating_sub(offset), flags: 0 }),
            },
        }
    }

    fn check(&self) -> Result<()> {
        let fail = |what| Err(Reason::Export { name: self.name.clone(), what }.into());
        let string_is_bad = |text: &str| text.len() > MAX_STRING || text.contains('\0');
        if string_is_bad(&self.name) || self.description.as_deref().is_some_and(string_is_bad) {
            return fail("its name and description must have at most 4096 bytes, and no NUL");
        }
        for context in &self.contexts {
            let name = context.name();
            let namespace = name.split_once(':').map_or("", |(namespace, _)| namespace);
            if string_is_bad(name) || namespace.is_empty() {
                return fail(
                    "the name of a context must be a namespace, a colon and a name of at most 4096 bytes",
                );
            }
        }
        let mut names: Vec<&str> = self.context_names().map(|(_, name)| name).collect();
        names.sort_unstable();
        match names.windows(2).any(|pair| pair[0] == pair[1]) {
            true => fail("two of its contexts have the same name"),
            false => Ok(()),
        }
    }
}

impl std::fmt::Debug for Export {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Export")
            .field("name", &self.name)
            .field("len", &self.disk.len())
            .field("read_only", &self.read_only)
            .finish()
    }
}

/// One of the contexts of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ContextId {
    Allocation,
    Depth,
    Own(usize),
}

impl ContextId {
    /// The number by which client and server call it.
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::Allocation => 0,
            Self::Depth => 1,
            Self::Own(at) => u32::try_from(at).unwrap_or(u32::MAX).saturating_add(2),
        }
    }
}

/// Everything that one server exports, in the order in which it is listed.
#[derive(Debug, Clone)]
pub struct Exports(Vec<Arc<Export>>);

impl Exports {
    /// Checks that there is something, and that all names differ and are allowed.
    pub fn new(exports: Vec<Export>) -> Result<Self> {
        let fail = |name: &str, what| Err(Reason::Export { name: name.to_owned(), what }.into());
        if exports.is_empty() {
            return fail("", "a server needs at least one");
        }
        for (at, export) in exports.iter().enumerate() {
            export.check()?;
            if exports[..at].iter().any(|other| other.name == export.name) {
                return fail(&export.name, "another one has the same name");
            }
        }
        Ok(Self(exports.into_iter().map(Arc::new).collect()))
    }

    /// The export of this name; the first one where the name is empty and no export has an empty name.
    pub fn find(&self, name: &str) -> Option<&Arc<Export>> {
        let exact = self.0.iter().find(|export| export.name == name);
        exact.or_else(|| self.0.first().filter(|_| name.is_empty()))
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Export>> {
        self.0.iter()
    }
}
