use vmwright_vmm::DiskFormat;

use crate::config::{AgentMode, CreateRequest, DiskMode, VmConfig};
use crate::layout;
use crate::lock::FileLock;
use crate::runtime::Runtime;
use crate::store::{NewVm, Outcome};
use crate::{FileIdentity, Result, VmInfo, VmName, disks, fault};

impl Runtime {
    /// Makes a VM on a disk image; it does not run yet.
    ///
    /// In the isolated mode the image stays as it is and must stay so: the VM remembers what it was.
    pub fn create(&self, request: &CreateRequest) -> Result<VmInfo> {
        let name = match &request.name {
            Some(name) => name.clone(),
            None => VmName::random("vm")?,
        };
        self.create_with(&name, request, AgentMode::Companion, false)?;
        self.inspect(&name)
    }

    /// Makes a VM; answers with its lock, which keeps others from taking an ephemeral one for forsaken.
    pub(crate) fn create_with(
        &self,
        name: &VmName,
        request: &CreateRequest,
        agent: AgentMode,
        ephemeral: bool,
    ) -> Result<FileLock> {
        let mut config = self.configuration(name, request, agent)?;
        let store = self.store()?;
        let images = disks::uses(&config.base, config.disk_mode);
        let new = NewVm { name, config: &self.encode(&config)?, images: &images, ephemeral };
        let operation = store.create_vm(&new, &self.owner()?)?;
        fault::point("create.recorded");
        let lock = match self.make_files(name, &mut config) {
            Ok(lock) => lock,
            Err(error) => {
                // What cannot be removed now is removed with the operation, once this process is gone.
                self.erase(name)?;
                return Err(error);
            }
        };
        store.configure_vm(name, &self.encode(&config)?)?;
        store.finish(operation, Outcome::Done, None)?;
        store.record_event(name, "created", "")?;
        fault::point("create.done");
        Ok(lock)
    }

    fn encode(&self, config: &VmConfig) -> Result<String> {
        serde_json::to_string(config).map_err(|source| crate::Error::record(&self.home.database(), source))
    }

    fn configuration(&self, name: &VmName, request: &CreateRequest, agent: AgentMode) -> Result<VmConfig> {
        let base = disks::look(&request.disk)?;
        let (disk, disk_format) = match request.disk_mode {
            DiskMode::Isolated => (self.home.vm(name).disk(), DiskFormat::Qcow2),
            DiskMode::Shared => (base.path.clone(), base.format),
        };
        let kernel = request
            .kernel
            .as_ref()
            .map(|kernel| kernel.canonicalize().map_err(|source| crate::Error::host("find", kernel, source)));
        Ok(VmConfig {
            base,
            disk_mode: request.disk_mode,
            disk,
            disk_format,
            pristine: None,
            backend: request.backend.clone(),
            kernel: kernel.transpose()?,
            cmdline_append: request.cmdline_append.clone(),
            accelerator: request.accelerator,
            memory: request.memory,
            cpus: request.cpus,
            ttl: request.ttl,
            restart: request.restart,
            agent,
        })
    }

    fn make_files(&self, name: &VmName, config: &mut VmConfig) -> Result<FileLock> {
        let dir = self.home.vm(name);
        // Somebody else's leftover of that name: rows are made first, so nobody has it in use.
        layout::remove_dir(dir.path())?;
        layout::private_dir(dir.path())?;
        let lock = FileLock::exclusive(&dir.lock(), None)?;
        fault::point("create.directory");
        if config.disk_mode == DiskMode::Isolated {
            disks::make_overlay(&dir, &config.base)?;
            config.pristine = Some(FileIdentity::of(&config.disk)?);
        }
        fault::point("create.disk");
        Ok(lock)
    }
}
