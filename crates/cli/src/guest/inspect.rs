//! `vmwright guest inspect`

use std::path::PathBuf;

use anyhow::Context;
use vmwright_guest::{Inspection, Password};

use super::source::Reading;
use crate::output::{Table, json, line, properties, size};

/// What `guest inspect` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The disk image
    image: PathBuf,
    /// List every package
    #[arg(long)]
    packages: bool,
    /// Answer in JSON, with everything
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reading: Reading,
}

/// Says what system is on the disk.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let guest = args.reading.open(&args.image);
    let guest = guest.with_context(|| format!("cannot inspect {}", args.image.display()))?;
    let inspection = guest.inspect();
    if args.json {
        return json(&inspection);
    }
    print_system(&inspection)?;
    print_volumes(&inspection)?;
    if args.packages {
        print_packages(&inspection)?;
    }
    for problem in &inspection.problems {
        line(format!("problem: {problem}"))?;
    }
    Ok(())
}

fn print_system(inspection: &Inspection) -> anyhow::Result<()> {
    let joined = |texts: Vec<String>, by| (!texts.is_empty()).then(|| texts.join(by));
    let boot = &inspection.boot;
    let kernels = inspection.kernels.iter().map(|kernel| {
        let initramfs = if kernel.initramfs.is_some() { ", initramfs" } else { "" };
        format!("{} ({} modules{initramfs})", kernel.version, kernel.module_count)
    });
    let packages = &inspection.packages;
    let package_count = packages.manager.as_ref().map(|manager| match &packages.unread_format {
        Some(format) => format!("{manager}, kept as {format}"),
        None => format!("{} ({manager})", packages.installed.len()),
    });
    properties(&[
        ("system", Some(inspection.os.pretty_name.clone())),
        ("architecture", inspection.architecture.clone()),
        ("hostname", inspection.hostname.clone()),
        ("machine id", inspection.machine_id.clone()),
        ("init", inspection.init.clone()),
        ("kernels", joined(kernels.collect(), "\n")),
        ("firmware", joined(boot.firmware.clone(), ", ")),
        ("boot loader", joined(boot.loaders.iter().map(|loader| loader.name.clone()).collect(), ", ")),
        ("packages", package_count),
        ("users", joined(users(inspection), "\n")),
        ("network", joined(network(inspection), "\n")),
        ("timezone", inspection.timezone.clone()),
        ("locale", inspection.locale.clone()),
        (
            "cloud-init",
            inspection.cloud_init.as_ref().map(|cloud_init| {
                let sources = cloud_init.datasources.join(", ");
                match (cloud_init.enabled, sources.is_empty()) {
                    (false, _) => "disabled".to_owned(),
                    (true, true) => "enabled".to_owned(),
                    (true, false) => format!("enabled: {sources}"),
                }
            }),
        ),
    ])
}

/// Those who can log in: root and people, not what packages made for their services.
fn users(inspection: &Inspection) -> Vec<String> {
    let people = inspection.users.iter().filter(|user| user.uid == 0 || (1000..65_534).contains(&user.uid));
    let describe = |user: &vmwright_guest::User| {
        let password = match user.password {
            Password::Set => "password set",
            Password::Locked => "password locked",
            Password::Empty => "no password needed",
            Password::Unknown => "password unknown",
        };
        format!("{} ({}), {}, {password}", user.name, user.uid, user.shell)
    };
    people.map(describe).collect()
}

fn network(inspection: &Inspection) -> Vec<String> {
    let of_file = |file: &vmwright_guest::NetworkFile| {
        let interfaces: Vec<_> = file.interfaces.iter().map(interface).collect();
        format!(
            "{}: {}",
            file.path,
            if interfaces.is_empty() { "no interfaces".into() } else { interfaces.join("; ") }
        )
    };
    inspection.network.iter().map(of_file).collect()
}

fn interface(interface: &vmwright_guest::Interface) -> String {
    let name = interface.name.clone().or_else(|| interface.mac.clone());
    let mut words = vec![name.unwrap_or_else(|| "any".to_owned())];
    words.extend(interface.dhcp.then(|| "DHCP".to_owned()));
    words.extend(interface.addresses.iter().cloned());
    words.extend(interface.gateways.iter().map(|gateway| format!("via {gateway}")));
    words.join(" ")
}

fn print_volumes(inspection: &Inspection) -> anyhow::Result<()> {
    line("")?;
    let mut table = Table::new(["VOLUME", "SIZE", "TYPE", "LABEL", "UUID", "MOUNTED ON"]).right(1);
    for disk in &inspection.disks {
        let scheme = disk.table.clone().unwrap_or_else(|| "no table".to_owned());
        let id = disk.id.clone().unwrap_or_default();
        table.row([disk.device.clone(), size(disk.size), scheme, String::new(), id, String::new()]);
    }
    for volume in
        inspection.volumes.iter().filter(|volume| volume.partition.is_some() || volume.content.is_some())
    {
        let mounts = inspection.mounts.iter().filter(|mount| mount.device == volume.device);
        let content = volume.content.as_ref();
        table.row([
            volume.device.clone(),
            size(volume.size),
            content.map(|content| content.kind.clone()).unwrap_or_default(),
            content
                .and_then(|content| content.label.clone())
                .or(volume.partition_label.clone())
                .unwrap_or_default(),
            content.and_then(|content| content.uuid.clone()).unwrap_or_default(),
            mounts.map(|mount| mount.target.as_str()).collect::<Vec<_>>().join(", "),
        ]);
    }
    table.print()
}

fn print_packages(inspection: &Inspection) -> anyhow::Result<()> {
    line("")?;
    let mut table = Table::new(["PACKAGE", "VERSION", "ARCHITECTURE"]);
    for package in &inspection.packages.installed {
        table.row([package.name.clone(), package.version.clone(), package.architecture.clone()]);
    }
    table.print()
}
