//! Pieces of pages: escaped text, sections, numbers and names as pages show them.

use plotters::style::RGBColor;

use frugal_core::human;

/// A whole page.
pub(super) fn document(title: &str, header: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n{header}{body}</main>\n</body>\n</html>\n",
        title = escape(title),
        style = include_str!("style.css"),
    )
}

/// Text that HTML shows as it is, in elements and in quoted attributes.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// A colour as plotters writes it.
pub(super) fn hex(RGBColor(r, g, b): RGBColor) -> String {
    format!("#{r:02X}{g:02X}{b:02X}")
}

pub(super) fn section(heading: &str, body: &str) -> String {
    if body.is_empty() {
        String::new()
    } else {
        format!(
            "<section>\n<h2>{}</h2>\n{body}</section>\n",
            escape(heading)
        )
    }
}

pub(super) fn wrapped(class: &str, body: &str) -> String {
    if body.is_empty() {
        String::new()
    } else {
        format!("<div class=\"{class}\">\n{body}</div>\n")
    }
}

/// Whether less of a metric is more.
pub(super) fn lower_is_better(name: &str) -> bool {
    let ends = ["loss", "perplexity", "bits_per_byte"];
    ends.iter().any(|known| name.ends_with(known)) || ["mse", "mae"].contains(&name)
}

pub(super) fn score(value: f64) -> String {
    if !value.is_finite() {
        return value.to_string();
    }
    if value.abs() < 100.0 {
        format!("{value:.4}")
    } else {
        human::significant(value, 6)
    }
    .replace('-', "\u{2212}")
}

/// `macro_f1` as `Macro F1`.
pub(super) fn title(name: &str) -> String {
    let spaced = name.replace('_', " ").replace(" f1", " F1");
    let mut chars = spaced.chars();
    chars.next().map_or(String::new(), |first| {
        first.to_uppercase().chain(chars).collect()
    })
}
