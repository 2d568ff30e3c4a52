use serde::{Deserialize, Serialize};

use super::Reader;

/// A kernel, with what belongs to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// The version, as `uname -r` shows it.
    pub version: String,
    /// The file that is booted; none where only modules are left.
    pub path: Option<String>,
    /// The initramfs.
    pub initramfs: Option<String>,
    /// The directory of its modules.
    pub modules: Option<String>,
    /// How many modules there are.
    pub module_count: usize,
}

/// What kernels are called before their version.
const KERNELS: [&str; 4] = ["vmlinuz-", "vmlinux-", "Image-", "kernel-"];

/// Finds the kernels in `/boot` and those whose package keeps them beside their modules.
pub(super) fn read(reader: &mut Reader<'_>) -> Vec<Kernel> {
    let boot = reader.names("/boot");
    let modules_dir = ["/lib/modules", "/usr/lib/modules"].into_iter().find(|dir| reader.root.is_dir(dir));
    let mut versions: Vec<String> = boot.iter().filter_map(|name| strip_any(name, &KERNELS)).collect();
    // `vmlinuz-lts` and `vmlinuz-0-rescue-…` carry no version of their own.
    versions
        .retain(|version| version.starts_with(|c: char| c.is_ascii_digit()) && !version.contains("rescue"));
    for version in modules_dir.map(|dir| reader.names(dir)).unwrap_or_default() {
        let dir = format!("{}/{version}", modules_dir.unwrap_or_default());
        let is_kernel = ["modules.dep", "modules.builtin", "kernel"]
            .iter()
            .any(|name| reader.exists(&format!("{dir}/{name}")));
        if is_kernel && !versions.contains(&version) {
            versions.push(version);
        }
    }
    versions.sort_by(|a, b| compare_versions(b, a));
    let mut kernels: Vec<_> =
        versions.into_iter().map(|version| kernel(reader, &boot, modules_dir, version)).collect();
    kernels.retain(|kernel| kernel.path.is_some() || kernel.module_count > 0);
    kernels
}

fn strip_any(name: &str, prefixes: &[&str]) -> Option<String> {
    prefixes.iter().find_map(|prefix| name.strip_prefix(prefix)).map(str::to_owned)
}

fn kernel(reader: &mut Reader<'_>, boot: &[String], modules_dir: Option<&str>, version: String) -> Kernel {
    let modules = modules_dir.map(|dir| format!("{dir}/{version}")).filter(|dir| reader.root.is_dir(dir));
    let in_boot = |name: String| boot.contains(&name).then(|| format!("/boot/{name}"));
    let path = KERNELS.iter().find_map(|prefix| in_boot(format!("{prefix}{version}"))).or_else(|| {
        let beside = format!("{}/vmlinuz", modules.as_deref()?);
        reader.exists(&beside).then_some(beside)
    });
    let path = path.or_else(|| flavoured(&version, "vmlinuz-").and_then(in_boot));
    let initramfs = [
        format!("initrd.img-{version}"),
        format!("initramfs-{version}.img"),
        format!("initrd-{version}"),
        format!("initrd-{version}.img"),
        format!("initramfs-genkernel-{version}"),
    ];
    let initramfs = initramfs.into_iter().find_map(in_boot);
    let initramfs = initramfs.or_else(|| flavoured(&version, "initramfs-").and_then(in_boot));
    let dependencies = modules.as_ref().and_then(|dir| reader.bytes(format!("{dir}/modules.dep")));
    let module_count = dependencies.map_or(0, |text| text.iter().filter(|&&byte| byte == b'\n').count());
    Kernel { version, path, initramfs, modules, module_count }
}

/// Alpine names the kernel of version `6.6.1-0-lts` just `vmlinuz-lts`.
fn flavoured(version: &str, prefix: &str) -> Option<String> {
    let flavour =
        version.rsplit('-').next().filter(|flavour| flavour.starts_with(|c: char| c.is_alphabetic()))?;
    Some(format!("{prefix}{flavour}"))
}

/// Orders versions by their numbers, so that 6.10 comes after 6.9.
fn compare_versions(a: &str, b: &str) -> std::cmp::Ordering {
    let (mut a, mut b) = (parts(a), parts(b));
    loop {
        match (a.next(), b.next()) {
            (None, None) => return std::cmp::Ordering::Equal,
            (x, y) if x == y => {}
            (x, y) => return x.cmp(&y),
        }
    }
}

/// Runs of digits as numbers and the rest as it is; words come before numbers, so `-rc1` before the release.
fn parts(version: &str) -> impl Iterator<Item = (u8, u128, &str)> {
    let mut rest = version;
    std::iter::from_fn(move || {
        let digits = rest.starts_with(|c: char| c.is_ascii_digit());
        let end = rest.find(|c: char| c.is_ascii_digit() != digits).unwrap_or(rest.len());
        let (part, tail) = rest.split_at(end);
        rest = tail;
        match (part.is_empty(), digits) {
            (true, _) => None,
            (_, true) => Some((1, part.parse().unwrap_or(u128::MAX), "")),
            _ => Some((0, 0, part)),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_kernels_come_first() {
        let mut versions = ["6.9.3-1", "6.10.0", "5.15.0-91-generic", "5.15.0-101-generic"];
        versions.sort_by(|a, b| compare_versions(b, a));
        assert_eq!(versions, ["6.10.0", "6.9.3-1", "5.15.0-101-generic", "5.15.0-91-generic"]);
    }

    #[test]
    fn an_alpine_kernel_is_named_for_its_flavour() {
        assert_eq!(flavoured("6.6.31-0-virt", "vmlinuz-").as_deref(), Some("vmlinuz-virt"));
        assert_eq!(flavoured("6.6.31", "vmlinuz-"), None);
    }
}
