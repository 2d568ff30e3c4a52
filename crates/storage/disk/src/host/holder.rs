//! Finds out who holds the locks of a file: locks of open file descriptions carry no process number, but
//! `/proc/PID/fdinfo` lists them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::Stat;

/// Names a process that holds a lock on the file, as far as this process may see.
pub(super) fn find(stat: &Stat) -> Option<String> {
    let own = std::process::id().to_string();
    let mut pids =
        fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let pid = pids.find(|pid| *pid != own && pid.parse::<u32>().is_ok() && holds(pid, stat));
    match pid {
        Some(pid) => {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            let name: String = name.trim_end().chars().filter(|c| !c.is_control()).collect();
            Some(format!("{name} (process {pid})"))
        }
        None if holds(&own, stat) => Some("this process".into()),
        None => None,
    }
}

fn holds(pid: &str, stat: &Stat) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    descriptors.flatten().any(|fd| {
        let same = fs::metadata(fd.path()).is_ok_and(|m| m.dev() == stat.device && m.ino() == stat.inode);
        let info = Path::new("/proc").join(pid).join("fdinfo").join(fd.file_name());
        same && fs::read_to_string(info).is_ok_and(|text| text.lines().any(|line| line.starts_with("lock:")))
    })
}
