//! Quality against cost, with the runs that no other beats on both marked.

use plotters::coord::Shift;
use plotters::coord::combinators::IntoLogRange;
use plotters::prelude::*;

use super::axes::{self, ChartError, FINE, Labels, font};
use super::colour;
use super::markup::escape;

/// A named point; `x` is a cost above zero.
pub(super) struct Point {
    pub(super) name: String,
    pub(super) x: f64,
    pub(super) y: f64,
}

/// A chart of quality against a cost on a logarithmic axis.
pub(super) struct Scatter<'a> {
    pub(super) title: &'a str,
    /// What the horizontal axis shows.
    pub(super) cost: &'a str,
    /// What labels are round multiples of: one, or a mebibyte.
    pub(super) unit: f64,
    /// Writes a cost as people read it.
    pub(super) cost_label: fn(f64) -> String,
    /// What the vertical axis shows.
    pub(super) quality: &'a str,
    pub(super) points: Vec<Point>,
    pub(super) lower_is_better: bool,
}

const SIZE: (u32, u32) = (480, 290);
const TEXT: f64 = 11.5;
/// Shown pixels for the labels of the vertical axis and its name.
const LEFT: i32 = 72;
/// More letters of a name are cut, at their end: longer ones fit on neither side of a point.
const LETTERS: usize = 28;
/// Radius of a marked point.
const MARK: i32 = 4 * FINE;

/// Indices of the points that no other point beats: none is at least as good at no higher cost, and
/// better in one of the two.
pub(super) fn front(points: &[Point], lower_is_better: bool) -> Vec<usize> {
    let quality = |p: &Point| if lower_is_better { -p.y } else { p.y };
    let beats = |a: &Point, b: &Point| {
        quality(a) >= quality(b) && a.x <= b.x && (quality(a) > quality(b) || a.x < b.x)
    };
    let mut found: Vec<usize> = (0..points.len())
        .filter(|&i| !points.iter().any(|other| beats(other, &points[i])))
        .collect();
    found.sort_by(|&a, &b| points[a].x.total_cmp(&points[b].x));
    found
}

/// A name and the rectangle that it takes: left, top, right and bottom in drawn pixels.
struct Label {
    text: String,
    area: [i32; 4],
}

fn overlap(a: &[i32; 4], b: &[i32; 4]) -> bool {
    a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3]
}

/// Whether a straight line between two points runs through a rectangle.
fn crosses(from: (i32, i32), to: (i32, i32), area: &[i32; 4]) -> bool {
    // The part of the line, from 0 to 1, that lies between both pairs of sides.
    let (mut enter, mut leave) = (0.0f64, 1.0f64);
    for (start, end, low, high) in [
        (from.0, to.0, area[0], area[2]),
        (from.1, to.1, area[1], area[3]),
    ] {
        let [start, end, low, high] = [start, end, low, high].map(f64::from);
        let step = end - start;
        if step == 0.0 {
            if start < low || start > high {
                return false;
            }
            continue;
        }
        let (a, b) = ((low - start) / step, (high - start) / step);
        enter = enter.max(a.min(b));
        leave = leave.min(a.max(b));
    }
    enter < leave
}

/// Names beside their points: to the right, to the left, above or below, whichever is the first
/// free place within `bounds`; without one a name is left out. Points that cannot be told apart
/// share a label.
///
/// `line` is drawn between its points; a name lies on it only where there is no other place.
fn labels(points: &[(&str, (i32, i32))], line: &[(i32, i32)], bounds: [i32; 4]) -> Vec<Label> {
    let mut groups: Vec<(String, (i32, i32))> = Vec::new();
    for &(name, (x, y)) in points {
        match groups
            .iter_mut()
            .find(|(_, at)| (at.0 - x).abs() <= MARK && (at.1 - y).abs() <= MARK)
        {
            Some((text, _)) => *text = format!("{text}, {name}"),
            None => groups.push((name.to_owned(), (x, y))),
        }
    }
    let marks: Vec<[i32; 4]> = groups
        .iter()
        .map(|(_, (x, y))| [x - MARK, y - MARK, x + MARK, y + MARK])
        .collect();
    let mut placed: Vec<Label> = Vec::new();
    for (text, (x, y)) in groups {
        // A letter is about 0.6 of the text's height wide.
        let width = (0.6 * TEXT * f64::from(FINE) * text.chars().count() as f64).ceil() as i32;
        let (height, gap) = (13 * FINE, 7 * FINE);
        let corners = [
            (x + gap, y - height),
            (x - gap - width, y - height),
            (x - width / 2, y - gap - height),
            (x - width / 2, y + gap),
        ];
        let areas = corners.map(|(left, top)| [left, top, left + width, top + height]);
        let inside = |a: &[i32; 4]| {
            a[0] >= bounds[0] && a[1] >= bounds[1] && a[2] <= bounds[2] && a[3] <= bounds[3]
        };
        let taken = |a: &[i32; 4]| {
            marks
                .iter()
                .chain(placed.iter().map(|l| &l.area))
                .any(|other| overlap(a, other))
        };
        let free: Vec<[i32; 4]> = areas
            .into_iter()
            .filter(|area| inside(area) && !taken(area))
            .collect();
        let crossed = |area: &[i32; 4]| line.windows(2).any(|ends| crosses(ends[0], ends[1], area));
        let best = free.iter().find(|area| !crossed(area)).or(free.first());
        if let Some(area) = best {
            placed.push(Label { text, area: *area });
        }
    }
    placed
}

/// A name of at most [`LETTERS`] letters.
fn cut(name: &str) -> String {
    if name.chars().count() <= LETTERS {
        return name.to_owned();
    }
    let start: String = name.chars().take(LETTERS - 1).collect();
    format!("{}\u{2026}", start.trim_end())
}

/// Round values within a range, at most a handful: 1, 2, 5, 10, ... times `unit`, or only the
/// powers of ten.
fn ticks((low, high): (f64, f64), unit: f64) -> Vec<f64> {
    let powers = (low / unit).log10().floor() as i32..=(high / unit).log10().ceil() as i32;
    let of = |steps: &[f64]| -> Vec<f64> {
        let all = powers
            .clone()
            .flat_map(|p| steps.iter().map(move |s| s * 10f64.powi(p) * unit));
        all.filter(|v| (low..=high).contains(v)).collect()
    };
    [
        &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0][..],
        &[1.0, 2.0, 5.0],
        &[1.0, 3.0],
    ]
    .into_iter()
    .map(of)
    .find(|t| t.len() <= 6)
    .unwrap_or_else(|| of(&[1.0]))
}

impl Scatter<'_> {
    /// The chart as an SVG element, or nothing if there is no point to show.
    pub(super) fn svg(&self) -> Result<Option<String>, ChartError> {
        // Ranges and ticks around larger ones overflow.
        let usable = |p: &&Point| (1e-30..=1e30).contains(&p.x) && p.y.abs() <= 1e30;
        let points: Vec<&Point> = self.points.iter().filter(usable).collect();
        if points.is_empty() {
            return Ok(None);
        }
        axes::svg(self.title, SIZE, |root| self.draw(root, &points)).map(Some)
    }

    /// The chart as an HTML figure; nothing without a point.
    pub(super) fn figure(&self) -> Result<String, ChartError> {
        let Some(svg) = self.svg()? else {
            return Ok(String::new());
        };
        let label = format!("{} against {}", self.quality, self.cost.to_lowercase());
        let svg = svg.replacen(
            "<svg ",
            &format!("<svg role=\"img\" aria-label=\"{}\" ", escape(&label)),
            1,
        );
        Ok(format!(
            "<figure><figcaption><h3>{}</h3></figcaption><div class=\"chart\">{svg}</div>\
             <p class=\"note\">Named: what nothing else beats in both.</p></figure>\n",
            escape(self.title)
        ))
    }

    fn draw(
        &self,
        root: &DrawingArea<SVGBackend<'_>, Shift>,
        points: &[&Point],
    ) -> Result<(), Box<dyn std::error::Error>> {
        let bounds = |value: fn(&Point) -> f64| {
            points
                .iter()
                .map(|p| value(p))
                .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| {
                    (low.min(v), high.max(v))
                })
        };
        let (x, y) = (bounds(|p| p.x), bounds(|p| p.y));
        // Room for the names, most of which stand to the right of their points.
        let x = (x.0 / 1.3, (x.1 * 1.3).max(x.0 * 2.0));
        let x = (x.0, x.1 * (x.1 / x.0).powf(0.3));
        // Around a single value as much as can be told apart in few digits.
        let room = (0.12 * (y.1 - y.0)).max(0.02 * y.1.abs()).max(1e-6);
        let y = (y.0 - room, y.1 + room);
        let decimals = (-((y.1 - y.0) / 5.0).log10().floor()).clamp(0.0, 6.0) as usize;
        let mut chart = axes::margins(root, LEFT, 14).build_cartesian_2d(
            (x.0..x.1).log_scale().with_key_points(ticks(x, self.unit)),
            y.0..y.1,
        )?;
        let words = Labels {
            text: TEXT,
            most: 20,
            x: &|v| (self.cost_label)(*v),
            y: &|v| format!("{v:.decimals$}"),
            across: self.cost,
        };
        axes::grid(&mut chart, &words)?;
        axes::name_vertical(root, self.quality, TEXT, SIZE.1)?;
        let owned: Vec<Point> = points
            .iter()
            .map(|p| Point {
                name: p.name.clone(),
                x: p.x,
                y: p.y,
            })
            .collect();
        let front = front(&owned, self.lower_is_better);
        let steps = front.iter().map(|&i| (owned[i].x, owned[i].y));
        chart.draw_series(std::iter::once(PathElement::new(
            steps.collect::<Vec<_>>(),
            colour::TRAIN.mix(0.5).stroke_width(FINE as u32),
        )))?;
        for (i, point) in owned.iter().enumerate() {
            let best = front.contains(&i);
            let style = if best {
                colour::TRAIN.filled()
            } else {
                colour::AXIS.mix(0.75).filled()
            };
            chart.draw_series(std::iter::once(Circle::new(
                (point.x, point.y),
                if best { MARK } else { 3 * FINE },
                style,
            )))?;
        }
        let short: Vec<String> = front.iter().map(|&i| cut(&owned[i].name)).collect();
        let named: Vec<(&str, (i32, i32))> = front
            .iter()
            .zip(&short)
            .map(|(&i, name)| {
                let at = chart.backend_coord(&(owned[i].x, owned[i].y));
                (name.as_str(), at)
            })
            .collect();
        let line: Vec<(i32, i32)> = named.iter().map(|(_, at)| *at).collect();
        // Over the edge of the chart is free too, but not over the numbers of its axes.
        let (across, down) = chart.plotting_area().get_pixel_range();
        for Label { text, area } in labels(
            &named,
            &line,
            [across.start, 0, SIZE.0 as i32 * FINE, down.end],
        ) {
            root.draw(&Text::new(text, (area[0], area[1]), font(TEXT)))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points() -> Vec<Point> {
        let of = |(name, x, y): (&str, f64, f64)| Point {
            name: name.into(),
            x,
            y,
        };
        [
            ("cheap", 10.0, 0.8),
            ("good", 1000.0, 0.9),
            ("beaten", 100.0, 0.7),
            ("even", 10.0, 0.8),
            ("costly", 2000.0, 0.9),
        ]
        .map(of)
        .into()
    }

    #[test]
    fn the_front_holds_what_nothing_beats() {
        assert_eq!(front(&points(), false), [0, 3, 1]);
        // The other way round only the cheapest and the worst remain.
        assert_eq!(front(&points(), true), [0, 3, 2]);
    }

    #[test]
    fn points_beyond_any_axis_are_left_out() {
        for (x, y) in [(1e308, 0.8), (5.0, 1e300), (1e-320, 0.8), (1e30, -1e30)] {
            let mut points = points();
            points.push(Point {
                name: "beyond".into(),
                x,
                y,
            });
            let scatter = Scatter {
                title: "Cost",
                quality: "accuracy",
                cost: "Seconds",
                cost_label: |v| v.to_string(),
                unit: 1.0,
                lower_is_better: false,
                points,
            };
            let svg = scatter.svg().unwrap().unwrap();
            assert!(svg.len() < 1 << 20, "{}", svg.len());
        }
    }

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!(
            ticks((120.0, 700.0), 1.0),
            [200.0, 300.0, 400.0, 500.0, 600.0]
        );
        assert_eq!(ticks((7.0, 300.0), 1.0), [10.0, 20.0, 50.0, 100.0, 200.0]);
        assert_eq!(ticks((5e3, 3e8), 1.0), [1e4, 1e5, 1e6, 1e7, 1e8]);
        assert_eq!(
            ticks((150.0 * 1048576.0, 700.0 * 1048576.0), 1048576.0)[0],
            200.0 * 1048576.0
        );
    }

    #[test]
    fn labels_do_not_lie_on_each_other() {
        let bounds = [200, 0, 2240, 1100];
        let points = [
            ("middle", (1000, 500)),
            ("near", (1060, 500)),
            ("same", (1002, 499)),
            ("edge", (2200, 300)),
            ("corner", (210, 1090)),
            ("top", (700, 8)),
        ];
        let found = labels(&points, &[], bounds);
        let texts: Vec<&str> = found.iter().map(|l| l.text.as_str()).collect();
        assert_eq!(texts, ["middle, same", "near", "edge", "corner", "top"]);
        for (i, a) in found.iter().enumerate() {
            assert!(
                found[..i].iter().all(|b| !overlap(&a.area, &b.area)),
                "{} lies on another",
                a.text
            );
            assert!(
                points.iter().all(|(_, (x, y))| !overlap(
                    &a.area,
                    &[x - MARK, y - MARK, x + MARK, y + MARK]
                )),
                "{}",
                a.text
            );
            assert!(
                a.area[0] >= bounds[0]
                    && a.area[1] >= bounds[1]
                    && a.area[2] <= bounds[2]
                    && a.area[3] <= bounds[3],
                "{}",
                a.text
            );
        }
        // Where there is no room the name is left out.
        assert!(labels(&[("much too long", (50, 50))], &[], [0, 0, 100, 100]).is_empty());
    }

    #[test]
    fn labels_are_not_crossed_by_the_line() {
        // The line rises to the right of both points, where the names would stand first.
        let points = [("low", (500, 900)), ("high", (700, 860))];
        let line = [(500, 900), (700, 860), (1500, 700)];
        for label in labels(&points, &line, [0, 0, 2240, 1100]) {
            let crossed = line.windows(2).any(|e| crosses(e[0], e[1], &label.area));
            assert!(!crossed, "{} at {:?}", label.text, label.area);
        }
        assert!(crosses((0, 0), (10, 10), &[4, 4, 6, 6]));
        assert!(
            !crosses((0, 0), (10, 10), &[6, 0, 9, 3]) && !crosses((0, 5), (3, 5), &[4, 4, 6, 6])
        );
        assert!(
            crosses((5, 0), (5, 10), &[4, 4, 6, 6]) && !crosses((7, 0), (7, 10), &[4, 4, 6, 6])
        );
    }

    #[test]
    fn names_of_the_best_are_shown() {
        let scatter = |points| Scatter {
            title: "t",
            cost: "Parameters",
            unit: 1.0,
            cost_label: |v| format!("{v:.0}"),
            quality: "Accuracy",
            points,
            lower_is_better: false,
        };
        let svg = scatter(points()).svg().unwrap().unwrap();
        assert!(
            svg.contains("cheap")
                && svg.contains("good")
                && !svg.contains("beaten")
                && !svg.contains("NaN"),
            "{svg}"
        );
        let long = scatter(vec![Point {
            name: "a name that is longer than any chart has room for".into(),
            x: 5.0,
            y: 0.08,
        }]);
        let svg = long.svg().unwrap().unwrap();
        assert!(svg.contains("a name that is longer than\u{2026}"), "{svg}");
        assert!(
            scatter(vec![Point {
                name: "x".into(),
                x: 0.0,
                y: 1.0
            }])
            .svg()
            .unwrap()
            .is_none()
        );
        assert!(
            scatter(vec![Point {
                name: "x".into(),
                x: 5.0,
                y: 1.0
            }])
            .svg()
            .unwrap()
            .is_some()
        );
    }
}
