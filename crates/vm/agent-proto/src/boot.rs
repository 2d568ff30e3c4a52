use serde::{Deserialize, Serialize};

/// Where the agent's initramfs keeps its [`BootConfig`].
pub const BOOT_CONFIG_PATH: &str = "/vmwright.boot";

/// The name of the virtio-serial port that carries the channel, as the guest's kernel shows it.
pub const PORT_NAME: &str = "org.vmwright.agent";

/// Precedes the configuration and changes with its layout.
const HEADER: &[u8; 8] = b"VMWBOOT1";

/// What the agent does when it starts as process 1 out of the initramfs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootConfig {
    /// Kernel modules to load: paths in the initramfs, each after those it needs.
    pub modules: Vec<String>,
    /// The device that holds the guest's root.
    pub root: RootDevice,
    /// Its filesystem, as mount(8) names it.
    pub fs_type: String,
    /// Mount options that the filesystem itself understands, separated by commas.
    pub options: String,
    /// Whether it is mounted read-only.
    pub read_only: bool,
    /// What follows once it is mounted.
    pub then: Then,
}

/// How the root device is recognised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RootDevice {
    /// By its name, such as `/dev/vda1`.
    Path(String),
    /// By the serial number of its disk, and the partition's number if it is not the whole disk.
    Serial {
        /// What the disk says of itself, at most 20 characters on virtio-blk.
        serial: String,
        /// Counted from 1 as the kernel does.
        partition: Option<u32>,
    },
    /// By the filesystem's identifier (ext2, ext3, ext4, XFS, Btrfs), in lower case.
    Uuid(String),
    /// By the partition's identifier: a GUID, or `xxxxxxxx-NN` on an MBR disk, in lower case.
    PartUuid(String),
}

/// What the agent becomes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Then {
    /// It stays process 1 and runs what it is asked to ([`Mode::Init`](crate::Mode::Init)).
    Serve,
    /// It stays beside the guest's own init ([`Mode::Companion`](crate::Mode::Companion)).
    HandOver {
        /// The guest's init; the usual places are tried where this is empty.
        init: String,
    },
}

impl BootConfig {
    /// Encodes it for the initramfs.
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_extend(self, HEADER.to_vec())
            .expect("the configuration is plain data and a vector takes any length")
    }

    /// Decodes what [`BootConfig::encode`] made; `None` for anything else.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (config, rest) = postcard::take_from_bytes(bytes.strip_prefix(HEADER)?).ok()?;
        rest.is_empty().then_some(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_configuration_survives_encoding_and_nothing_else_decodes() {
        let config = BootConfig {
            modules: vec!["/m/a.ko".into(), "/m/b.ko".into()],
            root: RootDevice::Serial { serial: "root".into(), partition: Some(1) },
            fs_type: "ext4".into(),
            options: String::new(),
            read_only: true,
            then: Then::HandOver { init: "/sbin/init".into() },
        };
        let bytes = config.encode();
        assert_eq!(BootConfig::decode(&bytes), Some(config));
        for len in 0..bytes.len() {
            assert_eq!(BootConfig::decode(&bytes[..len]), None);
        }
        assert_eq!(BootConfig::decode(&[&bytes[..], b"x"].concat()), None);
    }
}
