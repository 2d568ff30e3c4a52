//! What filesystems are filled from.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use vmwright_rootfs::{HostDirectory, PopulateOptions, Source, TarArchive};
use vmwright_vfs::Timestamp;

use crate::failure::Failure;
use crate::output::parse_size;

/// What a filesystem is filled from.
#[derive(clap::Args)]
pub(crate) struct Filling {
    /// A directory, a tar archive (plain, gzip, zstd or xz), or - for an archive on standard input; several are layers, each over
    /// the one before, with the whiteouts of container images
    #[arg(long, value_name = "DIR|TAR")]
    pub(crate) from: Vec<PathBuf>,
    /// Whom everything belongs to, instead of the owners and groups of the source: UID:GID
    #[arg(long, value_name = "UID:GID", value_parser = owner)]
    owner: Option<(u32, u32)>,
    /// How much space stays free with --size auto, in percents of what is needed
    #[arg(long, default_value_t = 10.0, value_name = "PERCENT")]
    pub(crate) slack: f64,
}

/// How large something is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Size {
    Auto,
    Bytes(u64),
}

impl Size {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text == "auto" { Ok(Self::Auto) } else { parse_size(text).map(Self::Bytes) }
    }
}

fn owner(text: &str) -> Result<(u32, u32), String> {
    let wrong = || "it is not of the form UID:GID".to_owned();
    let (uid, gid) = text.split_once(':').ok_or_else(wrong)?;
    Ok((uid.parse().map_err(|_| wrong())?, gid.parse().map_err(|_| wrong())?))
}

impl Filling {
    /// Opens what the filesystem is filled from.
    pub(crate) fn sources(&self, image: &Path) -> anyhow::Result<Vec<Box<dyn Source>>> {
        self.from.iter().map(|path| source(path, image)).collect()
    }

    pub(crate) fn options(&self) -> anyhow::Result<PopulateOptions> {
        let latest = epoch()?.map(|seconds| Timestamp { seconds, nanoseconds: 0 });
        Ok(PopulateOptions { owner: self.owner, latest, find_zeros: false })
    }
}

/// The time that reproducible builds ask for.
fn epoch() -> anyhow::Result<Option<i64>> {
    let Some(text) = std::env::var_os("SOURCE_DATE_EPOCH") else { return Ok(None) };
    let seconds = text.to_str().and_then(|text| text.parse().ok());
    seconds.map(Some).ok_or_else(|| Failure::usage("SOURCE_DATE_EPOCH is no number of seconds"))
}

/// What new things are stamped with.
pub(crate) fn stamp() -> anyhow::Result<Timestamp> {
    if let Some(seconds) = epoch()? {
        return Ok(Timestamp { seconds, nanoseconds: 0 });
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(Timestamp { seconds: since.as_secs() as i64, nanoseconds: since.subsec_nanos() })
}

/// Opens a source of an image, which does not become part of itself.
fn source(path: &Path, image: &Path) -> anyhow::Result<Box<dyn Source>> {
    if path == Path::new("-") {
        return Ok(Box::new(TarArchive::stream(std::io::stdin())));
    }
    Ok(if path.is_dir() {
        Box::new(HostDirectory::new(path)?.without(image))
    } else {
        Box::new(TarArchive::open(path)?)
    })
}
