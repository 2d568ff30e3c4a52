//! Which backing files an image may open.

use std::path::{Path, PathBuf};

use vmwright_image::chain::{Beneath, Gate};

/// The argument that lets more backing files through.
#[derive(clap::Args)]
pub(crate) struct Backing {
    /// Also open backing files that the image names beneath this folder; those beside the image are always opened
    #[arg(long, value_name = "FOLDER", help_heading = "Opening the disk")]
    backing_in: Vec<PathBuf>,
}

impl Backing {
    /// The gate that the arguments stand for.
    pub(crate) fn gate(&self) -> anyhow::Result<UserGate> {
        Ok(UserGate { beside: Beneath::image_folder(), named: Beneath::folders(&self.backing_in)? })
    }
}

/// Lets backing files through that lie beside the image or beneath the folders that the user named.
pub(crate) struct UserGate {
    beside: Beneath,
    named: Beneath,
}

impl Gate for UserGate {
    fn admit(&self, image: &Path, name: &str) -> vmwright_image::Result<PathBuf> {
        self.beside.admit(image, name).or_else(|_| self.named.admit(image, name))
    }
}
