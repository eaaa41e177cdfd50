//! Paragraphs for people.

use console::measure_text_width;

/// A number with so many digits behind the point, and no sign where these are all 0.
pub fn fixed(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    match text.strip_prefix('-') {
        Some(rest) if rest.bytes().all(|b| b"0.".contains(&b)) => rest.to_owned(),
        _ => text,
    }
}

/// [`fixed`] with a sign in front of what is above 0 too.
pub fn signed(value: f64, digits: usize) -> String {
    let text = fixed(value, digits);
    let is_zero = text.bytes().all(|b| b"0.".contains(&b));
    match is_zero || text.starts_with('-') {
        true => text,
        false => format!("+{text}"),
    }
}

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

/// Wraps text that comes in pieces: a word is held back until it is known where it ends.
pub struct Wrapping {
    width: usize,
    column: usize,
    /// Blanks that stand before the word.
    blanks: String,
    word: String,
}

impl Wrapping {
    /// Lines of at most `width` columns; longer words stand alone.
    pub fn new(width: usize) -> Self {
        Self {
            width,
            column: 0,
            blanks: String::new(),
            word: String::new(),
        }
    }

    /// What can be shown after this piece.
    pub fn push(&mut self, text: &str) -> String {
        let mut out = String::new();
        for c in text.chars() {
            match c {
                '\n' => {
                    out += &self.finish();
                    // Blanks at the end of a line say nothing.
                    self.blanks.clear();
                    out.push('\n');
                    self.column = 0;
                }
                c if c.is_whitespace() => {
                    out += &self.finish();
                    self.blanks.push(c);
                }
                c => self.word.push(c),
            }
        }
        out
    }

    /// The word that was held back.
    pub fn finish(&mut self) -> String {
        if self.word.is_empty() {
            return String::new();
        }
        let (word, blanks) = (
            std::mem::take(&mut self.word),
            std::mem::take(&mut self.blanks),
        );
        let length = measure_text_width(&word);
        let before = measure_text_width(&blanks);
        if self.column > 0 && self.column + before + length > self.width {
            self.column = length;
            return format!("\n{word}");
        }
        self.column += before + length;
        blanks + &word
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_rounds_to_zero_had_a_sign() {
        let shown = [-0.000_04, -0.0, -0.000_05, 0.25, -1.0].map(|x| fixed(x, 4));
        assert_eq!(shown, ["0.0000", "0.0000", "-0.0001", "0.2500", "-1.0000"]);
        let shown = [-0.000_04, 0.0, 0.25, -0.25].map(|x| signed(x, 2));
        assert_eq!(shown, ["0.00", "0.00", "+0.25", "-0.25"]);
    }

    #[test]
    fn text_in_pieces_wraps_between_words() {
        let mut wrapping = Wrapping::new(10);
        let pieces = [
            "The ri",
            "ver ro",
            "se.\n",
            "  in",
            "dented code\n\nmuchtoolongaword",
            " x",
        ];
        let mut text: String = pieces.iter().map(|p| wrapping.push(p)).collect();
        text += &wrapping.finish();
        assert_eq!(
            text,
            "The river\nrose.\n  indented\ncode\n\nmuchtoolongaword\nx"
        );
    }

    #[test]
    fn text_wraps_at_the_width() {
        assert_eq!(wrap("one two three", 9, "- ", "  "), "- one two\n  three");
        assert_eq!(wrap("unbreakable", 4, "", ""), "unbreakable");
    }
}
