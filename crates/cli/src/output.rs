//! How answers look: JSON where asked, tables otherwise.

use std::io::{self, Write};

use serde::Serialize;

use crate::failure::escape;

/// Writes a value as indented JSON and a newline.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    // Made whole first: an error of serde_json's would hide why the writing failed.
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    io::stdout().lock().write_all(&text)?;
    Ok(())
}

/// Writes a line to standard output.
pub(crate) fn line(text: impl AsRef<str>) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(escape(text.as_ref()).as_bytes())?;
    out.write_all(b"\n")?;
    Ok(())
}

/// Writes a note to standard error, where it never mixes with an answer.
pub(crate) fn note(text: impl AsRef<str>) {
    eprintln!("{}", escape(text.as_ref()));
}

/// A table with a heading; columns are as wide as their widest cell.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    /// The columns that hold numbers, which line up at their right.
    right: Vec<usize>,
}

impl Table {
    /// Makes a table with the given headings.
    pub(crate) fn new<'a>(headings: impl IntoIterator<Item = &'a str>) -> Self {
        Self { rows: vec![headings.into_iter().map(str::to_owned).collect()], right: Vec::new() }
    }

    /// Lines a column up at its right.
    pub(crate) fn right(mut self, column: usize) -> Self {
        self.right.push(column);
        self
    }

    /// Appends a row, with as many cells as there are headings.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| escape(&cell)).collect());
    }

    /// Writes the table to standard output.
    pub(crate) fn print(&self) -> anyhow::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(self.render().as_bytes())?;
        Ok(())
    }

    fn render(&self) -> String {
        let columns = self.rows.first().map_or(0, Vec::len);
        let widths: Vec<_> = (0..columns)
            .map(|column| self.rows.iter().map(|row| width(&row[column])).max().unwrap_or(0))
            .collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let padding = " ".repeat(widths[column] - width(cell));
                let (before, after) = if self.right.contains(&column) {
                    (padding, String::new())
                } else {
                    (String::new(), padding)
                };
                line += &format!("{before}{cell}{after}  ");
            }
            text += line.trim_end();
            text.push('\n');
        }
        text
    }
}

fn width(cell: &str) -> usize {
    cell.chars().count()
}

/// Writes aligned `name  value` lines, leaving out those without a value.
pub(crate) fn properties(rows: &[(&str, Option<String>)]) -> anyhow::Result<()> {
    let shown: Vec<_> =
        rows.iter().filter_map(|(name, value)| value.as_ref().map(|value| (*name, value))).collect();
    let widest = shown.iter().map(|(name, _)| width(name)).max().unwrap_or(0);
    for (name, value) in shown {
        let indented = value.replace('\n', &format!("\n{}", " ".repeat(widest + 2)));
        line(format!("{name:widest$}  {indented}"))?;
    }
    Ok(())
}

/// A size as people read it: `4 GiB`, `1.5 MiB`, `512 B`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut unit = 0;
    let mut value = bytes as f64;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let text = format!("{value:.1}");
    format!("{} {}", text.strip_suffix(".0").unwrap_or(&text), UNITS[unit])
}

/// Reads a size as people write it: `20G`, `512M`, `1.5T`, `4096`; powers of 1024.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let digits_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits_end);
    let shift = match unit.to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        "T" | "TB" | "TIB" => 40,
        "P" | "PB" | "PIB" => 50,
        _ => return Err(format!("unknown unit {unit:?}; there are K, M, G, T and P")),
    };
    let whole = number.parse::<u64>().ok().and_then(|value| value.checked_mul(1 << shift));
    if let Some(bytes) = whole {
        return Ok(bytes);
    }
    let fraction = number.parse::<f64>().map_err(|_| format!("{text:?} is not a size such as 20G"))?;
    let bytes = fraction * (1u64 << shift) as f64;
    if bytes.is_finite() && bytes < u64::MAX as f64 {
        Ok(bytes as u64)
    } else {
        Err(format!("{text} is too large"))
    }
}

/// A time as `2026-01-31 13:45:00`, in UTC.
pub(crate) fn time(seconds: i64) -> String {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Civil dates out of day counts, in years that begin in March so that leap days come last.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{:02}", second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_they_are_written() {
        assert_eq!(parse_size("20G"), Ok(20 << 30));
        assert_eq!(parse_size("1.5M"), Ok(3 << 19));
        assert_eq!(parse_size("4096"), Ok(4096));
        assert!(parse_size("12Q").is_err());
        assert!(parse_size("99999999P").is_err());
        assert_eq!(size(4 << 30), "4 GiB");
        assert_eq!(size(3 << 19), "1.5 MiB");
    }

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(["NAME", "SIZE"]).right(1);
        table.row(["a".into(), "10 B".into()]);
        table.row(["long name".into(), "1 B".into()]);
        assert_eq!(table.render(), "NAME       SIZE\na          10 B\nlong name   1 B\n");
    }

    #[test]
    fn times_are_civil() {
        assert_eq!(time(0), "1970-01-01 00:00:00");
        assert_eq!(time(951_782_400), "2000-02-29 00:00:00");
        assert_eq!(time(-1), "1969-12-31 23:59:59");
        assert_eq!(time(1_767_225_599), "2025-12-31 23:59:59");
    }
}
