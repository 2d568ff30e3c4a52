//! The kernels on a disk.

use std::cmp::Ordering;

use vmwright_vfs::{ErrorKind, FileType, Root};

use crate::error::Reason;
use crate::{Error, Result};

/// A kernel found in a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// Its release, as `uname -r` shows it: `6.1.0-18-cloud-amd64`.
    pub version: String,
    /// Where its image is in the guest.
    pub image: Vec<u8>,
    /// Where its modules are in the guest, if it has any.
    pub modules: Option<Vec<u8>>,
}

/// How an image's name in /boot begins, before its release.
const PREFIXES: [&str; 5] = ["vmlinuz-", "vmlinux-", "bzImage-", "kernel-", "Image-"];

impl Kernel {
    /// Finds all kernels, the newest first.
    ///
    /// Looks for `/boot/vmlinuz-RELEASE` and its relatives, and for `/lib/modules/RELEASE/vmlinuz`, which is
    /// where distributions without a populated /boot keep the image.
    pub fn find_all(root: &Root) -> Result<Vec<Kernel>> {
        let mut kernels = Vec::new();
        for (name, file_type) in entries(root, b"/boot")? {
            let release = PREFIXES.iter().find_map(|prefix| name.strip_prefix(*prefix));
            let is_rescue = name.contains("rescue");
            if let (Some(release), FileType::Regular | FileType::Symlink, false) =
                (release, file_type, is_rescue)
            {
                kernels.push(Self::new(root, release, format!("/boot/{name}").into_bytes()));
            }
        }
        for (release, _) in entries(root, b"/lib/modules")? {
            let image = format!("/lib/modules/{release}/vmlinuz").into_bytes();
            if !kernels.iter().any(|kernel| kernel.version == release) && root.exists(&image) {
                kernels.push(Self::new(root, &release, image));
            }
        }
        kernels.sort_by(|a, b| compare_versions(&b.version, &a.version));
        Ok(kernels)
    }

    /// Finds the kernel of the release `wanted`, or the newest.
    pub fn find(root: &Root, wanted: Option<&str>) -> Result<Kernel> {
        let kernels = Self::find_all(root)?;
        let present = || kernels.iter().map(|kernel| kernel.version.as_str()).collect::<Vec<_>>().join(", ");
        match wanted {
            None => kernels.into_iter().next().ok_or_else(|| Reason::NoKernel.into()),
            Some(_) if kernels.is_empty() => Err(Reason::NoKernel.into()),
            Some(wanted) => {
                let found = kernels.iter().find(|kernel| kernel.version == wanted).cloned();
                found.ok_or_else(|| {
                    Reason::NoSuchKernel { wanted: wanted.to_owned(), present: present() }.into()
                })
            }
        }
    }

    fn new(root: &Root, version: &str, image: Vec<u8>) -> Self {
        let modules = format!("/lib/modules/{version}").into_bytes();
        let modules = root.is_dir(&modules).then_some(modules);
        Self { version: version.to_owned(), image, modules }
    }
}

/// The names in a directory that are text, with their types; none where the directory is absent.
fn entries(root: &Root, path: &[u8]) -> Result<Vec<(String, FileType)>> {
    match root.read_dir(path) {
        Ok(entries) => {
            let named = entries.into_iter().map(|entry| (String::from_utf8(entry.name), entry.file_type));
            Ok(named.filter_map(|(name, file_type)| Some((name.ok()?, file_type))).collect())
        }
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidInput) => Ok(Vec::new()),
        Err(error) => Err(Error::guest(path)(error)),
    }
}

/// Orders releases as people do: runs of digits by their value, the rest letter by letter.
pub(crate) fn compare_versions(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        match (a.first(), b.first()) {
            (None, None) => return Ordering::Equal,
            (None, _) => return Ordering::Less,
            (_, None) => return Ordering::Greater,
            (Some(x), Some(y)) if x.is_ascii_digit() && y.is_ascii_digit() => {
                let (number_a, rest_a) = split_number(a);
                let (number_b, rest_b) = split_number(b);
                let order = number_a.len().cmp(&number_b.len()).then_with(|| number_a.cmp(number_b));
                if order.is_ne() {
                    return order;
                }
                (a, b) = (rest_a, rest_b);
            }
            (Some(x), Some(y)) if x != y => return x.cmp(y),
            _ => (a, b) = (&a[1..], &b[1..]),
        }
    }
}

/// Splits the leading number off, its leading zeros removed.
fn split_number(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    let (number, rest) = text.split_at(end);
    let zeros = number.iter().take_while(|digit| **digit == b'0').count();
    (&number[zeros..], rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_ordered_by_their_numbers() {
        let mut releases = ["6.1.0-9-amd64", "6.1.0-18-amd64", "5.15.100", "6.1", "6.1.0-018-amd64"];
        releases.sort_by(|a, b| compare_versions(a, b));
        assert_eq!(releases, ["5.15.100", "6.1", "6.1.0-9-amd64", "6.1.0-18-amd64", "6.1.0-018-amd64"]);
    }
}
