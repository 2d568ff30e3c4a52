use std::path::PathBuf;
use std::sync::Arc;

use crate::file::Sharing;
use crate::host::{Host, RealHost};

/// How the changes of a transaction reach the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WriteMode {
    /// All at once, through a redo file.
    #[default]
    Transaction,
    /// In place and at once: what is durable after a crash is up to the order in which a format writes.
    Ordered,
}

/// How a [`Transaction`](crate::Transaction) treats its files; the default fits images in ordinary folders.
#[derive(Debug, Clone, Default)]
pub struct TransactionOptions {
    pub(crate) mode: WriteMode,
    pub(crate) sharing: Sharing,
    pub(crate) redo_dir: Option<PathBuf>,
    host: Option<Arc<dyn Host>>,
}

impl TransactionOptions {
    /// Sets how changes reach the files.
    pub fn mode(mut self, mode: WriteMode) -> Self {
        self.mode = mode;
        self
    }

    /// Sets whether files are locked. Without locks they can only be opened for reading.
    pub fn sharing(mut self, sharing: Sharing) -> Self {
        self.sharing = sharing;
        self
    }

    /// Sets a lasting folder for redo files: for images that are block devices, in read-only folders, or known by
    /// several names. It must be named again whenever such an image is opened after a crash.
    pub fn redo_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.redo_dir = Some(dir.into());
        self
    }

    /// Works on a simulated host instead of the one this process runs on.
    #[cfg(any(test, feature = "test-util"))]
    pub fn on_host(mut self, host: &crate::fault::SimHost) -> Self {
        self.host = Some(Arc::new(host.clone()));
        self
    }

    pub(crate) fn host(&self) -> Arc<dyn Host> {
        self.host.clone().unwrap_or_else(|| Arc::new(RealHost))
    }
}
