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
