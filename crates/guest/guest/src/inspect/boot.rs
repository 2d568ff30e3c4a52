use serde::{Deserialize, Serialize};
use vmwright_volume::PartitionType;

use super::{Kernel, Reader, assignments, grub, unquoted};
use crate::guest::{Guest, GuestDisk};

/// How a system starts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Boot {
    /// What can start it: `bios`, `uefi`, both or, for a system that needs its kernel given, neither.
    pub firmware: Vec<String>,
    /// The EFI system partition.
    pub efi_system_partition: Option<String>,
    /// The boot loaders whose configuration is there.
    pub loaders: Vec<BootLoader>,
    /// What is in the boot sector for a BIOS, with the place of the rest of it: a device, or `mbr gap`.
    pub bios_core: Option<String>,
    /// What the guest adds to its kernels' command lines.
    pub command_line: Option<String>,
    /// The entries of the boot menu, the first ones of each loader.
    pub entries: Vec<BootEntry>,
}

/// A boot loader.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootLoader {
    /// `grub2`, `systemd-boot`, `extlinux` or `grub-legacy`.
    pub name: String,
    /// The configuration that it reads.
    pub config: String,
}

/// An entry of a boot menu. Paths are as the loader sees them, often without `/boot`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BootEntry {
    /// What the menu shows.
    pub title: String,
    /// The kernel.
    pub kernel: String,
    /// The initramfs.
    pub initramfs: Option<String>,
    /// The kernel's command line.
    pub options: String,
}

/// The most entries that are listed.
const ENTRIES_MAX: usize = 64;

const CONFIGS: [(&str, &str); 8] = [
    ("grub2", "/boot/grub/grub.cfg"),
    ("grub2", "/boot/grub2/grub.cfg"),
    ("systemd-boot", "/boot/loader/loader.conf"),
    ("systemd-boot", "/boot/efi/loader/loader.conf"),
    ("systemd-boot", "/efi/loader/loader.conf"),
    ("extlinux", "/boot/extlinux/extlinux.conf"),
    ("extlinux", "/boot/extlinux.conf"),
    ("grub-legacy", "/boot/grub/menu.lst"),
];

pub(super) fn read(reader: &mut Reader<'_>, guest: &Guest, kernels: &[Kernel]) -> Boot {
    let mut boot = Boot { command_line: command_line(reader), ..Boot::default() };
    for (name, config) in CONFIGS {
        let Some(text) = reader.text(config) else { continue };
        boot.loaders.push(BootLoader { name: name.to_owned(), config: config.to_owned() });
        match name {
            "grub2" => boot.entries.extend(grub_entries(&text)),
            "extlinux" => boot.entries.extend(extlinux_entries(&text)),
            _ => {}
        }
    }
    for path in reader.files("/boot/loader/entries", ".conf") {
        boot.entries.extend(reader.text(path).and_then(|text| bls_entry(&text)));
    }
    boot.entries.truncate(ENTRIES_MAX);
    boot.efi_system_partition =
        guest.volumes().find(|volume| volume.efi_system).map(|volume| volume.device.clone());
    let disk_index = guest.root_volume().disk;
    let disk = &guest.disks[disk_index];
    boot.bios_core = grub::core_start(&disk.disk).map(|start| place_of(start, disk, disk_index));
    let extlinux =
        boot.loaders.iter().any(|loader| loader.name == "extlinux" || loader.name == "grub-legacy");
    if !kernels.is_empty() && (boot.bios_core.is_some() || extlinux && grub::has_boot_code(&disk.disk)) {
        boot.firmware.push("bios".to_owned());
    }
    if boot.efi_system_partition.is_some() {
        boot.firmware.push("uefi".to_owned());
    }
    boot
}

/// Names the place of a core image: the partition made for it, or the gap before the first one.
fn place_of(start: u64, disk: &GuestDisk, index: usize) -> String {
    let partitions = disk.table.as_ref().map(|table| table.partitions()).unwrap_or_default();
    let inside = partitions.iter().find(|partition| (partition.start..partition.end()).contains(&start));
    match inside {
        Some(partition) => {
            let device = crate::volume::device_name(index, Some(partition.number));
            let intended = partition.partition_type == PartitionType::BIOS_BOOT;
            if intended { device } else { format!("inside {device}") }
        }
        None => "mbr gap".to_owned(),
    }
}

fn command_line(reader: &mut Reader<'_>) -> Option<String> {
    if let Some(text) = reader.text("/etc/kernel/cmdline") {
        return Some(text.trim().to_owned());
    }
    let text = reader.text("/etc/default/grub")?;
    let wanted = ["GRUB_CMDLINE_LINUX", "GRUB_CMDLINE_LINUX_DEFAULT"];
    let values = wanted.iter().filter_map(|wanted| {
        let last = assignments(&text).filter(|(name, _)| name == wanted).last();
        last.map(|(_, value)| value).filter(|value| !value.is_empty())
    });
    Some(values.collect::<Vec<_>>().join(" ")).filter(|line| !line.is_empty())
}

/// The `menuentry` blocks of a grub.cfg.
fn grub_entries(text: &str) -> Vec<BootEntry> {
    let mut entries: Vec<BootEntry> = Vec::new();
    let mut title = String::new();
    for line in text.lines().map(str::trim) {
        let (word, rest) = line.split_once([' ', '\t']).unwrap_or((line, ""));
        match word {
            "menuentry" => title = quoted_start(rest.trim_start()),
            "linux" | "linux16" | "linuxefi" => {
                let (kernel, options) =
                    rest.trim_start().split_once([' ', '\t']).unwrap_or((rest.trim(), ""));
                let (kernel, options) = (kernel.to_owned(), options.trim().to_owned());
                entries.push(BootEntry { title: title.clone(), kernel, initramfs: None, options });
                if entries.len() >= ENTRIES_MAX {
                    break;
                }
            }
            "initrd" | "initrd16" | "initrdefi" => {
                if let Some(entry) = entries.last_mut() {
                    entry.initramfs = Some(rest.trim().to_owned());
                }
            }
            _ => {}
        }
    }
    entries
}

/// A title in quotes, with something behind it.
fn quoted_start(text: &str) -> String {
    let quote = text.chars().next().filter(|quote| matches!(quote, '"' | '\''));
    match quote.and_then(|quote| text[1..].find(quote).map(|end| &text[..end + 2])) {
        Some(title) => unquoted(title),
        None => text.split_whitespace().next().unwrap_or_default().to_owned(),
    }
}

fn extlinux_entries(text: &str) -> Vec<BootEntry> {
    let mut entries: Vec<BootEntry> = Vec::new();
    for line in text.lines().map(str::trim) {
        let (word, rest) = line.split_once([' ', '\t']).unwrap_or((line, ""));
        let rest = rest.trim().to_owned();
        if word.eq_ignore_ascii_case("label") {
            entries.push(BootEntry { title: rest, ..BootEntry::default() });
            continue;
        }
        let Some(entry) = entries.last_mut() else { continue };
        match word.to_ascii_lowercase().as_str() {
            "menu" if rest.to_ascii_lowercase().starts_with("label ") => entry.title = rest[6..].to_owned(),
            "kernel" | "linux" => entry.kernel = rest,
            "initrd" => entry.initramfs = Some(rest),
            "append" => entry.options = rest,
            _ => {}
        }
    }
    entries.retain(|entry| !entry.kernel.is_empty());
    entries
}

/// An entry of the Boot Loader Specification.
fn bls_entry(text: &str) -> Option<BootEntry> {
    let mut entry = BootEntry::default();
    for line in text.lines().map(str::trim) {
        let Some((key, value)) = line.split_once([' ', '\t']) else { continue };
        let value = value.trim();
        match key {
            "title" => entry.title = value.to_owned(),
            "linux" => entry.kernel = value.to_owned(),
            "initrd" => entry.initramfs = entry.initramfs.or_else(|| Some(value.to_owned())),
            "options" if entry.options.is_empty() => entry.options = value.to_owned(),
            "options" => entry.options = format!("{} {value}", entry.options),
            _ => {}
        }
    }
    (!entry.kernel.is_empty()).then_some(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_loader_names_its_entries() {
        let expected = |title: &str| BootEntry {
            title: title.to_owned(),
            kernel: "/vmlinuz-6".to_owned(),
            initramfs: Some("/initrd-6".to_owned()),
            options: "root=UUID=a ro".to_owned(),
        };
        let grub = "set x\nmenuentry 'Debian, with Linux' --class x {\n\tlinux\t/vmlinuz-6 root=UUID=a ro\n\tinitrd /initrd-6\n}\n";
        assert_eq!(grub_entries(grub), [expected("Debian, with Linux")]);
        let extlinux = "DEFAULT l0\nLABEL l0\n  MENU LABEL Debian\n  KERNEL /vmlinuz-6\n  INITRD /initrd-6\n  APPEND root=UUID=a ro\n";
        assert_eq!(extlinux_entries(extlinux), [expected("Debian")]);
        let bls = "title Fedora\nlinux /vmlinuz-6\ninitrd /initrd-6\noptions root=UUID=a\noptions ro\n";
        assert_eq!(bls_entry(bls), Some(expected("Fedora")));
    }
}
