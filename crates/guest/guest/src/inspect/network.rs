use serde::{Deserialize, Serialize};

use super::yaml::{self, Yaml};
use super::{Reader, assignments};

/// One file that configures the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkFile {
    /// Who reads it: `ifupdown`, `ifcfg`, `netplan`, `systemd-networkd` or `NetworkManager`.
    pub manager: String,
    /// The file.
    pub path: String,
    /// The interfaces that it configures, loopback left out.
    pub interfaces: Vec<Interface>,
}

/// How an interface is configured.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Interface {
    /// Its name, or a pattern of names.
    pub name: Option<String>,
    /// The hardware address that it is recognised by.
    pub mac: Option<String>,
    /// Whether it asks for an address, by DHCP or router advertisements.
    pub dhcp: bool,
    /// The fixed addresses, with their prefix lengths.
    pub addresses: Vec<String>,
    /// The routers.
    pub gateways: Vec<String>,
    /// The name servers.
    pub nameservers: Vec<String>,
}

pub(super) fn read(reader: &mut Reader<'_>) -> Vec<NetworkFile> {
    let keyfiles = reader.files("/etc/NetworkManager/system-connections", "");
    let scripts = reader.names("/etc/sysconfig/network-scripts");
    let scripts = scripts.iter().filter(|name| name.starts_with("ifcfg-") && !name.contains('~'));
    let scripts: Vec<_> = scripts.map(|name| format!("/etc/sysconfig/network-scripts/{name}")).collect();
    let mut interfaces = vec!["/etc/network/interfaces".to_owned()];
    interfaces.extend(reader.files("/etc/network/interfaces.d", ""));
    let sources: [(&str, Vec<String>, Parser); 5] = [
        ("ifupdown", interfaces, ifupdown),
        ("ifcfg", scripts, ifcfg),
        ("netplan", reader.files("/etc/netplan", ".yaml"), netplan),
        ("systemd-networkd", reader.files("/etc/systemd/network", ".network"), networkd),
        ("NetworkManager", keyfiles, keyfile),
    ];
    let mut found = Vec::new();
    for (manager, paths, parse) in sources {
        for path in paths {
            let Some(text) = reader.text(&path) else { continue };
            let Some(mut interfaces) = parse(&text) else {
                reader.problems.push(format!("{path}: not understood"));
                continue;
            };
            interfaces.retain(|interface| interface.name.as_deref() != Some("lo"));
            if !interfaces.is_empty() {
                found.push(NetworkFile { manager: manager.to_owned(), path, interfaces });
            }
        }
    }
    found
}

type Parser = fn(&str) -> Option<Vec<Interface>>;

fn words(text: &str) -> impl Iterator<Item = String> {
    text.split([' ', '\t', ',', ';']).filter(|word| !word.is_empty()).map(str::to_owned)
}

/// `interfaces(5)`: one stanza for each family of an interface.
fn ifupdown(text: &str) -> Option<Vec<Interface>> {
    let mut interfaces: Vec<Interface> = Vec::new();
    let mut in_stanza = false;
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        let mut fields = line.split_ascii_whitespace();
        let (Some(key), Some(value)) = (fields.next(), fields.next()) else { continue };
        match key {
            "iface" => {
                in_stanza = true;
                let at = interfaces.iter().position(|interface| interface.name.as_deref() == Some(value));
                let interface = match at {
                    Some(at) => interfaces.remove(at),
                    None => Interface { name: Some(value.to_owned()), ..Interface::default() },
                };
                interfaces.push(interface);
                let dhcp = matches!(fields.nth(1), Some("dhcp" | "auto"));
                if let Some(interface) = interfaces.last_mut() {
                    interface.dhcp |= dhcp;
                }
            }
            "auto" | "source" | "source-directory" | "mapping" => in_stanza = false,
            _ if key.starts_with("allow-") => in_stanza = false,
            _ => {
                let Some(interface) = interfaces.last_mut().filter(|_| in_stanza) else { continue };
                match key {
                    "address" => interface.addresses.push(value.to_owned()),
                    "netmask" => add_netmask(interface, value),
                    "gateway" => interface.gateways.push(value.to_owned()),
                    "hwaddress" => interface.mac = fields.next().or(Some(value)).map(str::to_owned),
                    "dns-nameservers" | "dns-nameserver" => {
                        interface.nameservers.push(value.to_owned());
                        interface.nameservers.extend(fields.map(str::to_owned));
                    }
                    _ => {}
                }
            }
        }
    }
    Some(interfaces)
}

/// Adds the length of a prefix, given as one or as a mask, to the last address that has none.
fn add_netmask(interface: &mut Interface, mask: &str) {
    let length = mask.parse::<std::net::Ipv4Addr>().map(|mask| u32::from(mask).count_ones());
    let length = length.or_else(|_| mask.parse::<u32>());
    if let (Some(address), Ok(length)) = (interface.addresses.last_mut(), length)
        && !address.contains('/')
    {
        *address = format!("{address}/{length}");
    }
}

/// The files of Red Hat's network scripts.
fn ifcfg(text: &str) -> Option<Vec<Interface>> {
    let mut interface = Interface::default();
    let mut masks = Vec::new();
    for (name, value) in assignments(text) {
        match name {
            "DEVICE" => interface.name = Some(value),
            "HWADDR" => interface.mac = Some(value),
            "BOOTPROTO" => interface.dhcp |= value == "dhcp",
            "IPV6_AUTOCONF" | "DHCPV6C" => interface.dhcp |= value == "yes",
            "IPADDR" | "IPADDR0" | "IPV6ADDR" => interface.addresses.push(value),
            "NETMASK" | "NETMASK0" | "PREFIX" | "PREFIX0" => masks.push(value),
            "GATEWAY" | "IPV6_DEFAULTGW" => interface.gateways.push(value),
            _ if name.starts_with("DNS") => interface.nameservers.push(value),
            _ => {}
        }
    }
    // A mask may stand before its address.
    for mask in masks {
        add_netmask(&mut interface, &mask);
    }
    Some(vec![interface])
}

/// `netplan(5)`.
fn netplan(text: &str) -> Option<Vec<Interface>> {
    let document = yaml::parse(text)?;
    let network = document.get("network")?;
    let kinds = ["ethernets", "wifis", "bonds", "bridges", "vlans"];
    let devices = kinds.iter().filter_map(|kind| network.get(kind)).flat_map(Yaml::entries);
    let interfaces = devices.map(|(id, device)| {
        let matched = device.get("match");
        let texts = |key: &str| device.get(key).map(Yaml::texts).unwrap_or_default();
        let on = |key: &str| texts(key).iter().any(|value| matches!(value.as_str(), "true" | "yes" | "on"));
        let mut gateways = [texts("gateway4"), texts("gateway6")].concat();
        if let Some(Yaml::List(routes)) = device.get("routes") {
            let default = |route: &&Yaml| {
                matches!(route.get("to").and_then(Yaml::text), Some("default" | "0.0.0.0/0" | "::/0"))
            };
            gateways.extend(
                routes.iter().filter(default).filter_map(|route| Some(route.get("via")?.text()?.to_owned())),
            );
        }
        let name = match matched {
            Some(matched) => matched.get("name").and_then(Yaml::text).map(str::to_owned),
            None => Some(id.clone()),
        };
        Interface {
            name,
            mac: matched.and_then(|matched| Some(matched.get("macaddress")?.text()?.to_owned())),
            dhcp: on("dhcp4") || on("dhcp6"),
            addresses: texts("addresses"),
            gateways,
            nameservers: device
                .get("nameservers")
                .and_then(|servers| servers.get("addresses"))
                .map(Yaml::texts)
                .unwrap_or_default(),
        }
    });
    Some(interfaces.collect())
}

/// Sections, keys and values of a file in the manner of `.ini`.
fn ini(text: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    let mut section = "";
    text.lines().map(str::trim).filter_map(move |line| {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name;
            return None;
        }
        let (key, value) = line.split_once('=').filter(|_| !line.starts_with(['#', ';']))?;
        Some((section, key.trim(), value.trim()))
    })
}

/// `systemd.network(5)`.
fn networkd(text: &str) -> Option<Vec<Interface>> {
    let mut interface = Interface::default();
    for (section, key, value) in ini(text) {
        match (section, key) {
            ("Match", "Name") => interface.name = Some(value.to_owned()),
            ("Match", "MACAddress") => interface.mac = Some(value.to_owned()),
            ("Network", "DHCP") => {
                interface.dhcp = matches!(value, "yes" | "true" | "ipv4" | "ipv6" | "both")
            }
            ("Network" | "Address", "Address") => interface.addresses.push(value.to_owned()),
            ("Network" | "Route", "Gateway") => interface.gateways.push(value.to_owned()),
            ("Network", "DNS") => interface.nameservers.extend(words(value)),
            _ => {}
        }
    }
    Some(vec![interface])
}

/// A connection of NetworkManager, `nm-settings-keyfile(5)`. Secrets in it are passed over.
fn keyfile(text: &str) -> Option<Vec<Interface>> {
    let mut interface = Interface::default();
    for (section, key, value) in ini(text) {
        match (section, key) {
            ("connection", "interface-name") => interface.name = Some(value.to_owned()),
            ("ethernet" | "802-3-ethernet" | "wifi", "mac-address") => interface.mac = Some(value.to_owned()),
            ("ipv4" | "ipv6", "method") => interface.dhcp |= matches!(value, "auto" | "dhcp"),
            ("ipv4" | "ipv6", "gateway") => interface.gateways.push(value.to_owned()),
            ("ipv4" | "ipv6", "dns") => interface.nameservers.extend(words(value)),
            ("ipv4" | "ipv6", key) if key.starts_with("address") && key != "addresses-data" => {
                let (address, gateway) = value.split_once(',').unwrap_or((value, ""));
                interface.addresses.push(address.to_owned());
                interface.gateways.extend(words(gateway));
            }
            _ => {}
        }
    }
    Some(vec![interface])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixed(name: Option<&str>, mac: Option<&str>) -> Interface {
        Interface {
            name: name.map(str::to_owned),
            mac: mac.map(str::to_owned),
            dhcp: false,
            addresses: vec!["10.0.0.2/24".to_owned()],
            gateways: vec!["10.0.0.1".to_owned()],
            nameservers: vec!["1.1.1.1".to_owned(), "8.8.8.8".to_owned()],
        }
    }

    #[test]
    fn every_manager_says_the_same_in_its_own_words() {
        let eth0 = [fixed(Some("eth0"), None)];
        let text = "auto eth0\niface eth0 inet static\n address 10.0.0.2\n netmask 255.255.255.0\n \
                    gateway 10.0.0.1\n dns-nameservers 1.1.1.1 8.8.8.8\n";
        assert_eq!(ifupdown(text).unwrap(), eth0);
        let text = "DEVICE=eth0\nBOOTPROTO=none\nNETMASK=255.255.255.0\nIPADDR=10.0.0.2\nGATEWAY=10.0.0.1\n\
                    DNS1=1.1.1.1\nDNS2=\"8.8.8.8\"\n";
        assert_eq!(ifcfg(text).unwrap(), eth0);
        let text = "network:\n  ethernets:\n    eth0:\n      addresses: [10.0.0.2/24]\n      routes:\n      - to: default\n        \
                    via: 10.0.0.1\n      nameservers:\n        addresses: [1.1.1.1, 8.8.8.8]\n";
        assert_eq!(netplan(text).unwrap(), eth0);
        let text =
            "[Match]\nName=eth0\n[Network]\nAddress=10.0.0.2/24\nGateway=10.0.0.1\nDNS=1.1.1.1 8.8.8.8\n";
        assert_eq!(networkd(text).unwrap(), eth0);
        let text = "[connection]\ninterface-name=eth0\n[wifi-security]\npsk=secret\n[ipv4]\nmethod=manual\n\
                    address1=10.0.0.2/24,10.0.0.1\ndns=1.1.1.1;8.8.8.8;\n";
        assert_eq!(keyfile(text).unwrap(), eth0);
    }

    #[test]
    fn a_hardware_address_may_stand_for_the_name() {
        let text = "network:\n  ethernets:\n    any:\n      match: {macaddress: \"52:54:00:12:34:56\"}\n      dhcp4: true\n";
        let found = netplan(text).unwrap().remove(0);
        assert_eq!((found.name, found.mac.as_deref(), found.dhcp), (None, Some("52:54:00:12:34:56"), true));
    }

    #[test]
    fn both_families_of_an_interface_are_one() {
        let found = ifupdown("iface eth0 inet dhcp\niface eth0 inet6 auto\nsource x\naddress no\n").unwrap();
        assert_eq!(found.len(), 1);
        assert!(found[0].dhcp && found[0].addresses.is_empty());
    }
}
