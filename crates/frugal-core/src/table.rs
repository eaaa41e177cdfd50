//! Tables for a terminal or a pipe: words to the left, numbers to the right.

use comfy_table::{
    CellAlignment, ColumnConstraint, ContentArrangement, LineStyle, TableStyle, Width,
};

/// A column's heading and alignment.
#[derive(Clone, Debug)]
pub struct Column {
    heading: String,
    number: bool,
}

impl Column {
    /// A column of words.
    pub fn text(heading: impl Into<String>) -> Self {
        Self {
            heading: heading.into(),
            number: false,
        }
    }

    /// A column of numbers, aligned to the right.
    pub fn number(heading: impl Into<String>) -> Self {
        Self {
            heading: heading.into(),
            number: true,
        }
    }
}

/// Spaces between columns.
const GAP: u16 = 2;
/// Longer words, such as paths, break before numbers do, except those of the first column.
const LONG_WORD: u16 = 16;

/// Characters of a column's widest cell and of its longest word.
#[derive(Clone, Copy, Default)]
struct Widths {
    cell: u16,
    word: u16,
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
        Self {
            columns: columns.into_iter().collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; missing cells are empty.
    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) -> &mut Self {
        self.rows.push(cells.into_iter().map(Into::into).collect());
        self
    }

    /// The table as text without a line end after the last row. Cells wrap to fit `width`
    /// characters, where it is given: those of words first, then `12.5 MiB` and the like as well;
    /// the words of the first column, which names the rows, break last. Where numbers would have to
    /// break inside, each row becomes a block of lines, one for each column.
    ///
    /// `unicode` draws the rule under the headings with a line character, otherwise the text is
    /// plain ASCII.
    pub fn render(&self, width: Option<u16>, unicode: bool) -> String {
        if let Some(width) = width.filter(|width| self.least_width() > *width) {
            return self.blocks(usize::from(width));
        }
        let rule = if unicode { '\u{2500}' } else { '-' };
        let mut table = comfy_table::Table::new();
        table.load_style(
            TableStyle::new().header_separator(LineStyle::none().fill(rule).junction(rule)),
        );
        if let Some(width) = width {
            table
                .set_content_arrangement(ContentArrangement::Dynamic)
                .set_width(width);
        }
        table.set_header(self.columns.iter().map(|column| column.heading.as_str()));
        for row in &self.rows {
            table.add_row((0..self.columns.len()).map(|i| row.get(i).map_or("", String::as_str)));
        }
        let widths: Vec<Widths> = (0..self.columns.len()).map(|i| self.widths(i)).collect();
        // What the columns after the first need.
        let others = |whole_numbers: bool, longest_word: u16| {
            let least = |(column, w): (&Column, &Widths)| {
                GAP + if column.number && whole_numbers {
                    w.cell
                } else {
                    w.word.min(longest_word)
                }
            };
            self.columns
                .iter()
                .zip(&widths)
                .skip(1)
                .map(least)
                .fold(0, u16::saturating_add)
        };
        let name = widths.first().map_or(0, |w| w.word);
        let numbers_fit =
            width.is_none_or(|width| others(true, LONG_WORD).saturating_add(name) <= width);
        // Long words break only where there is no room for them.
        let whole = |width| others(numbers_fit, u16::MAX).saturating_add(name) <= width;
        let longest_word = if width.is_none_or(whole) {
            u16::MAX
        } else {
            LONG_WORD
        };
        let name = width.map_or(name, |width| {
            name.min(width.saturating_sub(others(false, LONG_WORD)))
        });
        for (i, (column, widths)) in self.columns.iter().zip(&widths).enumerate() {
            let Some(shown) = table.column_mut(i) else {
                continue;
            };
            // One more space stands between columns anyway.
            let padding = if i == 0 { 0 } else { GAP - 1 };
            shown.set_padding((padding, 0));
            if column.number {
                shown.set_cell_alignment(CellAlignment::Right);
            }
            if i == 0 {
                shown.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(name)));
            } else if column.number && numbers_fit {
                shown.set_constraint(ColumnConstraint::ContentWidth);
            } else if column.number {
                shown.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(
                    widths.word + padding,
                )));
            } else {
                shown.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(
                    widths.word.min(longest_word) + padding,
                )));
            }
        }
        table.trim_fmt()
    }

    /// Width below which a word would have to break that is a number or names a row.
    fn least_width(&self) -> u16 {
        let least = |(i, column): (usize, &Column)| {
            let word = self.widths(i).word;
            match (i, column.number) {
                (0, _) => word,
                (_, true) => GAP + word,
                (_, false) => GAP + word.min(LONG_WORD),
            }
        };
        self.columns
            .iter()
            .enumerate()
            .map(least)
            .fold(0, u16::saturating_add)
    }

    /// Each row as a block of lines: what it is called, then a line for each column that says
    /// something.
    fn blocks(&self, width: usize) -> String {
        let headings = self.columns.iter().skip(1);
        let widest = headings
            .map(|column| column.heading.chars().count())
            .max()
            .unwrap_or(0)
            .min(width / 2);
        let line = |(column, cell): (&Column, &String)| {
            let (name, indent) = (&column.heading, " ".repeat(2 + widest + usize::from(GAP)));
            let lines = wrapped(cell, width.saturating_sub(indent.len()).max(1));
            format!("  {name:<widest$}  {}", lines.join(&format!("\n{indent}")))
        };
        let block = |row: &Vec<String>| {
            let cells = self.columns.iter().zip(row).skip(1);
            let lines = cells.filter(|(_, cell)| !cell.is_empty()).map(line);
            let name = row.first().cloned().unwrap_or_default();
            std::iter::once(name)
                .chain(lines)
                .collect::<Vec<_>>()
                .join("\n")
        };
        self.rows.iter().map(block).collect::<Vec<_>>().join("\n")
    }

    /// How wide a column is at its widest.
    fn widths(&self, i: usize) -> Widths {
        let heading = std::iter::once(self.columns[i].heading.as_str());
        let cells = heading.chain(
            self.rows
                .iter()
                .filter_map(|row| row.get(i).map(String::as_str)),
        );
        // Longer ones do not fit anywhere.
        let width = |text: &str| {
            u16::try_from(text.chars().count())
                .unwrap_or(u16::MAX)
                .min(1000)
        };
        cells.fold(Widths::default(), |widest, cell| Widths {
            cell: widest.cell.max(width(cell)),
            word: cell
                .split_whitespace()
                .map(width)
                .fold(widest.word, u16::max),
        })
    }
}

/// Lines of at most `width` characters; longer words stand alone.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.len() - 1;
        let used = lines[last].chars().count();
        if used == 0 {
            lines[last].push_str(word);
        } else if used + 1 + word.chars().count() <= width {
            lines[last] = format!("{} {word}", lines[last]);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Table {
        let mut table = Table::new([
            Column::text("Method"),
            Column::number("Trainable"),
            Column::number("Accuracy"),
        ]);
        table
            .row(["lora", "487,424", "0.9731"])
            .row(["prompt tuning with a long name", "5,760", "0.9"])
            .row(["none"]);
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

    /// At 80 columns `matthews_correlation` and `minilm-l6` were cut in the middle, though the cells
    /// before them could wrap.
    #[test]
    fn words_of_later_columns_do_not_break_where_others_can_wrap() {
        let mut table = Table::new(
            ["part", "metric"]
                .map(Column::text)
                .into_iter()
                .chain(["majority class", "untrained", "adapted", "change"].map(Column::number)),
        );
        table.row([
            "validation (40)",
            "matthews_correlation",
            "0.0000",
            "0.1373",
            "0.0000",
            "-0.1373",
        ]);
        let mut runs = Table::new(
            ["run", "model"].map(Column::text).into_iter().chain(
                [
                    "accuracy",
                    "±",
                    "parameters",
                    "file",
                    "memory",
                    "time",
                    "tokens/s",
                ]
                .map(Column::number),
            ),
        );
        runs.row([
            "mine",
            "minilm-l6",
            "0.7900",
            "-",
            "338,690",
            "1.3 MiB",
            "169.4 MiB",
            "57.8 s",
            "731",
        ]);
        runs.row(["(untrained minilm-l6)", "", "0.5100"]);
        for (table, words) in [
            (&table, ["validation", "matthews_correlation"]),
            (&runs, ["minilm-l6", "(untrained"]),
        ] {
            let shown = table.render(Some(80), true);
            for word in words {
                assert!(shown.contains(word), "{shown}");
            }
            assert!(shown.lines().all(|l| l.chars().count() <= 80), "{shown}");
        }
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
    fn names_stay_whole_where_numbers_and_other_words_can_give_way() {
        let mut table = Table::new([
            Column::text("Method"),
            Column::text("What it does"),
            Column::number("Peak memory"),
        ]);
        table.row([
            "trainable-tokens",
            "trains rows of the token table",
            "125.8 MiB",
        ]);
        for width in [32, 36, 37, 60] {
            let text = table.render(Some(width), true);
            let widest = text
                .lines()
                .map(|line| line.chars().count())
                .max()
                .unwrap_or(0);
            assert!(
                text.contains("trainable-tokens") && widest <= usize::from(width),
                "{width}:\n{text}"
            );
            assert_eq!(text.contains("125.8 MiB"), width >= 37, "{width}:\n{text}");
        }
        // Nothing is left to give way: a block of lines.
        let expected = "\
trainable-tokens
  What it does  trains rows
                of the token
                table
  Peak memory   125.8 MiB";
        assert_eq!(table.render(Some(28), true), expected);
    }

    #[test]
    fn numbers_do_not_break_inside() {
        let headings = [
            "accuracy",
            "±",
            "parameters",
            "file",
            "memory",
            "time",
            "tokens/s",
        ];
        let mut table =
            Table::new(std::iter::once(Column::text("run")).chain(headings.map(Column::number)));
        let cells = [
            "0.8222",
            "0.0222",
            "487,424",
            "1.9 MiB",
            "1,166.8 MiB",
            "20 min 3 s",
            "36,500",
        ];
        table.row(std::iter::once("text-encoder-lora-plus").chain(cells));
        for width in 30..=120 {
            let text = table.render(Some(width), true);
            for number in ["0.8222", "0.0222", "487,424", "1,166.8", "36,500"] {
                assert!(text.contains(number), "{width}:\n{text}");
            }
            let widest = text
                .lines()
                .map(|line| line.chars().count())
                .max()
                .unwrap_or(0);
            assert!(widest <= usize::from(width), "{width}:\n{text}");
        }
    }

    #[test]
    fn headings_stand_alone() {
        assert_eq!(
            Table::new([Column::text("Name")]).render(None, false),
            "Name\n----"
        );
    }
}
