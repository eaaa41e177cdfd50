//! Tables for a terminal or a pipe: words to the left, numbers to the right.

use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, LineStyle, TableStyle};

/// A column's heading and alignment.
#[derive(Clone, Debug)]
pub struct Column {
    heading: String,
    number: bool,
}

impl Column {
    /// A column of words.
    pub fn text(heading: impl Into<String>) -> Self {
        Self { heading: heading.into(), number: false }
    }

    /// A column of numbers, aligned to the right.
    pub fn number(heading: impl Into<String>) -> Self {
        Self { heading: heading.into(), number: true }
    }
}

/// Rows under headings.
#[derive(Clone, Debug)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    pub fn new(columns: impl IntoIterator<Item = Column>) -> Self {
        Self { columns: columns.into_iter().collect(), rows: Vec::new() }
    }

    /// Adds a row; missing cells are empty.
    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) -> &mut Self {
        self.rows.push(cells.into_iter().map(Into::into).collect());
        self
    }

    /// The table as text without a line end after the last row. Words wrap to fit `width` characters, where it is given.
    ///
    /// `unicode` draws the rule under the headings with a line character, otherwise the text is plain ASCII.
    pub fn render(&self, width: Option<u16>, unicode: bool) -> String {
        let rule = if unicode { '\u{2500}' } else { '-' };
        let mut table = comfy_table::Table::new();
        table.load_style(TableStyle::new().header_separator(LineStyle::none().fill(rule).junction(rule)));
        if let Some(width) = width {
            table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
        }
        table.set_header(self.columns.iter().map(|column| column.heading.as_str()));
        for row in &self.rows {
            table.add_row((0..self.columns.len()).map(|i| row.get(i).map_or("", String::as_str)));
        }
        for (i, column) in self.columns.iter().enumerate() {
            let Some(shown) = table.column_mut(i) else { continue };
            // One more space stands between columns anyway.
            shown.set_padding((if i == 0 { 0 } else { 1 }, 0));
            if column.number {
                shown.set_cell_alignment(CellAlignment::Right);
                // Numbers never wrap.
                shown.set_constraint(ColumnConstraint::ContentWidth);
            }
        }
        table.trim_fmt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Table {
        let mut table = Table::new([Column::text("Method"), Column::number("Trainable"), Column::number("Accuracy")]);
        table.row(["lora", "487,424", "0.9731"]).row(["prompt tuning with a long name", "5,760", "0.9"]).row(["none"]);
        table
    }

    #[test]
    fn numbers_are_aligned_to_the_right() {
        let expected = "\
Method                          Trainable  Accuracy
---------------------------------------------------
lora                              487,424    0.9731
prompt tuning with a long name      5,760       0.9
none";
        assert_eq!(sample().render(None, false), expected);
    }

    #[test]
    fn words_wrap_and_numbers_do_not() {
        let rule = "\u{2500}".repeat(42);
        let expected = format!(
            "\
Method                 Trainable  Accuracy
{rule}
lora                     487,424    0.9731
prompt tuning with a       5,760       0.9
long name
none"
        );
        assert_eq!(sample().render(Some(42), true), expected);
    }

    #[test]
    fn headings_stand_alone() {
        assert_eq!(Table::new([Column::text("Name")]).render(None, false), "Name\n----");
    }
}
