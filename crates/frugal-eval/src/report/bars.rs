//! A measure of several things as horizontal bars.

use std::fmt::Write;

use super::colour;
use super::markup::{escape, hex, score};

/// A named value.
pub(super) struct Bar {
    pub(super) name: String,
    pub(super) value: f64,
}

const WIDTH: f64 = 480.0;
const ROW: f64 = 26.0;
const TEXT: f64 = 11.5;
/// More letters of a name are cut, at their end.
const LETTERS: usize = 28;

/// The bars as an HTML figure, from zero to the largest of them; nothing without values.
pub(super) fn figure(title: &str, bars: &[Bar]) -> String {
    let finite: Vec<&Bar> = bars.iter().filter(|b| b.value.is_finite()).collect();
    if finite.is_empty() {
        return String::new();
    }
    let shown = |name: &str| -> String {
        if name.chars().count() <= LETTERS {
            return name.to_owned();
        }
        let start: String = name.chars().take(LETTERS - 1).collect();
        format!("{start}\u{2026}")
    };
    let letters = finite.iter().map(|b| shown(&b.name).chars().count());
    let left = 0.6 * TEXT * letters.max().unwrap_or(0) as f64 + 12.0;
    let right = 64.0;
    // Zero is part of the axis, on whichever side of it the values are.
    let low = finite.iter().map(|b| b.value).fold(0.0, f64::min);
    let high = finite.iter().map(|b| b.value).fold(0.0, f64::max);
    let span = if high > low { high - low } else { 1.0 };
    let at = |value: f64| left + (value - low) / span * (WIDTH - left - right);
    let height = ROW * finite.len() as f64 + 6.0;
    let mut svg = format!(
        "<svg role=\"img\" aria-label=\"{}\" viewBox=\"0 0 {WIDTH} {height}\" xmlns=\"http://www.w3.org/2000/svg\">",
        escape(title)
    );
    let (text, fill, axis) = (hex(colour::TEXT), hex(colour::TRAIN), hex(colour::AXIS));
    for (i, bar) in finite.iter().enumerate() {
        let (top, middle) = (ROW * i as f64 + 6.0, ROW * i as f64 + 6.0 + ROW / 2.0);
        let (from, to) = (at(bar.value.min(0.0)), at(bar.value.max(0.0)));
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" font-size=\"{TEXT}\" fill=\"{text}\">{}</text>\
             <rect x=\"{from:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{fill}\" rx=\"2\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" font-size=\"{TEXT}\" fill=\"{text}\">{}</text>",
            left - 8.0,
            middle + 1.0,
            escape(&shown(&bar.name)),
            (to - from).max(1.0),
            ROW - 10.0,
            to + 6.0,
            middle + 1.0,
            escape(&score(bar.value))
        );
    }
    let _ = write!(
        svg,
        "<line x1=\"{0:.1}\" y1=\"0\" x2=\"{0:.1}\" y2=\"{height}\" stroke=\"{axis}\"/></svg>",
        at(0.0)
    );
    format!(
        "<figure><figcaption><h3>{}</h3></figcaption><div class=\"chart bars\">{svg}</div></figure>\n",
        escape(title)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_begin_at_zero_and_have_their_values_beside_them() {
        let bar = |name: &str, value| Bar {
            name: name.into(),
            value,
        };
        let html = figure("a<b", &[bar("x", 2.0), bar("y", -1.0), bar("z", f64::NAN)]);
        // The names are one letter wide: 18.9 px; 397.1 px are left for a span of 3.
        assert!(
            html.contains("width=\"264.7\"") && html.contains("width=\"132.4\""),
            "{html}"
        );
        assert!(
            html.contains("2.0000") && html.contains("\u{2212}1.0000"),
            "{html}"
        );
        assert!(!html.contains("NaN") && html.contains("a&lt;b"), "{html}");
        assert!(figure("t", &[bar("z", f64::NAN)]).is_empty());
        let long = figure("t", &[bar(&"w".repeat(60), 1.0)]);
        assert!(
            long.contains(&format!("{}\u{2026}", "w".repeat(27))),
            "{long}"
        );
    }
}
