//! Names of a library in words, and texts without them.

use regex::{NoExpand, RegexBuilder};

/// The words of a name: parts between dots, underscores and other signs, and of `CamelCase`, in small
/// letters.
///
/// ```
/// use frugal_retrieve::cramf::words_of_name;
/// assert_eq!(words_of_name("Finset.card_le_of"), ["finset", "card", "le", "of"]);
/// assert_eq!(words_of_name("HTTPServer2.isOpen"), ["http", "server2", "is", "open"]);
/// ```
#[must_use]
pub fn words_of_name(name: &str) -> Vec<String> {
    let mut words = Vec::new();
    for part in name.split(|c: char| !c.is_alphanumeric()) {
        let letters: Vec<char> = part.chars().collect();
        let mut word = String::new();
        for (i, &c) in letters.iter().enumerate() {
            let before = i.checked_sub(1).map(|i| letters[i]);
            let after_small = before.is_some_and(|b| b.is_lowercase() || b.is_numeric());
            let last_of_capitals = before.is_some_and(char::is_uppercase)
                && letters.get(i + 1).is_some_and(|next| next.is_lowercase());
            if c.is_uppercase() && (after_small || last_of_capitals) {
                words.push(std::mem::take(&mut word));
            }
            word.extend(c.to_lowercase());
        }
        words.push(word);
    }
    words.retain(|word| !word.is_empty());
    words
}

/// A name without the habits of its spelling: `is_open` and `IsOpen` are the same, `a.b` and `ab` are
/// not.
///
/// ```
/// use frugal_retrieve::cramf::name_key;
/// assert_eq!(name_key("Finset.IsOpen"), name_key("finset.is_open"));
/// assert_ne!(name_key("real.log"), name_key("reallog"));
/// ```
#[must_use]
pub fn name_key(name: &str) -> String {
    let parts = name.split('.').map(|part| words_of_name(part).concat());
    parts.collect::<Vec<_>>().join(".")
}

/// The identifiers of a piece of code, dots included, in order and without repetitions.
///
/// ```
/// use frugal_retrieve::cramf::identifiers;
/// assert_eq!(identifiers("x = sympy.sin(x) + 2*f'"), ["x", "sympy.sin", "f'"]);
/// ```
#[must_use]
pub fn identifiers(code: &str) -> Vec<&str> {
    let inside = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '\'');
    let mut found: Vec<&str> = Vec::new();
    for part in code.split(|c: char| !inside(c)) {
        let part = part.trim_matches('.').trim_start_matches('\'');
        let starts = part.starts_with(|c: char| c.is_alphabetic() || c == '_');
        if starts && !found.contains(&part) {
            found.push(part);
        }
    }
    found
}

/// What stands in place of a name.
const MASK: &str = "this";

/// The text without a symbol's name, in whole and by the words of its last part, in any spelling and
/// also within other words.
#[must_use]
pub fn mask(text: &str, name: &str) -> String {
    patterns(name)
        .iter()
        .fold(text.to_owned(), |text, pattern| {
            let regex = RegexBuilder::new(pattern).case_insensitive(true).build();
            match regex {
                Ok(regex) => regex.replace_all(&text, NoExpand(MASK)).into_owned(),
                Err(_) => text,
            }
        })
}

/// Whether a text gives away a symbol: holds its name, or the words of its last part one after
/// another, in any spelling.
#[must_use]
pub fn leaks(text: &str, name: &str) -> bool {
    patterns(name).iter().any(|pattern| {
        let regex = RegexBuilder::new(pattern).case_insensitive(true).build();
        regex.is_ok_and(|regex| regex.is_match(text))
    })
}

/// The longest first, so that what is masked is the whole.
fn patterns(name: &str) -> Vec<String> {
    let joined = |name: &str| {
        let words = words_of_name(name);
        let words: Vec<String> = words.iter().map(|w| regex::escape(w)).collect();
        match words.as_slice() {
            // Within other words, a short one is no sign of the name.
            [word] if word.len() <= 4 => format!(r"\b{word}\b"),
            _ => words.join(r"[\W_]*"),
        }
    };
    let last = name.rsplit('.').next().unwrap_or(name);
    let mut patterns = vec![joined(name), joined(last)];
    patterns.retain(|pattern| !pattern.is_empty());
    patterns.dedup();
    patterns
}
