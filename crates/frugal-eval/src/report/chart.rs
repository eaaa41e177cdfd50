//! Line charts as inline SVG.
//!
//! Each colour has a fixed hexadecimal value in the light theme, which the page's style sheet maps
//! to another in the dark.

use plotters::coord::Shift;
use plotters::prelude::*;

use super::axes::{self, ChartError, FINE, Labels};

/// How a series is drawn.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Mark {
    /// A solid line.
    Line,
    /// A thin pale line behind the others.
    Faint,
    /// A line with a dot at each value.
    Dotted,
}

/// Values against the step.
pub(super) struct Series {
    pub(super) label: String,
    pub(super) colour: RGBColor,
    pub(super) mark: Mark,
    /// (step, value); values that are not finite break the line.
    pub(super) points: Vec<(f64, f64)>,
}

/// A chart with its axes.
pub(super) struct Chart {
    pub(super) title: &'static str,
    /// Label of the vertical axis, with the unit.
    pub(super) unit: String,
    /// Label of the horizontal axis.
    pub(super) across: &'static str,
    pub(super) series: Vec<Series>,
    /// Whether the vertical axis starts at zero.
    pub(super) from_zero: bool,
}

const SIZE: (u32, u32) = (480, 270);
/// Height of the text, in shown pixels.
const TEXT: f64 = 11.5;
/// More points than this in one line are thinned out; there are not more pixels.
const MAX_POINTS: usize = 1_000;

impl Chart {
    /// The chart as an SVG element, or nothing if there is no value to show.
    pub(super) fn svg(&self) -> Result<Option<String>, ChartError> {
        let Some((x, y)) = self.ranges() else {
            return Ok(None);
        };
        axes::svg(self.title, SIZE, |root| self.draw(root, x, y)).map(Some)
    }

    fn finite(&self) -> impl Iterator<Item = (f64, f64)> + '_ {
        self.series
            .iter()
            .flat_map(|s| s.points.iter().copied())
            .filter(|(_, y)| y.is_finite())
    }

    fn ranges(&self) -> Option<((f64, f64), (f64, f64))> {
        let bounds = |values: &mut dyn Iterator<Item = f64>| {
            values.fold(None, |range: Option<(f64, f64)>, v| {
                Some(range.map_or((v, v), |(low, high)| (low.min(v), high.max(v))))
            })
        };
        let (x_low, x_high) = bounds(&mut self.finite().map(|(x, _)| x))?;
        let (y_low, y_high) = bounds(&mut self.finite().map(|(_, y)| y))?;
        // The axis starts at zero unless the log begins late.
        let x_low = if x_low >= 0.0 && x_low < 0.1 * x_high {
            0.0
        } else {
            x_low
        };
        let x = if x_low < x_high {
            (x_low, x_high)
        } else {
            (x_low - 1.0, x_high + 1.0)
        };
        let y_low = if self.from_zero {
            y_low.min(0.0)
        } else {
            y_low
        };
        let spread = y_high - y_low;
        // A flat line gets room around it that grows with its height.
        let room = if spread > y_high.abs() * 1e-9 {
            0.06 * spread
        } else {
            (0.1 * y_high.abs()).max(1e-6)
        };
        Some((
            x,
            (
                if self.from_zero && y_low == 0.0 {
                    0.0
                } else {
                    y_low - room
                },
                y_high + room,
            ),
        ))
    }

    fn draw(
        &self,
        root: &DrawingArea<SVGBackend<'_>, Shift>,
        x: (f64, f64),
        y: (f64, f64),
    ) -> Result<(), Box<dyn std::error::Error>> {
        let y_label = number_format((y.1 - y.0) / 5.0, y.0.abs().max(y.1.abs()));
        let x_label = |step: &f64| {
            if step.fract() == 0.0 && *step >= 0.0 {
                frugal_core::human::count(*step as u64)
            } else {
                String::new()
            }
        };
        let mut chart = axes::margins(root, 72, 22).build_cartesian_2d(x.0..x.1, y.0..y.1)?;
        let labels = Labels {
            text: TEXT,
            most: 7,
            x: &x_label,
            y: &y_label,
            across: self.across,
        };
        axes::grid(&mut chart, &labels)?;
        axes::name_vertical(root, &self.unit, TEXT, SIZE.1)?;
        for series in &self.series {
            let (alpha, width) = match series.mark {
                Mark::Faint => (0.35, 1.0),
                Mark::Line | Mark::Dotted => (1.0, 2.0),
            };
            let style = series
                .colour
                .mix(alpha)
                .stroke_width((width * f64::from(FINE)) as u32);
            for run in series.points.split(|(_, y)| !y.is_finite()) {
                chart.draw_series(std::iter::once(PathElement::new(thin(run), style)))?;
                if series.mark == Mark::Dotted || run.len() == 1 {
                    let dot =
                        |point: &(f64, f64)| Circle::new(*point, 3 * FINE, series.colour.filled());
                    chart.draw_series(run.iter().map(dot))?;
                }
            }
        }
        Ok(())
    }
}

/// At most [`MAX_POINTS`] points that keep the extremes: the lowest and the highest of each
/// stretch.
fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= MAX_POINTS {
        return points.to_vec();
    }
    let stretch = points.len().div_ceil(MAX_POINTS / 2);
    let extremes = |part: &[(f64, f64)]| {
        let low = part.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1));
        let high = part.iter().copied().max_by(|a, b| a.1.total_cmp(&b.1));
        let (first, second) = if low.map(|p| p.0) <= high.map(|p| p.0) {
            (low, high)
        } else {
            (high, low)
        };
        [first, second.filter(|p| Some(p.0) != first.map(|f| f.0))]
    };
    points
        .chunks(stretch)
        .flat_map(extremes)
        .flatten()
        .collect()
}

/// A formatter for axis labels about `spacing` apart.
fn number_format(spacing: f64, largest: f64) -> impl Fn(&f64) -> String {
    let decimals = (-spacing.log10().floor()).clamp(0.0, 12.0) as usize;
    move |value| {
        if value.abs() < spacing * 1e-6 {
            return "0".into();
        }
        if largest < 0.01 {
            return scientific(*value);
        }
        if decimals == 0 {
            let sign = if *value < 0.0 { "-" } else { "" };
            return format!(
                "{sign}{}",
                frugal_core::human::count(value.abs().round() as u64)
            );
        }
        format!("{value:.decimals$}")
    }
}

/// A small number without an exponent of zeros: `0.0002` as `2e-4`.
pub(super) fn scientific(value: f64) -> String {
    let text = format!("{value:.2e}");
    match text.split_once('e') {
        Some((digits, power)) if digits.contains('.') => format!(
            "{}e{power}",
            digits.trim_end_matches('0').trim_end_matches('.')
        ),
        _ => text,
    }
}

/// A straight line fitted to about a twentieth of the run around each step, read off at that step.
///
/// A moving average would lag, or be off where the loss is steep, or jump at the ends. Values that
/// are not finite are passed over.
pub(super) fn smooth(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let points: Vec<(f64, f64)> = points
        .iter()
        .copied()
        .filter(|(_, y)| y.is_finite())
        .collect();
    let half = (points.len() / 40).max(1);
    let fit = |i: usize| {
        let window = &points[i.saturating_sub(half)..(i + half + 1).min(points.len())];
        let count = window.len() as f64;
        let (x, y) = (
            window.iter().map(|p| p.0).sum::<f64>() / count,
            window.iter().map(|p| p.1).sum::<f64>() / count,
        );
        let spread: f64 = window.iter().map(|p| (p.0 - x).powi(2)).sum();
        let common: f64 = window.iter().map(|p| (p.0 - x) * (p.1 - y)).sum();
        let slope = if spread > 0.0 { common / spread } else { 0.0 };
        (points[i].0, y + slope * (points[i].0 - x))
    };
    // Neighbours differ little: no more of them than are drawn, so that a long run does not take
    // long.
    let stride = points.len().div_ceil(MAX_POINTS).max(1);
    (0..points.len()).step_by(stride).map(fit).collect()
}

#[cfg(test)]
mod tests {
    use super::super::colour;
    use super::*;

    fn chart(points: Vec<(f64, f64)>) -> Chart {
        let series = vec![Series {
            label: "a".into(),
            colour: colour::TRAIN,
            mark: Mark::Line,
            points,
        }];
        Chart {
            title: "t",
            unit: "Loss".into(),
            across: "Optimiser step",
            series,
            from_zero: false,
        }
    }

    #[test]
    fn charts_of_odd_data_draw_without_failing() {
        assert!(chart(vec![]).svg().unwrap().is_none());
        assert!(chart(vec![(1.0, f64::NAN)]).svg().unwrap().is_none());
        for points in [
            vec![(1.0, 2.0)],
            vec![(1.0, 0.0), (2.0, 0.0)],
            vec![(0.0, 1e300), (1.0, -1e300)],
            vec![(1.0, 1e-12), (9.0, 3e-12)],
        ] {
            let svg = chart(points).svg().unwrap().unwrap();
            assert!(
                svg.starts_with("<svg")
                    && svg.trim_end().ends_with("</svg>")
                    && !svg.contains("NaN"),
                "{svg}"
            );
        }
    }

    #[test]
    fn a_value_that_is_not_a_number_breaks_the_line() {
        let lines = |svg: &str| svg.matches("stroke=\"#2563EB\"").count();
        let whole = chart((0..6).map(|i| (f64::from(i), f64::from(i))).collect())
            .svg()
            .unwrap()
            .unwrap();
        let broken = chart(
            (0..6)
                .map(|i| (f64::from(i), if i == 3 { f64::NAN } else { f64::from(i) }))
                .collect(),
        )
        .svg()
        .unwrap()
        .unwrap();
        assert_eq!((lines(&whole), lines(&broken)), (1, 2));
    }

    #[test]
    fn thinning_keeps_the_extremes() {
        let points: Vec<(f64, f64)> = (0..100_000)
            .map(|i| {
                (
                    f64::from(i),
                    if i == 54_321 { 9.0 } else { f64::from(i % 7) },
                )
            })
            .collect();
        let thinned = thin(&points);
        assert!(
            thinned.len() <= MAX_POINTS
                && thinned.contains(&(54_321.0, 9.0))
                && thinned.is_sorted_by(|a, b| a.0 < b.0)
        );
    }

    #[test]
    fn smoothing_keeps_a_slope_and_removes_noise() {
        let slope: Vec<(f64, f64)> = (0..500)
            .map(|i| (f64::from(i), 3.0 - 0.01 * f64::from(i)))
            .collect();
        assert!(
            smooth(&slope)
                .iter()
                .zip(&slope)
                .all(|(a, b)| a.0 == b.0 && (a.1 - b.1).abs() < 1e-12)
        );
        let noise: Vec<(f64, f64)> = (0..500)
            .map(|i| (f64::from(i), if i % 2 == 0 { 1.0 } else { -1.0 }))
            .collect();
        assert!(smooth(&noise).iter().all(|(_, y)| y.abs() < 0.2));
        let long: Vec<(f64, f64)> = (0..100_001)
            .map(|i| (f64::from(i), if i == 7 { f64::NAN } else { 1.0 }))
            .collect();
        let smoothed = smooth(&long);
        assert!(smoothed.len() <= MAX_POINTS && smoothed.iter().all(|(_, y)| *y == 1.0));
    }

    #[test]
    fn axis_labels_have_the_digits_they_need() {
        let label =
            |spacing: f64, largest: f64, value: f64| number_format(spacing, largest)(&value);
        assert_eq!(label(0.2, 1.0, 0.6), "0.6");
        assert_eq!(label(100.0, 2000.0, 1500.0), "1,500");
        assert_eq!(label(5e-5, 2e-4, 0.000_150_000_000_01), "1.5e-4");
        assert_eq!(label(5e-5, 2e-4, 1e-20), "0");
        assert_eq!(label(0.02, 0.5, 0.48), "0.48");
    }
}
