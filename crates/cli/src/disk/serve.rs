//! `vmwright disk serve`

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use vmwright_disk::{Disk, Transaction, WriteMode};
use vmwright_image::chain::{ChainOptions, open_in};
use vmwright_image::{BitmapInfo, Format, Image};
use vmwright_server::nbd::{
    Config, Event, Export, Lifetime, Listen, MetaContext, Server, StatusRange, Stop, Tls, TlsMode,
};

use super::source::Reading;
use crate::failure::Failure;
use crate::opening::refuse_base;
use crate::output::{line, note, size};
use crate::signals;

/// What `disk serve` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The image
    image: PathBuf,
    /// Listen on this unix socket, which only you may use
    #[arg(short, long, value_name = "PATH", required_unless_present = "listen")]
    socket: Option<PathBuf>,
    /// Listen on this TCP address, such as 127.0.0.1:10809; port 0 takes a free one
    #[arg(short, long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// The name that clients ask for
    #[arg(long, default_value = "")]
    name: String,
    /// Let clients write: in place, durable where a client flushes
    #[arg(short, long, conflicts_with = "force_share")]
    write: bool,
    /// End when the last client has gone
    #[arg(long)]
    once: bool,
    /// Encrypt all connections by TLS, with server-cert.pem and server-key.pem of this folder
    #[arg(long, value_name = "FOLDER", help_heading = "Security")]
    tls: Option<PathBuf>,
    /// Only let clients in that have a certificate of the folder's ca-cert.pem
    #[arg(long, requires = "tls", help_heading = "Security")]
    verify_clients: bool,
    /// Allow an address that other machines can reach
    #[arg(long, help_heading = "Security")]
    remote: bool,
    /// How many clients may be connected at once
    #[arg(long, default_value_t = 16, help_heading = "Security")]
    clients: usize,
    /// Write even though machines are built on the image
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    reading: Reading,
}

/// Serves the image over NBD until a signal, or until the last client has gone.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let attempt = || format!("cannot serve {}", args.image.display());
    let image = Arc::new(
        if args.write { open_to_write(args) } else { args.reading.open(&args.image) }
            .with_context(attempt)?,
    );
    let config = config(args, &image).with_context(attempt)?;
    let encrypted = config.tls.is_some();
    let server = Server::bind(config).with_context(attempt)?;
    let stop = Stop::new().context("cannot wait for signals")?;
    let on_signal = stop.clone();
    signals::on_each(move || on_signal.stop())?;
    let how = if args.write { "for reading and writing" } else { "for reading" };
    for place in server.places().with_context(attempt)? {
        line(format!("serving {} {how} at {}", args.image.display(), uri(&place, &args.name, encrypted)))?;
    }
    let report = server.run(&stop).with_context(attempt)?;
    if args.write {
        image.flush().context("cannot make what was written durable")?;
    }
    let clients =
        if report.clients == 1 { "1 client".to_owned() } else { format!("{} clients", report.clients) };
    note(format!(
        "served {clients}; {} read, {} written",
        size(report.bytes_read),
        size(report.bytes_written)
    ));
    Ok(ExitCode::SUCCESS)
}

/// Opens the image so that each write reaches it in its format's own order.
fn open_to_write(args: &Args) -> anyhow::Result<Image> {
    if !args.force {
        refuse_base(&args.image)?;
    }
    let opening = args.reading.opening();
    let gate = opening.gate(&args.image)?;
    let transaction = Transaction::begin(opening.transaction().mode(WriteMode::Ordered));
    let how: ChainOptions = opening.chain(&args.image)?;
    Ok(open_in(&transaction, &args.image, opening.choice(), &gate, how)?)
}

fn config(args: &Args, image: &Arc<Image>) -> anyhow::Result<Config> {
    let mut export = Export::new(&args.name, image.clone() as Arc<dyn Disk>);
    export = export.showing_depth();
    if matches!(image.format(), Format::Qcow2 | Format::Vhdx | Format::Vdi) {
        // Zeros are noted, not written.
        export = export.zeroing_fast();
    }
    if let Some(unit) = image.cluster_size() {
        export = export.preferring_blocks_of(unit);
    }
    if args.write {
        export = export.writable();
    }
    for bitmap in bitmaps(image)? {
        export = export.with_context(Arc::new(Dirty::new(image, bitmap)));
    }
    let listen = [args.socket.clone().map(Listen::Unix), args.listen.map(Listen::Tcp)];
    let listen: Vec<_> = listen.into_iter().flatten().collect();
    let Some(first) = listen.first() else {
        return Err(Failure::usage("a place to listen is needed: --socket or --listen"));
    };
    let mut config = Config::new(vec![export], first.clone());
    config.listen = listen;
    config.remote = args.remote;
    config.same_user = true;
    config.limits.clients = args.clients;
    config.lifetime = if args.once { Lifetime::LastClient } else { Lifetime::Persistent };
    config.tls = args.tls.as_deref().map(|folder| tls(folder, args.verify_clients)).transpose()?;
    config.events = Some(Arc::new(tell));
    Ok(config)
}

fn tls(folder: &Path, verify_clients: bool) -> anyhow::Result<Tls> {
    Ok(Tls::from_folder(folder, TlsMode::Required, verify_clients)?)
}

/// The dirty bitmaps that are up to date.
fn bitmaps(image: &Image) -> anyhow::Result<Vec<BitmapInfo>> {
    match image.bitmaps() {
        Ok(bitmaps) => {
            let all = bitmaps.list()?;
            Ok(all.into_iter().filter(|bitmap| !bitmap.flags.contains(&"in-use")).collect())
        }
        Err(_) => Ok(Vec::new()),
    }
}

/// A dirty bitmap, as clients ask for it.
struct Dirty {
    image: Arc<Image>,
    bitmap: String,
    name: String,
}

impl Dirty {
    fn new(image: &Arc<Image>, bitmap: BitmapInfo) -> Self {
        let name = format!("qemu:dirty-bitmap:{}", bitmap.name);
        Self { image: image.clone(), bitmap: bitmap.name, name }
    }
}

impl MetaContext for Dirty {
    fn name(&self) -> &str {
        &self.name
    }

    fn status_at(&self, offset: u64) -> vmwright_disk::Result<StatusRange> {
        let rest = self.image.len().saturating_sub(offset);
        let run = self.image.bitmaps()?.run_at(&self.bitmap, offset, rest)?;
        Ok(StatusRange { len: run.length, flags: run.dirty.into() })
    }
}

/// Says on standard error what an administrator wants to know.
fn tell(event: &Event<'_>) {
    match event {
        Event::RequestFailed { command, offset, len, error, .. } => {
            note(format!("{} of {len} bytes at {offset} failed: {error}", command.name()));
        }
        Event::NotFlushed { error, .. } => note(format!("what a client wrote is not durable: {error}")),
        Event::NotAccepted { error } => note(format!("a client could not be taken in: {error}")),
        _ => {}
    }
}

/// The place as NBD clients spell it.
fn uri(place: &Listen, name: &str, encrypted: bool) -> String {
    let scheme = if encrypted { "nbds" } else { "nbd" };
    match place {
        Listen::Unix(path) => format!("{scheme}+unix:///{name}?socket={}", path.display()),
        Listen::Tcp(address) => format!("{scheme}://{address}/{name}"),
    }
}
