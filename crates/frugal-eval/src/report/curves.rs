//! The charts of a run and what is said about each.

use super::axes::ChartError;
use super::chart::{self, Chart, Mark, Series, scientific};
use super::colour;
use super::markup::{escape, hex};
use frugal_core::events::{Scalars, names};
use frugal_core::human;

/// What the charts of a log run over.
const STEP: &str = "Optimiser step";

/// Every chart of the log that has something to show, as one HTML figure each.
///
/// `peak_rate` is that of the schedule: the steps that are logged need not reach it.
pub(super) fn figures(log: &[Scalars], peak_rate: Option<f64>) -> Result<String, ChartError> {
    let charts = [
        loss(log),
        learning_rate(log, peak_rate),
        throughput(log),
        memory(log),
    ];
    charts
        .iter()
        .map(|(chart, note)| figure(chart, note))
        .collect()
}

pub(super) fn figure(chart: &Chart, note: &str) -> Result<String, ChartError> {
    let Some(svg) = chart.svg()? else {
        return Ok(String::new());
    };
    let shown = chart.series.iter().filter(|s| !s.points.is_empty());
    let key = |s: &Series| {
        let (kind, colour) = (
            if s.mark == Mark::Faint {
                "faint"
            } else if s.mark == Mark::Dotted {
                "dotted"
            } else {
                "line"
            },
            hex(s.colour),
        );
        format!(
            "<li><svg class=\"key {kind}\" viewBox=\"0 0 24 8\" aria-hidden=\"true\"><path d=\"M0 4H24\" stroke=\"{colour}\"/>\
             <circle cx=\"12\" cy=\"4\" r=\"3\" fill=\"{colour}\"/></svg>{}</li>",
            escape(&s.label)
        )
    };
    let legend: String = shown.map(key).collect();
    let svg = svg.replacen(
        "<svg ",
        &format!(
            "<svg role=\"img\" aria-label=\"{} against {}\" ",
            escape(&chart.unit),
            escape(&chart.across.to_lowercase())
        ),
        1,
    );
    Ok(format!(
        "<figure><figcaption><h3>{}</h3><ul class=\"legend\">{legend}</ul></figcaption><div class=\"chart\">{svg}</div><p class=\"note\">{}</p></figure>\n",
        escape(chart.title),
        escape(note)
    ))
}

pub(super) fn points(log: &[Scalars], name: &str) -> Vec<(f64, f64)> {
    log.iter()
        .filter_map(|record| Some((record.step as f64, record.get(name)?)))
        .collect()
}

/// Raw values behind the smoothed ones; the values alone where there are few.
fn smoothed(
    label: [&'static str; 2],
    colour: plotters::style::RGBColor,
    points: Vec<(f64, f64)>,
) -> Vec<Series> {
    if points.len() < 40 {
        return vec![Series {
            label: label[0].into(),
            colour,
            mark: Mark::Line,
            points,
        }];
    }
    let smooth = Series {
        label: label[1].into(),
        colour,
        mark: Mark::Line,
        points: chart::smooth(&points),
    };
    vec![
        Series {
            label: label[0].into(),
            colour,
            mark: Mark::Faint,
            points,
        },
        smooth,
    ]
}

fn loss(log: &[Scalars]) -> (Chart, String) {
    let (train, validation) = (points(log, names::LOSS), points(log, names::EVAL_LOSS));
    let mut note = Vec::new();
    if let Some((step, value)) = train.last() {
        note.push(format!(
            "Last training {} at step {}",
            human::significant(*value, 4),
            human::count(*step as u64)
        ));
    }
    if let Some((step, value)) = validation
        .iter()
        .filter(|(_, y)| y.is_finite())
        .min_by(|a, b| a.1.total_cmp(&b.1))
    {
        note.push(format!(
            "best validation {} at step {}",
            human::significant(*value, 4),
            human::count(*step as u64)
        ));
    }
    let mut series = smoothed(["Training", "Training, smoothed"], colour::TRAIN, train);
    series.push(Series {
        label: "Validation".into(),
        colour: colour::VALIDATION,
        mark: Mark::Dotted,
        points: validation,
    });
    (
        Chart {
            title: "Loss",
            unit: "Cross-entropy (nats)".into(),
            across: STEP,
            series,
            from_zero: false,
        },
        note.join(" · "),
    )
}

fn learning_rate(log: &[Scalars], peak_rate: Option<f64>) -> (Chart, String) {
    let points = points(log, names::LEARNING_RATE);
    let logged = points.iter().map(|p| p.1).fold(0.0, f64::max);
    let note = peak_rate.filter(|rate| *rate >= logged).map_or_else(
        || format!("Highest logged {}", scientific(logged)),
        |peak| format!("Peak of the schedule {}", scientific(peak)),
    );
    let series = vec![Series {
        label: "Learning rate".into(),
        colour: colour::RATE,
        mark: Mark::Line,
        points,
    }];
    (
        Chart {
            title: "Learning rate",
            unit: "Learning rate".into(),
            across: STEP,
            series,
            from_zero: true,
        },
        note,
    )
}

fn throughput(log: &[Scalars]) -> (Chart, String) {
    let points = points(log, names::TOKENS_PER_SECOND);
    let values: Vec<f64> = points
        .iter()
        .map(|p| p.1)
        .filter(|v| v.is_finite())
        .collect();
    let note = frugal_core::metrics::median(&values).map_or(String::new(), |m| {
        format!("Median {} tokens/s", human::significant(m, 4))
    });
    let series = smoothed(["Tokens per second", "Smoothed"], colour::SPEED, points);
    (
        Chart {
            title: "Throughput",
            unit: "Throughput (tokens/s)".into(),
            across: STEP,
            series,
            from_zero: true,
        },
        note,
    )
}

fn memory(log: &[Scalars]) -> (Chart, String) {
    let mut points = points(log, names::MEMORY_BYTES);
    let most = points
        .iter()
        .map(|p| p.1)
        .filter(|v| v.is_finite())
        .fold(0.0, f64::max);
    let (unit, bytes) = if most >= (1u64 << 30) as f64 {
        ("GiB", (1u64 << 30) as f64)
    } else {
        ("MiB", (1u64 << 20) as f64)
    };
    points.iter_mut().for_each(|p| p.1 /= bytes);
    let series = vec![Series {
        label: "Resident memory".into(),
        colour: colour::MEMORY,
        mark: Mark::Line,
        points,
    }];
    let note = format!("Highest logged {}", human::bytes(most as u64));
    (
        Chart {
            title: "Memory",
            unit: format!("Resident memory ({unit})"),
            across: STEP,
            series,
            from_zero: true,
        },
        note,
    )
}
