//! What the tests share.
#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests")]

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use vmwright_disk::{Disk, HostFile};
use vmwright_image::{CreateOptions, Format, FormatChoice, Image, OpenOptions, create};
use vmwright_judges::{output, run};
use vmwright_server::Result;
use vmwright_server::nbd::{Config, Export, Listen, Report, Server, Stop};

/// A folder for one test.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }
}

/// A server that runs beside the test.
pub(crate) struct Running {
    stop: Stop,
    thread: Option<JoinHandle<Result<Report>>>,
    pub(crate) places: Vec<Listen>,
    pub(crate) events: Arc<Mutex<Vec<String>>>,
}

impl Running {
    pub(crate) fn start(mut config: Config) -> Self {
        let events = Arc::new(Mutex::new(Vec::new()));
        let kept = events.clone();
        config.events = Some(Arc::new(move |event| kept.lock().unwrap().push(format!("{event:?}"))));
        let server = Server::bind(config).unwrap();
        let places = server.places().unwrap();
        let stop = Stop::new().unwrap();
        let told = stop.clone();
        let thread = Some(std::thread::spawn(move || server.run(&told)));
        Self { stop, thread, places, events }
    }

    /// Serves one disk on a unix socket in a folder.
    pub(crate) fn one(folder: &Folder, export: Export) -> Self {
        Self::start(Config::new(vec![export], Listen::Unix(folder.path("nbd.sock"))))
    }

    /// How clients call the first place.
    pub(crate) fn uri(&self, export: &str) -> String {
        match &self.places[0] {
            Listen::Unix(path) => format!("nbd+unix:///{export}?socket={}", path.display()),
            Listen::Tcp(address) => format!("nbd://{address}/{export}"),
        }
    }

    pub(crate) fn socket(&self) -> &Path {
        match &self.places[0] {
            Listen::Unix(path) => path,
            Listen::Tcp(_) => panic!("the server is not on a socket"),
        }
    }

    /// Tells the server to stop; answers how it ended.
    pub(crate) fn stop(mut self) -> Result<Report> {
        self.stop.stop();
        self.thread.take().unwrap().join().unwrap()
    }

    /// Waits until the server stops by itself.
    pub(crate) fn wait(mut self) -> Result<Report> {
        self.thread.take().unwrap().join().unwrap()
    }

    pub(crate) fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Waits until an event of this beginning was told.
    pub(crate) fn wait_for(&self, event: &str) -> String {
        for _ in 0..1000 {
            let events = self.events.lock().unwrap();
            if let Some(found) = events.iter().find(|found| found.starts_with(event)) {
                return found.clone();
            }
            drop(events);
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("{event} was not told, but {:?}", self.events.lock().unwrap());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.stop();
    }
}

/// Makes an image and opens it for writing.
pub(crate) fn new_image(path: &Path, format: Format, size: u64) -> Arc<dyn Disk> {
    create(path, &CreateOptions::new(format, size), false).unwrap();
    open_image(path, format, false)
}

pub(crate) fn open_image(path: &Path, format: Format, read_only: bool) -> Arc<dyn Disk> {
    let file = Arc::new(HostFile::open(path, read_only).unwrap());
    let options = OpenOptions { read_only, ..OpenOptions::default() };
    Arc::new(Image::open(file, FormatChoice::Exact(format), options).unwrap())
}

/// A raw file with data and holes, the same in every run.
pub(crate) fn sample(path: &Path, size: u64) -> Vec<u8> {
    let mut bytes = vec![0; size as usize];
    let mut numbers = Numbers(7);
    for cluster in bytes.chunks_mut(64 << 10) {
        match numbers.below(4) {
            0 => {}
            1 => cluster[..4096].fill(numbers.below(255) as u8 + 1),
            _ => cluster.iter_mut().for_each(|byte| *byte = numbers.below(256) as u8),
        }
    }
    let file = HostFile::create(path, size).unwrap();
    for (index, block) in bytes.chunks(4096).enumerate() {
        if block.iter().any(|byte| *byte != 0) {
            file.write_at(block, index as u64 * 4096).unwrap();
        }
    }
    file.flush().unwrap();
    bytes
}

/// Numbers that look random and are the same in every run.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % limit.max(1)
    }
}

/// Runs qemu-io commands on an export; answers what it said.
pub(crate) fn qemu_io(uri: &str, more: &[&str], commands: &[&str]) -> String {
    let mut args: Vec<String> = more.iter().map(|arg| (*arg).to_owned()).collect();
    args.extend(["-f".to_owned(), "raw".to_owned()]);
    for command in commands {
        args.extend(["-c".to_owned(), (*command).to_owned()]);
    }
    args.push(uri.to_owned());
    let output = output("qemu-io", args);
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(!text.contains("Pattern verification failed"), "{text}");
    text
}

/// Reads patterns out of an image file, which must be there.
pub(crate) fn reads(image: &Path, format: &str, commands: &[String]) {
    let mut args = vec!["-r", "-f", format];
    commands.iter().for_each(|command| args.extend(["-c", command]));
    args.push(image.to_str().unwrap());
    let text = run("qemu-io", args);
    assert!(!text.contains("failed"), "{text}");
}

/// Runs qemu-img with arguments split at spaces.
pub(crate) fn qemu_img(command: &str) -> String {
    run("qemu-img", command.split(' '))
}
