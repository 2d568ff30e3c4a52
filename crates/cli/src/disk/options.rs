//! The options of formats, as `-o KEY=VALUE` sets them.

use vmwright_image::Layout;

use crate::failure::Failure;

/// Sets one option, written as KEY=VALUE.
pub(super) fn apply(layout: &mut Layout, option: &str) -> anyhow::Result<()> {
    let Some((key, value)) = option.split_once('=') else {
        return Err(Failure::usage(format!("the option {option:?} is not of the form key=value")));
    };
    layout.set(key, value).map_err(|error| {
        let known: Vec<_> = layout.options().iter().map(|(key, what)| format!("{key} ({what})")).collect();
        Failure::usage(format!("{error}; its options are: {}", known.join(", ")))
    })
}
