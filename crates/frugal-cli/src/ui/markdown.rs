//! The documentation of a method, readable in a terminal.

use console::style;

use super::text::wrap;

/// Renders headings, paragraphs, lists and `code` at a width; without colours where standard output
/// takes none.
pub fn render(text: &str, width: usize) -> String {
    let mut out = String::new();
    let mut last = None;
    for (kind, words) in blocks(text) {
        match (last, kind) {
            (None, _) => {}
            (Some(Kind::Heading), _) | (Some(Kind::Item), Kind::Item) => out.push('\n'),
            _ => out.push_str("\n\n"),
        }
        out.push_str(&match kind {
            Kind::Title => style(words).bold().to_string(),
            Kind::Heading => style(words).green().bold().to_string(),
            Kind::Paragraph => wrap(&inline(&words), width, "  ", "  "),
            Kind::Item => wrap(&inline(&words), width, "  - ", "    "),
        });
        last = Some(kind);
    }
    out
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Title,
    Heading,
    Paragraph,
    Item,
}

/// Lines put together to blocks; an empty line or a heading ends one.
fn blocks(text: &str) -> Vec<(Kind, String)> {
    let mut blocks: Vec<(Kind, String)> = Vec::new();
    let mut open = false;
    for line in text.lines().map(str::trim) {
        let start = [
            ("# ", Kind::Title),
            ("## ", Kind::Heading),
            ("- ", Kind::Item),
        ];
        let started = start
            .into_iter()
            .find_map(|(mark, kind)| Some((kind, line.strip_prefix(mark)?)));
        match (started, blocks.last_mut()) {
            (Some((kind, words)), _) => {
                blocks.push((kind, words.into()));
                open = kind == Kind::Item;
            }
            (None, _) if line.is_empty() => open = false,
            (None, Some((_, words))) if open => {
                words.push(' ');
                words.push_str(line);
            }
            (None, _) => {
                blocks.push((Kind::Paragraph, line.into()));
                open = true;
            }
        }
    }
    blocks
}

/// Code in colour where there is colour, in its backticks where there is none.
fn inline(text: &str) -> String {
    let mut out = String::new();
    for (i, part) in text.split('`').enumerate() {
        if i % 2 == 0 {
            out.push_str(part);
        } else if console::colors_enabled() {
            // Word by word, so that a line break within the code does not carry the colour into the
            // margin.
            let words: Vec<String> = part
                .split(' ')
                .map(|word| style(word).cyan().to_string())
                .collect();
            out.push_str(&words.join(" "));
        } else {
            out.push_str(&format!("`{part}`"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::render;

    #[test]
    fn paragraphs_flow_and_lists_stay_lists() {
        console::set_colors_enabled(false);
        let text =
            "# Title\n\n## Head\nOne two\nthree `code`.\n\n- first\n  item\n- second\n## Next";
        assert_eq!(
            render(text, 16),
            "Title\n\nHead\n  One two three\n  `code`.\n\n  - first item\n  - second\n\nNext"
        );
    }
}
