//! Several measures of several runs on one scale, as a radar chart.

use std::f64::consts::PI;
use std::fmt::Write;

use super::colour;
use super::markup::{escape, hex};

/// One measure.
pub(super) struct Axis {
    pub(super) name: String,
    /// For each run a value from 0 (worst of the compared) to 1 (best), where it is known.
    pub(super) values: Vec<Option<f64>>,
}

const SIZE: f64 = 420.0;
const RADIUS: f64 = 130.0;
/// Width of a letter of a name.
const LETTER: f64 = 6.2;
const LINE: f64 = 13.0;
/// Where the worst value lies, so that it can be told from the centre.
const INNER: f64 = 0.12;

/// Colours of the runs, in their order.
pub(super) const COLOURS: [plotters::style::RGBColor; 5] = [
    colour::TRAIN,
    colour::VALIDATION,
    colour::RATE,
    colour::SPEED,
    colour::MEMORY,
];

/// The chart as an SVG element; nothing with fewer than three measures that all runs have.
pub(super) fn svg(axes: &[Axis], runs: usize) -> Option<String> {
    let axes: Vec<&Axis> = axes
        .iter()
        .filter(|a| a.values.len() == runs && a.values.iter().all(Option::is_some))
        .collect();
    if axes.len() < 3 || runs == 0 {
        return None;
    }
    let at = |i: usize, share: f64| {
        let angle = 2.0 * PI * i as f64 / axes.len() as f64 - PI / 2.0;
        let r = RADIUS * share;
        (SIZE / 2.0 + r * angle.cos(), SIZE * 0.4 + r * angle.sin())
    };
    let path = |points: &mut dyn Iterator<Item = (f64, f64)>| {
        points
            .map(|(x, y)| format!("{x:.1},{y:.1} "))
            .collect::<String>()
    };
    // Names on either side reach further than the chart.
    let letters = axes
        .iter()
        .flat_map(|axis| lines(&axis.name))
        .map(|line| line.chars().count());
    let names = LETTER * letters.max().unwrap_or(0) as f64;
    let side = (names + 1.12 * RADIUS - SIZE / 2.0).max(0.0);
    let (left, width, height) = (-side, SIZE + 2.0 * side, SIZE * 0.8 + 2.0 * LINE);
    let mut svg = format!(
        "<svg viewBox=\"{left:.0} {:.0} {width:.0} {height:.0}\" xmlns=\"http://www.w3.org/2000/svg\">",
        -LINE
    );
    for ring in [0.25, 0.5, 0.75, 1.0] {
        let ring = path(&mut (0..axes.len()).map(|i| at(i, ring)));
        let _ = write!(
            svg,
            "<polygon points=\"{}\" fill=\"none\" stroke=\"{}\"/>",
            ring.trim_end(),
            hex(colour::GRID)
        );
    }
    for (i, axis) in axes.iter().enumerate() {
        let ((x, y), (tx, ty)) = (at(i, 1.0), at(i, 1.12));
        let (cx, cy) = at(i, 0.0);
        let _ = write!(
            svg,
            "<line x1=\"{cx:.1}\" y1=\"{cy:.1}\" x2=\"{x:.1}\" y2=\"{y:.1}\" stroke=\"{}\"/>",
            hex(colour::GRID)
        );
        let anchor = if (tx - SIZE / 2.0).abs() < 10.0 {
            "middle"
        } else if tx > SIZE / 2.0 {
            "start"
        } else {
            "end"
        };
        let fill = hex(colour::TEXT);
        let lines = lines(&axis.name);
        // Lines above the chart grow upwards, so that none runs into it.
        let up = if ty < SIZE * 0.4 - 0.9 * RADIUS {
            LINE * (lines.len() - 1) as f64
        } else {
            0.0
        };
        for (n, line) in lines.iter().enumerate() {
            let _ = write!(
                svg,
                "<text x=\"{tx:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\" font-size=\"11\" fill=\"{fill}\">{}</text>",
                ty + 4.0 - up + LINE * n as f64,
                escape(line)
            );
        }
    }
    for run in 0..runs {
        let colour = hex(COLOURS[run % COLOURS.len()]);
        let share = |axis: &Axis| INNER + (1.0 - INNER) * axis.values[run].unwrap_or(0.0);
        let points = path(&mut axes.iter().enumerate().map(|(i, axis)| at(i, share(axis))));
        let _ = write!(
            svg,
            "<polygon points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            points.trim_end()
        );
    }
    svg.push_str("</svg>");
    Some(svg)
}

/// A name in one line, or in two of about the same length where it is long.
fn lines(name: &str) -> Vec<String> {
    const LONG: usize = 14;
    if name.chars().count() <= LONG {
        return vec![name.to_owned()];
    }
    let middle = name.len() / 2;
    let breaks = name.match_indices(' ').map(|(i, _)| i);
    match breaks.min_by_key(|i| i.abs_diff(middle)) {
        Some(at) => vec![name[..at].to_owned(), name[at + 1..].to_owned()],
        None => vec![name.to_owned()],
    }
}

/// The chart of the first of the named runs with its key; nothing with fewer than two runs or three
/// measures.
pub(super) fn figure(axes: &[Axis], names: &[&str], label: &str) -> String {
    let shown = names.len().min(COLOURS.len());
    let axes: Vec<Axis> = axes
        .iter()
        .map(|a| Axis {
            name: a.name.clone(),
            values: a.values.iter().take(shown).copied().collect(),
        })
        .collect();
    let Some(svg) = (shown > 1).then(|| svg(&axes, shown)).flatten() else {
        return String::new();
    };
    let svg = svg.replacen(
        "<svg ",
        &format!("<svg role=\"img\" aria-label=\"{}\" ", escape(label)),
        1,
    );
    let key = |(name, colour): (&&str, plotters::style::RGBColor)| {
        let stroke = hex(colour);
        format!(
            "<li><svg class=\"key line\" viewBox=\"0 0 24 8\" aria-hidden=\"true\"><path d=\"M0 4H24\" stroke=\"{stroke}\"/></svg>{}</li>",
            escape(name)
        )
    };
    let legend: String = names.iter().zip(COLOURS).map(key).collect();
    let more = if names.len() > shown {
        " The first five are shown."
    } else {
        ""
    };
    format!(
        "<figure><figcaption><ul class=\"legend\">{legend}</ul></figcaption><div class=\"chart radar\">{svg}</div><p class=\"note\">The rim \
         is the best of the compared runs in each measure, the inner end the worst, or a tenth off the best where all are closer.{more}</p></figure>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(name: &str, values: &[Option<f64>]) -> Axis {
        Axis {
            name: name.into(),
            values: values.to_vec(),
        }
    }

    #[test]
    fn the_best_reaches_the_rim_and_the_worst_stays_inside() {
        let axes = ["a", "b", "c<d"].map(|name| axis(name, &[Some(1.0), Some(0.0)]));
        let chart = svg(&axes, 2).unwrap();
        // The first axis points up: 130 above the centre for the best, an eighth of that for the
        // worst.
        assert!(chart.contains("points=\"210.0,38.0 "), "{chart}");
        assert!(chart.contains("points=\"210.0,152.4 "), "{chart}");
        assert!(
            chart.contains("c&lt;d") && chart.matches("<polygon").count() == 6,
            "{chart}"
        );
    }

    #[test]
    fn names_are_not_cut_at_the_edge() {
        let names = [
            "quality",
            "little memory on average",
            "little power, modelled",
        ];
        let axes = names.map(|name| axis(name, &[Some(1.0), Some(0.0)]));
        let chart = svg(&axes, 2).unwrap();
        let number = |text: &str| text.parse::<f64>().unwrap();
        let view = chart.split("viewBox=\"").nth(1).unwrap();
        let view: Vec<f64> = view
            .split('"')
            .next()
            .unwrap()
            .split(' ')
            .map(number)
            .collect();
        for text in chart.split("<text ").skip(1) {
            let value = |name: &str| {
                text.split(&format!("{name}=\""))
                    .nth(1)
                    .unwrap()
                    .split('"')
                    .next()
                    .unwrap()
            };
            let shown = text.split('>').nth(1).unwrap().split('<').next().unwrap();
            let (x, width) = (number(value("x")), LETTER * shown.chars().count() as f64);
            let (from, to) = match value("text-anchor") {
                "start" => (x, x + width),
                "end" => (x - width, x),
                _ => (x - width / 2.0, x + width / 2.0),
            };
            assert!(
                from >= view[0] - 1.0 && to <= view[0] + view[2] + 1.0,
                "{shown} in {view:?}"
            );
            let y = number(value("y"));
            assert!(
                y - 11.0 >= view[1] - 1.0 && y <= view[1] + view[3],
                "{shown} in {view:?}"
            );
        }
        assert_eq!(
            lines("little memory on average"),
            ["little memory", "on average"]
        );
    }

    #[test]
    fn measures_that_some_run_lacks_are_left_out() {
        let axes = [
            axis("a", &[Some(1.0)]),
            axis("b", &[Some(1.0)]),
            axis("c", &[None]),
        ];
        assert!(svg(&axes, 1).is_none() && svg(&[], 0).is_none());
    }
}
