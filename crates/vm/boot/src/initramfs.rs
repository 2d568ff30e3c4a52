//! The archive that the kernel starts from.

use vmwright_agent_proto::{BOOT_CONFIG_PATH, BootConfig};

use crate::cpio::Archive;
use crate::modules::Module;

/// Where modules are in the archive.
const MODULES: &str = "modules";

/// Packs the agent as `/init`, the modules in the order of loading, and the configuration.
///
/// The same input gives the same bytes. They are not packed: see `docs/boot.md` for what was measured.
pub(crate) fn build(agent: &[u8], modules: &[Module], mut config: BootConfig) -> Vec<u8> {
    let mut archive = Archive::new();
    archive.directory("dev", 0o755);
    // Before the agent has mounted anything, these two are opened for it: by the kernel, and by its runtime.
    archive.char_device("dev/console", 0o600, 5, 1);
    archive.char_device("dev/null", 0o666, 1, 3);
    archive.directory(MODULES, 0o755);
    for module in modules {
        let path = format!("{MODULES}/{}.ko", module.name);
        archive.file(&path, 0o644, &module.object);
        config.modules.push(format!("/{path}"));
    }
    archive.file(BOOT_CONFIG_PATH.trim_start_matches('/'), 0o644, &config.encode());
    archive.file("init", 0o755, agent);
    archive.finish()
}
