//! The table of formats and operations says what the code does.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use vmwright_crypt::Passphrase;
use vmwright_disk::{Disk, ErrorKind, HostFile, MemDisk};
use vmwright_image::chain::{
    self, AllowAll, ChainOptions, CommitOptions, NewBase, RebaseOptions, commit, create_overlay_as, rebase,
};
use vmwright_image::copy::{self, CompactOptions, ConvertOptions, compact, convert};
use vmwright_image::matrix::{Operation, Support, support};
use vmwright_image::{
    CreateOptions, Error, Format, FormatChoice, Image, Layout, Repair, Result, create, describe, probe,
};

const SIZE: u64 = 8 << 20;
const GATE: AllowAll = AllowAll { probe: false };

fn quiet(_done: u64, _total: u64) {}

/// A folder for one cell of the table.
struct Cell {
    folder: tempfile::TempDir,
    format: Format,
}

impl Cell {
    fn new(format: Format) -> Self {
        Self { folder: tempfile::tempdir().unwrap(), format }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn choice(&self) -> FormatChoice {
        FormatChoice::Exact(self.format)
    }

    /// The format's defaults, with a passphrase that is cheap to try.
    fn layout(&self) -> Layout {
        let mut layout = Layout::new(self.format);
        if self.format == Format::Luks {
            layout.set("version", "1").unwrap();
            layout.set("iterations", "1000").unwrap();
        }
        layout
    }

    fn secret(&self) -> Option<Passphrase> {
        (self.format == Format::Luks).then(|| Passphrase::new("open"))
    }

    fn make(&self, name: &str) -> Result<PathBuf> {
        self.make_as(name, self.layout())
    }

    fn make_as(&self, name: &str, layout: Layout) -> Result<PathBuf> {
        let path = self.path(name);
        let secret = if layout.is_encrypted() { Some(Passphrase::new("open")) } else { None };
        create(&path, &CreateOptions { secret, ..CreateOptions::laid_out(layout, SIZE) }, false)?;
        Ok(path)
    }

    fn open(&self, path: &Path, read_only: bool) -> Result<Image> {
        let secret = self.secret();
        chain::open(path, self.choice(), &GATE, ChainOptions { read_only, secret, ..Default::default() })
    }

    /// Makes an image, writes into it, and opens it again.
    fn written(&self, name: &str) -> Result<PathBuf> {
        let path = self.make(name)?;
        let image = self.open(&path, false)?;
        image.write_at(&[7; 100_000], 1_000_000)?;
        image.flush()?;
        Ok(path)
    }

    fn expect(&self, path: &Path, offset: u64, byte: u8) -> Result<()> {
        let mut found = vec![!byte; 100_000];
        self.open(path, true)?.read_at(&mut found, offset)?;
        assert!(found.iter().all(|found| *found == byte), "{} at {offset}", self.format);
        Ok(())
    }

    /// Does the operation, and fails where the outcome is not what it should be.
    fn run(&self, operation: Operation) -> Result<()> {
        match operation {
            Operation::Probe => {
                let path = self.written("image")?;
                assert_eq!(probe(&HostFile::open(&path, true)?)?, self.format);
                Ok(())
            }
            Operation::Info => {
                let path = self.written("image")?;
                let info = describe(&HostFile::open(&path, true)?, self.choice())?;
                assert_eq!((info.format, info.virtual_size), (self.format, SIZE));
                Ok(())
            }
            Operation::Read | Operation::Create | Operation::Write => {
                let path = self.written("image")?;
                self.expect(&path, 1_000_000, 7)?;
                if self.format == Format::Luks { Ok(()) } else { self.expect(&path, 5_000_000, 0) }
            }
            Operation::Map => self.map(),
            Operation::Discard => {
                let path = self.written("image")?;
                let image = self.open(&path, false)?;
                image.discard(0, SIZE)?;
                Ok(image.flush()?)
            }
            Operation::Grow => self.resize(SIZE * 2),
            Operation::Shrink => self.resize(SIZE / 2),
            Operation::Convert => self.convert(false),
            Operation::Compress => self.convert(true),
            Operation::Overlay => self.overlay().map(drop),
            Operation::Commit => self.commit(),
            Operation::Rebase => self.rebase(),
            Operation::Compact => self.compact(),
            Operation::Snapshots => self.snapshots(),
            Operation::Bitmaps => self.bitmaps(),
            Operation::Encrypt => self.encrypt(),
            Operation::Check => self.check(Repair::Nothing),
            Operation::Repair => self.check(Repair::All),
            other => panic!("no test of {other:?}"),
        }
    }

    fn map(&self) -> Result<()> {
        let path = self.written("image")?;
        let map = copy::map(&self.open(&path, true)?)?;
        assert_eq!(map.iter().map(|entry| entry.length).sum::<u64>(), SIZE);
        assert!(map.iter().any(|entry| entry.data && entry.start <= 1_000_000));
        assert!(self.format == Format::Luks || map.iter().any(|entry| entry.zero));
        Ok(())
    }

    fn resize(&self, len: u64) -> Result<()> {
        let mut layout = self.layout();
        if len < SIZE {
            // What can only shrink where it is fixed is tried so.
            for (key, value) in [("subformat", "fixed"), ("subformat", "monolithicFlat"), ("static", "on")] {
                let mut fixed = layout.clone();
                if matches!(support(self.format, Operation::Shrink), Support::Partly(_))
                    && fixed.set(key, value).is_ok()
                {
                    layout = fixed;
                }
            }
        }
        let path = self.make_as("image", layout)?;
        let image = self.open(&path, false)?;
        image.write_at(&[7; 100_000], 1_000_000)?;
        image.set_len(len)?;
        image.flush()?;
        drop(image);
        assert_eq!(self.open(&path, true)?.len(), len);
        self.expect(&path, 1_000_000, 7)
    }

    fn convert(&self, compress: bool) -> Result<()> {
        let source = MemDisk::new(SIZE as usize);
        source.write_at(&[7; 100_000], 1_000_000)?;
        let mut layout = self.layout();
        if compress && self.format == Format::Vmdk {
            layout.set("subformat", "streamOptimized")?;
        }
        let options =
            ConvertOptions { layout, compress, secret: self.secret(), ..ConvertOptions::new(self.format) };
        let path = self.path("image");
        convert(&source, &path, &options, &quiet)?;
        if compress {
            assert!(copy::map(&self.open(&path, true)?)?.iter().any(|entry| entry.compressed));
        }
        self.expect(&path, 1_000_000, 7)
    }

    /// A base with 7 in it, and an overlay with 9 elsewhere.
    fn overlay(&self) -> Result<[PathBuf; 2]> {
        let base = self.written("base")?;
        let top = self.path("top");
        create_overlay_as(&top, Path::new("base"), self.format, self.layout(), None, false)?;
        let image = self.open(&top, false)?;
        image.write_at(&[9; 100_000], 3_000_000)?;
        image.flush()?;
        drop(image);
        self.expect(&top, 1_000_000, 7)?;
        self.expect(&top, 3_000_000, 9)?;
        Ok([base, top])
    }

    fn commit(&self) -> Result<()> {
        let [base, top] = match self.overlay() {
            Ok(files) => files,
            Err(_) => [self.path("base"), self.path("base")],
        };
        let options = CommitOptions { secret: self.secret(), ..CommitOptions::default() };
        commit(&top, self.choice(), &GATE, &options, &quiet)?;
        self.expect(&base, 1_000_000, 7)?;
        self.expect(&base, 3_000_000, 9)
    }

    fn rebase(&self) -> Result<()> {
        let top = match self.overlay() {
            Ok([_, top]) => top,
            Err(_) => self.path("base"),
        };
        let other = self.make("other")?;
        let base = Some(NewBase { name: other.to_str().unwrap().into(), format: self.format });
        let options = RebaseOptions { base, secret: self.secret(), ..RebaseOptions::default() };
        rebase(&top, self.choice(), &GATE, &options, &quiet)?;
        std::fs::remove_file(self.path("base")).unwrap();
        self.expect(&top, 1_000_000, 7)?;
        self.expect(&top, 3_000_000, 9)
    }

    fn compact(&self) -> Result<()> {
        let path = self.written("image")?;
        self.open(&path, false)?.write_at(&[0; 3 << 20], 4 << 20)?;
        let options = CompactOptions { secret: self.secret(), ..CompactOptions::default() };
        let done = compact(&path, self.choice(), &GATE, None, &options, &quiet)?;
        assert!(done.bytes_after <= done.bytes_before, "{done:?}");
        self.expect(&path, 1_000_000, 7)?;
        self.expect(&path, 5_000_000, 0)
    }

    fn snapshots(&self) -> Result<()> {
        let path = self.written("image")?;
        let image = self.open(&path, false)?;
        image.snapshots()?.create("before")?;
        image.write_at(&[9; 100_000], 1_000_000)?;
        image.flush()?;
        image.snapshots()?.apply("before")?;
        drop(image);
        self.expect(&path, 1_000_000, 7)
    }

    fn bitmaps(&self) -> Result<()> {
        let path = self.written("image")?;
        let image = self.open(&path, false)?;
        image.bitmaps()?.add("since", None)?;
        image.write_at(&[9; 100_000], 3_000_000)?;
        image.flush()?;
        let dirty = image.bitmaps()?.dirty("since")?;
        let covers = dirty.iter().any(|run| run.start <= 3_000_000 && run.start + run.length >= 3_100_000);
        assert!(covers, "{dirty:?}");
        Ok(())
    }

    fn encrypt(&self) -> Result<()> {
        let mut layout = self.layout();
        if self.format != Format::Luks {
            layout.set("encrypt.format", "luks")?;
            layout.set("encrypt.iterations", "1000").or_else(|_| layout.set("encrypt.iter-time", "10"))?;
        }
        let path = self.make_as("image", layout)?;
        let open = |secret: Option<&str>| {
            let secret = secret.map(Passphrase::new);
            chain::open(&path, self.choice(), &GATE, ChainOptions { secret, ..Default::default() })
        };
        let image = open(Some("open"))?;
        image.write_at(&[7; 100_000], 1_000_000)?;
        image.flush()?;
        drop(image);
        assert!(open(Some("wrong")).is_err());
        let bytes = std::fs::read(&path).unwrap();
        assert!(!bytes.windows(64).any(|bytes| bytes == [7; 64]), "the content is plain in the file");
        let mut found = vec![0; 100_000];
        open(Some("open"))?.read_at(&mut found, 1_000_000)?;
        assert!(found == [7; 100_000]);
        Ok(())
    }

    fn check(&self, repair: Repair) -> Result<()> {
        let path = self.written("image")?;
        let file: Arc<dyn Disk> = Arc::new(HostFile::open(&path, false)?);
        let report = vmwright_image::check(file.clone(), self.choice(), repair)?;
        file.flush()?;
        assert!(report.is_clean(), "{report:?}");
        Ok(())
    }
}

fn is_refusal(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::InvalidInput)
}

#[test]
fn every_cell_of_the_table_is_what_the_code_does() {
    let mut wrong = Vec::new();
    for format in Format::ALL {
        for operation in Operation::ALL {
            let outcome = Cell::new(format).run(operation);
            let fits = match (support(format, operation), &outcome) {
                (Support::Done | Support::Partly(_), outcome) => outcome.is_ok(),
                (Support::Refused(_), Err(error)) => is_refusal(error),
                (Support::Refused(_), Ok(())) => false,
            };
            if !fits {
                wrong.push(format!("{format} {}: {outcome:?}", operation.name()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
