//! Single values: names, times, languages, and what starts everything else.

use super::{Reader, assignments};

pub(super) fn hostname(reader: &mut Reader<'_>) -> Option<String> {
    if let Some(text) = reader.text("/etc/hostname") {
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        return lines.next().map(str::to_owned);
    }
    // Red Hat before version 7, and Gentoo.
    for (path, wanted) in [("/etc/sysconfig/network", "HOSTNAME"), ("/etc/conf.d/hostname", "hostname")] {
        let text = reader.text(path).unwrap_or_default();
        if let Some((_, value)) = assignments(&text).find(|(name, _)| *name == wanted) {
            return Some(value);
        }
    }
    None
}

/// An empty file or the word `uninitialized` means that systemd makes one at the first boot.
pub(super) fn machine_id(reader: &mut Reader<'_>) -> Option<String> {
    let text = reader.text("/etc/machine-id").or_else(|| reader.text("/var/lib/dbus/machine-id"))?;
    let id = text.trim();
    (id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| id.to_owned())
}

pub(super) fn init(reader: &mut Reader<'_>) -> Option<String> {
    let resolved = ["/sbin/init", "/usr/sbin/init", "/init"]
        .iter()
        .find_map(|path| reader.root.resolve(path, true).ok().map(|resolved| resolved.path));
    let target = String::from_utf8_lossy(resolved.as_deref()?).into_owned();
    let name = match target.rsplit('/').next()? {
        "systemd" => "systemd",
        "busybox" => "busybox",
        "openrc-init" => "openrc",
        "runit" | "runit-init" => "runit",
        "s6-linux-init" => "s6",
        "upstart" => "upstart",
        _ if reader.exists("/sbin/openrc") && reader.exists("/etc/init.d") => "openrc",
        _ if reader.exists("/etc/init/rc.conf") || reader.exists("/etc/init/tty1.conf") => "upstart",
        _ if reader.exists("/etc/inittab") || reader.exists("/etc/init.d/rc") => "sysvinit",
        other => other,
    };
    // Alpine's busybox only starts OpenRC.
    let openrc = name == "busybox" && reader.exists("/sbin/openrc");
    Some(if openrc { "openrc" } else { name }.to_owned())
}

pub(super) fn timezone(reader: &mut Reader<'_>) -> Option<String> {
    let linked = reader.root.read_link("/etc/localtime").ok().and_then(|target| {
        let target = String::from_utf8(target).ok()?;
        target.split_once("zoneinfo/").map(|(_, zone)| zone.to_owned())
    });
    linked.or_else(|| {
        let text = reader.text("/etc/timezone")?;
        let zone = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'))?;
        Some(zone.to_owned())
    })
}

pub(super) fn locale(reader: &mut Reader<'_>) -> Option<String> {
    ["/etc/locale.conf", "/etc/default/locale", "/etc/sysconfig/i18n"].iter().find_map(|path| {
        let text = reader.text(path)?;
        let found = assignments(&text).find(|(name, _)| *name == "LANG");
        found.map(|(_, value)| value)
    })
}
