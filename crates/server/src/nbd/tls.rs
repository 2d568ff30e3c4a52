//! Encryption, with credentials laid out in a folder as QEMU and nbdkit have them.

use std::io::{self, IoSlice, Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};

use super::wire::Timed;
use crate::{Error, Result};

/// What is encrypted at a time.
const PIECE: usize = 64 << 10;

/// Whether clients must encrypt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsMode {
    /// They may. Somebody between the two ends can then keep them from it.
    Allowed,
    /// They must, before they learn anything.
    Required,
}

/// Credentials and what they are for.
#[derive(Debug, Clone)]
pub struct Tls {
    config: Arc<ServerConfig>,
    mode: TlsMode,
}

impl Tls {
    /// Loads `server-cert.pem` and `server-key.pem` from a folder and, where clients must prove who they are, `ca-cert.pem`
    /// which their certificates must descend from.
    pub fn from_folder(folder: &Path, mode: TlsMode, verify_clients: bool) -> Result<Self> {
        let provider = Arc::new(default_provider());
        let certificate = folder.join("server-cert.pem");
        let chain = certificates(&certificate)?;
        let key_path = folder.join("server-key.pem");
        let key = PrivateKeyDer::from_pem_file(&key_path).map_err(|error| bad(&key_path, &error))?;
        let builder =
            ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| Error::credentials(folder, error))?;
        let builder = match verify_clients {
            false => builder.with_no_client_auth(),
            true => {
                let path = folder.join("ca-cert.pem");
                let roots = Arc::new(roots(&path)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
                builder.with_client_cert_verifier(verifier.map_err(|error| Error::credentials(&path, error))?)
            }
        };
        let config = builder.with_single_cert(chain, key);
        let config = config.map_err(|error| Error::credentials(&certificate, error))?;
        Ok(Self { config: Arc::new(config), mode })
    }

    pub(super) fn mode(&self) -> TlsMode {
        self.mode
    }

    pub(super) fn config(&self) -> &Arc<ServerConfig> {
        &self.config
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let certificates = CertificateDer::pem_file_iter(path).map_err(|error| bad(path, &error))?;
    let certificates: Result<Vec<_>, _> = certificates.collect();
    let certificates = certificates.map_err(|error| bad(path, &error))?;
    match certificates.is_empty() {
        true => Err(Error::credentials(path, "it holds no certificate")),
        false => Ok(certificates),
    }
}

fn roots(path: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| Error::credentials(path, error))?;
    }
    Ok(roots)
}

fn bad(path: &Path, error: &rustls::pki_types::pem::Error) -> Error {
    use rustls::pki_types::pem::Error as Pem;
    match error {
        Pem::Io(source) => {
            Error::host("read", path.display(), io::Error::new(source.kind(), source.to_string()))
        }
        Pem::NoItemsFound => Error::credentials(path, "it holds no private key in PEM"),
        _ => Error::credentials(path, error),
    }
}

/// An encrypted connection that one thread reads while another writes.
///
/// The state is locked only while bytes are encrypted or decrypted, never while a thread waits for the client.
pub(super) struct Secured {
    connection: Mutex<ServerConnection>,
    received: Mutex<Received>,
    /// What is encrypted and not yet sent; locked for as long as that takes, which keeps its order.
    outgoing: Mutex<Vec<u8>>,
}

struct Received {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Secured {
    /// Agrees with the client on keys.
    pub(super) fn accept(config: Arc<ServerConfig>, socket: &mut Timed<'_>) -> io::Result<Self> {
        let mut connection = ServerConnection::new(config).map_err(io::Error::other)?;
        while connection.is_handshaking() {
            connection.complete_io(socket)?;
        }
        let received = Received { bytes: vec![0; PIECE].into(), start: 0, end: 0 };
        Ok(Self {
            connection: Mutex::new(connection),
            received: Mutex::new(received),
            outgoing: Mutex::default(),
        })
    }

    pub(super) fn read(&self, socket: &Timed<'_>, buf: &mut [u8]) -> io::Result<usize> {
        let mut received = lock(&self.received);
        loop {
            match lock(&self.connection).reader().read(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // Requests say themselves where they end, so a missing farewell is no danger.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                other => return other,
            }
            let Received { bytes, start, end } = &mut *received;
            if start == end {
                let mut socket = socket;
                (*start, *end) = (0, socket.read(bytes)?);
            }
            let mut connection = lock(&self.connection);
            let mut ready = &bytes[*start..*end];
            *start += connection.read_tls(&mut ready)?;
            let processed = connection.process_new_packets();
            let answer = connection.wants_write();
            drop(connection);
            if answer {
                self.send(socket, &mut lock(&self.outgoing))?;
            }
            processed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
    }

    pub(super) fn write(&self, socket: &Timed<'_>, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut outgoing = lock(&self.outgoing);
        let mut taken = 0;
        let mut connection = lock(&self.connection);
        for part in parts {
            let piece = &part[..part.len().min(PIECE.saturating_sub(taken))];
            let count = connection.writer().write(piece)?;
            taken += count;
            if count < part.len() {
                break;
            }
        }
        drop(connection);
        self.send(socket, &mut outgoing)?;
        Ok(taken)
    }

    /// Says farewell.
    pub(super) fn close(&self, socket: &Timed<'_>) -> io::Result<()> {
        lock(&self.connection).send_close_notify();
        self.send(socket, &mut lock(&self.outgoing))
    }

    fn send(&self, mut socket: &Timed<'_>, outgoing: &mut Vec<u8>) -> io::Result<()> {
        let mut connection = lock(&self.connection);
        while connection.wants_write() {
            connection.write_tls(outgoing)?;
        }
        drop(connection);
        let sent = socket.write_all(outgoing);
        outgoing.clear();
        sent
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
