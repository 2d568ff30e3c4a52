//! The options of formats, as `-o KEY=VALUE` sets them.

use vmwright_image::{Compat, Format, Preallocation, Qcow2Options};

use crate::failure::Failure;
use crate::output::parse_size;

/// Sets one option, written as KEY=VALUE.
pub(super) fn apply(format: Format, qcow2: &mut Qcow2Options, option: &str) -> anyhow::Result<()> {
    let Some((key, value)) = option.split_once('=') else {
        return Err(Failure::usage(format!("the option {option:?} is not of the form key=value")));
    };
    if format != Format::Qcow2 {
        return Err(Failure::usage(format!("the {format} format has no option {key}")));
    }
    let number = || parse_size(value).map_err(Failure::usage);
    let wrong = |allowed: &str| Failure::usage(format!("{key} is {allowed}, not {value:?}"));
    match key {
        "cluster_size" => qcow2.cluster_size = u32::try_from(number()?).map_err(|_| wrong("512 to 2M"))?,
        "refcount_bits" => qcow2.refcount_bits = u32::try_from(number()?).map_err(|_| wrong("1 to 64"))?,
        "compat" => {
            qcow2.compat = match value {
                "0.10" | "v2" => Compat::V0_10,
                "1.1" | "v3" => Compat::V1_1,
                _ => return Err(wrong("0.10 or 1.1")),
            }
        }
        "lazy_refcounts" => {
            qcow2.lazy_refcounts = match value {
                "on" | "true" => true,
                "off" | "false" => false,
                _ => return Err(wrong("on or off")),
            }
        }
        "preallocation" => {
            qcow2.preallocation = match value {
                "off" => Preallocation::Off,
                "metadata" => Preallocation::Metadata,
                _ => return Err(wrong("off or metadata")),
            }
        }
        _ => return Err(Failure::usage(format!("the qcow2 format has no option {key}"))),
    }
    Ok(())
}
