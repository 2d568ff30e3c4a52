//! The options of formats, as `-o KEY=VALUE` sets them.

use vmwright_image::{Format, Layout};

use crate::failure::Failure;

/// The defaults of a format, as the command line has them: LUKS in its newer version.
pub(crate) fn layout(format: Format, options: &[String]) -> anyhow::Result<Layout> {
    let mut layout = Layout::new(format);
    if format == Format::Luks {
        layout.set("version", "2")?;
    }
    options.iter().try_for_each(|option| apply(&mut layout, option))?;
    Ok(layout)
}

/// Sets one option, written as KEY=VALUE.
fn apply(layout: &mut Layout, option: &str) -> anyhow::Result<()> {
    let Some((key, value)) = option.split_once('=') else {
        return Err(Failure::usage(format!("the option {option:?} is not of the form key=value")));
    };
    layout.set(key, value).map_err(|error| {
        let known: Vec<_> = layout.options().iter().map(|(key, what)| format!("{key} ({what})")).collect();
        Failure::usage(format!("{error}; its options are: {}", known.join(", ")))
    })
}
