//! Paragraphs for people.

use console::measure_text_width;

/// Lines of at most `width` columns; the first starts with `first`, the others with `rest`.
pub fn wrap(text: &str, width: usize, first: &str, rest: &str) -> String {
    let mut out = String::from(first);
    let mut column = measure_text_width(first);
    let mut fresh = true;
    for word in text.split_whitespace() {
        let length = measure_text_width(word);
        if !fresh && column + 1 + length > width {
            out.push('\n');
            out.push_str(rest);
            column = measure_text_width(rest);
            fresh = true;
        }
        if !fresh {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += length;
        fresh = false;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_wraps_at_the_width() {
        assert_eq!(wrap("one two three", 9, "- ", "  "), "- one two\n  three");
        assert_eq!(wrap("unbreakable", 4, "", ""), "unbreakable");
    }
}
