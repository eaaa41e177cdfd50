//! Tables of results.

use console::measure_text_width;
use frugal_core::table::Table;

use super::text::wrap;

/// Prints a table that fits the terminal.
pub fn print(table: &Table) {
    super::print(&table.render(u16::try_from(super::width()).ok(), true));
}

/// Names and values, one pair a line, values in one column; long values continue under themselves.
pub fn pairs<N: AsRef<str>>(rows: &[(N, String)]) -> String {
    let widest = rows
        .iter()
        .map(|(name, _)| measure_text_width(name.as_ref()))
        .max()
        .unwrap_or(0);
    let width = super::width();
    let rest = " ".repeat(widest + 2);
    let line = |(name, value): &(N, String)| {
        let gap = " ".repeat(widest + 2 - measure_text_width(name.as_ref()));
        wrap(value, width, &format!("{}{gap}", name.as_ref()), &rest)
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}
