//! A table of texts, as HTML and as Markdown: the first column says what, the others are numbers.

use std::fmt::Write;

use super::markup::escape;

/// Headings and rows.
pub(super) struct Rows {
    pub(super) headings: Vec<String>,
    pub(super) rows: Vec<Vec<String>>,
}

impl Rows {
    pub(super) fn new<'a>(
        headings: impl IntoIterator<Item = &'a str>,
        rows: Vec<Vec<String>>,
    ) -> Self {
        Self {
            headings: headings.into_iter().map(str::to_owned).collect(),
            rows,
        }
    }

    /// The table with a note below it; nothing without rows.
    pub(super) fn to_html(&self, note: &str) -> String {
        if self.rows.is_empty() {
            return String::new();
        }
        let line = |cells: &[String], tag: &str| -> String {
            let cell = |(i, text): (usize, &String)| {
                let class = if i == 0 { "" } else { " class=\"n\"" };
                // On a narrow page a row becomes a card, in which each cell names itself.
                let label = match (tag, self.headings.get(i)) {
                    ("td", Some(heading)) => format!(" data-label=\"{}\"", escape(heading)),
                    _ => String::new(),
                };
                format!("<{tag}{class}{label}>{}</{tag}>", escape(text))
            };
            cells.iter().enumerate().map(cell).collect()
        };
        let mut html = String::from("<div class=\"scroll\"><table class=\"cards\">\n");
        let _ = writeln!(
            html,
            "<thead><tr>{}</tr></thead>\n<tbody>",
            line(&self.headings, "th")
        );
        for row in &self.rows {
            let _ = writeln!(html, "<tr>{}</tr>", line(row, "td"));
        }
        let note = if note.is_empty() {
            String::new()
        } else {
            format!("<p class=\"note\">{}</p>\n", escape(note))
        };
        html + "</tbody>\n</table></div>\n" + &note
    }

    /// The table in Markdown; nothing without rows.
    pub(super) fn to_markdown(&self) -> String {
        if self.rows.is_empty() {
            return String::new();
        }
        let columns = self.headings.len().saturating_sub(1);
        let mut text = format!(
            "| {} |\n|---|{}\n",
            self.headings.join(" | "),
            "---:|".repeat(columns)
        );
        for row in &self.rows {
            let _ = writeln!(text, "| {} |", row.join(" | "));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_hold_the_same_cells() {
        let rows = Rows::new(["a", "b"], vec![vec!["x<y".into(), "1".into()]]);
        assert_eq!(rows.to_markdown(), "| a | b |\n|---|---:|\n| x<y | 1 |\n");
        let html = rows.to_html("n & m");
        assert!(
            html.contains("<th>a</th><th class=\"n\">b</th>")
                && html.contains(
                    "<td data-label=\"a\">x&lt;y</td><td class=\"n\" data-label=\"b\">1</td>"
                ),
            "{html}"
        );
        assert!(
            html.ends_with("<p class=\"note\">n &amp; m</p>\n")
                && !rows.to_html("").contains("note")
        );
        let empty = Rows::new(["a"], Vec::new());
        assert!(empty.to_html("n").is_empty() && empty.to_markdown().is_empty());
    }
}
