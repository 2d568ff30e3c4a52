use vmwright_vfs::ErrorKind;

/// The result of preparing a boot.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a disk's kernel or initramfs could not be prepared.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Error(Box<Reason>);

#[derive(Debug, thiserror::Error)]
pub(crate) enum Reason {
    #[error("cannot read {path} in the guest")]
    Guest { path: String, source: vmwright_vfs::Error },
    #[error("cannot use {path} on this host")]
    Host { path: String, source: std::io::Error },
    #[error("{what} is damaged at byte {offset}: {detail}")]
    Corrupt { what: &'static str, offset: usize, detail: &'static str },
    #[error("{what} is damaged")]
    Unpack { what: &'static str, source: std::io::Error },
    #[error("{what} is larger than {limit} bytes")]
    TooLarge { what: &'static str, limit: usize },
    #[error("{what} uses {feature}, which is not handled")]
    Unsupported { what: &'static str, feature: String },
    #[error("there is no kernel in /boot or /lib/modules")]
    NoKernel,
    #[error("there is no kernel {wanted}; there are {present}")]
    NoSuchKernel { wanted: String, present: String },
    #[error("there are no modules for the kernel {version}, and it has {module} not built in")]
    NoModule { version: String, module: String },
}

impl Error {
    pub(crate) fn corrupt(what: &'static str, offset: usize, detail: &'static str) -> Self {
        Reason::Corrupt { what, offset, detail }.into()
    }

    pub(crate) fn guest(path: &[u8]) -> impl FnOnce(vmwright_vfs::Error) -> Self + '_ {
        move |source| Reason::Guest { path: String::from_utf8_lossy(path).into_owned(), source }.into()
    }

    pub(crate) fn host(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Reason::Host { path: path.display().to_string(), source }.into()
    }

    /// What sort of failure this is.
    pub fn kind(&self) -> ErrorKind {
        match &*self.0 {
            Reason::Guest { source, .. } => source.kind(),
            Reason::Host { source, .. } => match source.kind() {
                std::io::ErrorKind::NotFound => ErrorKind::NotFound,
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
                _ => ErrorKind::Io,
            },
            Reason::Corrupt { .. } | Reason::Unpack { .. } => ErrorKind::Corrupt,
            Reason::TooLarge { .. } | Reason::Unsupported { .. } => ErrorKind::Unsupported,
            Reason::NoKernel | Reason::NoSuchKernel { .. } | Reason::NoModule { .. } => ErrorKind::NotFound,
        }
    }
}

impl From<Reason> for Error {
    fn from(reason: Reason) -> Self {
        Self(Box::new(reason))
    }
}
