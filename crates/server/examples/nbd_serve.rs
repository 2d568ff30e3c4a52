//! Serves one image on a unix socket until the last client has gone: `nbd_serve IMAGE FORMAT SOCKET [rw]`.

use std::path::Path;
use std::sync::Arc;

use vmwright_disk::{Disk, HostFile};
use vmwright_image::{Format, FormatChoice, Image, OpenOptions};
use vmwright_server::nbd::{Config, Export, Lifetime, Listen, Server, Stop};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, image, format, socket, more @ ..] = &args[..] else {
        return Err("IMAGE FORMAT SOCKET [rw]".into());
    };
    let read_only = more.is_empty();
    let format = if format == "raw" { Format::Raw } else { Format::Qcow2 };
    let file = Arc::new(HostFile::open(Path::new(image), read_only)?);
    let options = OpenOptions { read_only, ..OpenOptions::default() };
    let disk: Arc<dyn Disk> = Arc::new(Image::open(file, FormatChoice::Exact(format), options)?);
    let export = Export::new("disk", disk);
    let export = if read_only { export } else { export.writable() };
    let config = Config::new(vec![export], Listen::Unix(socket.into()));
    Server::bind(Config { lifetime: Lifetime::LastClient, ..config })?.run(&Stop::new()?)?;
    Ok(())
}
