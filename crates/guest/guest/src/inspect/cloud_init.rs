use serde::{Deserialize, Serialize};

use super::{Reader, yaml};
use crate::guest::Guest;

/// How cloud-init is configured.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CloudInit {
    /// Whether nothing in the guest turns it off.
    pub enabled: bool,
    /// Where it looks for its data, by the names it gives the sources; empty means wherever it can.
    pub datasources: Vec<String>,
    /// Data that is there: directories, and devices labelled for it.
    pub seeds: Vec<String>,
    /// The instance that it last ran for; none before its first run.
    pub instance_id: Option<String>,
}

pub(super) fn read(reader: &mut Reader<'_>, guest: &Guest) -> Option<CloudInit> {
    let main = reader.text("/etc/cloud/cloud.cfg")?;
    let mut cloud_init = CloudInit {
        enabled: !reader.exists("/etc/cloud/cloud-init.disabled"),
        instance_id: reader.text("/var/lib/cloud/data/instance-id").map(|id| id.trim().to_owned()),
        ..CloudInit::default()
    };
    let mut texts = vec![main];
    let drop_ins = reader.files("/etc/cloud/cloud.cfg.d", ".cfg");
    texts.extend(drop_ins.iter().filter_map(|path| reader.text(path)));
    for text in texts {
        if let Some(list) = datasource_list(&text) {
            cloud_init.datasources = list;
        }
    }
    let seeds = reader.names("/var/lib/cloud/seed");
    cloud_init.seeds = seeds.into_iter().map(|name| format!("/var/lib/cloud/seed/{name}")).collect();
    let labelled = guest.volumes().filter(|volume| {
        let label = volume.content.as_ref().and_then(|content| content.label.as_deref());
        label.is_some_and(|label| {
            label.eq_ignore_ascii_case("cidata") || label.eq_ignore_ascii_case("config-2")
        })
    });
    cloud_init.seeds.extend(labelled.map(|volume| volume.device.clone()));
    Some(cloud_init)
}

/// These files hold more of YAML than is understood, so only the paragraph in question is read.
fn datasource_list(text: &str) -> Option<Vec<String>> {
    let from = text.lines().skip_while(|line| !line.starts_with("datasource_list:"));
    let mut paragraph = String::new();
    for (index, line) in from.enumerate() {
        let belongs = index == 0 || line.is_empty() || line.starts_with([' ', '-', '#', ']']);
        if !belongs {
            break;
        }
        paragraph.push_str(line);
        // A flow list may go on over several lines.
        let open = paragraph.contains('[') && !paragraph.contains(']');
        paragraph.push(if open { ' ' } else { '\n' });
    }
    Some(yaml::parse(&paragraph)?.get("datasource_list")?.texts())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_found_among_other_things() {
        let text = "users:\n - default\ndatasource_list: [ NoCloud,\n   ConfigDrive ]\nother: |\n  x: [\n";
        assert_eq!(datasource_list(text).unwrap(), ["NoCloud", "ConfigDrive"]);
        assert_eq!(datasource_list("datasource_list:\n- Ec2\n- None\n").unwrap(), ["Ec2", "None"]);
        assert_eq!(datasource_list("# datasource_list: [a]\n"), None);
    }
}
