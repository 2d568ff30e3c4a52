//! Which other files an image may open.

use std::path::{Path, PathBuf};

use vmwright_image::Format;
use vmwright_image::chain::{Beneath, DenyAll, Gate, format_by_name};

/// The argument that lets more backing files through.
#[derive(clap::Args, Clone)]
pub(crate) struct Backing {
    /// Also open files that the image names (backing files, parents, parts) beneath this folder. Those beside the
    /// image are opened anyway, if its name ends as those of its format do, such as .qcow2, or its format is given
    #[arg(long, value_name = "FOLDER", help_heading = "Opening the disk")]
    backing_in: Vec<PathBuf>,
}

impl Backing {
    /// The gate that the arguments stand for, for an image whose format the user named or whose bytes only tell.
    pub(crate) fn gate(&self, image: &Path, format_named: bool) -> anyhow::Result<UserGate> {
        let named = format_named || !matches!(format_by_name(image), None | Some(Format::Raw));
        let probed = (!named).then(|| image.to_owned());
        let named = Beneath::folders(&self.backing_in)?;
        Ok(UserGate { probed, beside: Beneath::image_folder(), named })
    }
}

/// Lets files through that lie beside the image or beneath the folders that the user named.
pub(crate) struct UserGate {
    /// The image, where nothing but its first bytes says which format it has. A guest that ran on it as a raw
    /// image could have written them, so what lies beside it is not opened.
    probed: Option<PathBuf>,
    beside: Beneath,
    named: Beneath,
}

impl Gate for UserGate {
    fn admit(&self, image: &Path, name: &str) -> vmwright_image::Result<PathBuf> {
        let beside = match &self.probed {
            Some(probed) if probed == image => DenyAll.admit(image, name),
            _ => self.beside.admit(image, name),
        };
        beside.or_else(|_| self.named.admit(image, name))
    }
}
