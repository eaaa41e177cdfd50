//! A quantity over two logarithmic axes: tiles where it was measured, lines of equal height, marked
//! places.

use std::fmt::Write;

use super::colour;
use super::markup::{escape, hex};

/// A measured place.
pub(super) struct Tile {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) value: f64,
    pub(super) text: String,
}

/// What marks a place.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Shape {
    Circle,
    Diamond,
    Square,
    Triangle,
}

/// A marked place.
pub(super) struct Spot {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) shape: Shape,
    pub(super) colour: plotters::style::RGBColor,
}

/// The chart; coordinates are those of the axes, not their logarithms.
pub(super) struct Surface<'a> {
    pub(super) x_label: &'a str,
    pub(super) y_label: &'a str,
    /// Smaller values are drawn darker.
    pub(super) tiles: Vec<Tile>,
    /// Closed lines.
    pub(super) contours: Vec<Vec<(f64, f64)>>,
    pub(super) spots: Vec<Spot>,
}

/// Units for each pixel shown at the natural size, as in the other charts.
const FINE: f64 = 4.0;
const SIZE: (f64, f64) = (480.0, 300.0);
/// Left, top, right, bottom.
const MARGIN: (f64, f64, f64, f64) = (72.0, 10.0, 14.0, 44.0);

impl Surface<'_> {
    /// The chart as an SVG element, or nothing without tiles.
    pub(super) fn svg(&self) -> Option<String> {
        let (xs, ys) = (
            edges(self.tiles.iter().map(|t| t.x))?,
            edges(self.tiles.iter().map(|t| t.y))?,
        );
        // Marked places beyond the tiles have room, but not so much that the tiles shrink to
        // nothing.
        let reach = |edges: &[(f64, f64, f64)], places: &mut dyn Iterator<Item = f64>| {
            let (low, high) = (edges[0].0, edges[edges.len() - 1].2);
            let near = places
                .map(f64::ln)
                .filter(|p| (low - 1.7..=high + 1.7).contains(p));
            near.fold((low, high), |(a, b), p| (a.min(p - 0.25), b.max(p + 0.25)))
        };
        let x = reach(&xs, &mut self.spots.iter().map(|s| s.x));
        let y = reach(&ys, &mut self.spots.iter().map(|s| s.y));
        let (width, height) = (
            (SIZE.0 - MARGIN.0 - MARGIN.2) * FINE,
            (SIZE.1 - MARGIN.1 - MARGIN.3) * FINE,
        );
        let at = |px: f64, py: f64| {
            (
                (px - x.0) / (x.1 - x.0) * width,
                (y.1 - py) / (y.1 - y.0) * height,
            )
        };
        let values = || self.tiles.iter().map(|t| t.value);
        let (low, high) = (
            values().fold(f64::INFINITY, f64::min),
            values().fold(f64::NEG_INFINITY, f64::max),
        );
        let (left, top) = (MARGIN.0 * FINE, MARGIN.1 * FINE);
        let (text, grid, axis) = (hex(colour::TEXT), hex(colour::GRID), hex(colour::AXIS));
        let mut svg = format!(
            "<svg viewBox=\"0 0 {} {}\" xmlns=\"http://www.w3.org/2000/svg\">\n",
            SIZE.0 * FINE,
            SIZE.1 * FINE
        );
        // A nested drawing cuts off what reaches beyond the axes.
        let _ = writeln!(
            svg,
            "<svg x=\"{left}\" y=\"{top}\" width=\"{width}\" height=\"{height}\">"
        );
        for tile in &self.tiles {
            let of = |edges: &[(f64, f64, f64)], v: f64| {
                edges
                    .iter()
                    .find(|e| e.1 == v.ln())
                    .copied()
                    .unwrap_or((v, v, v))
            };
            let (ex, ey) = (of(&xs, tile.x), of(&ys, tile.y));
            let ((x1, y1), (x2, y2)) = (at(ex.0, ey.2), at(ex.2, ey.0));
            // The root spreads the values near the bottom.
            let depth = if high > low {
                1.0 - ((tile.value - low) / (high - low)).sqrt()
            } else {
                1.0
            };
            let _ = writeln!(
                svg,
                "<rect x=\"{x1:.1}\" y=\"{y1:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{}\" fill-opacity=\"{:.3}\" stroke=\"{grid}\" \
                 stroke-width=\"4\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" font-size=\"42\" fill=\"{text}\">{}</text>",
                x2 - x1,
                y2 - y1,
                hex(colour::TRAIN),
                0.04 + 0.5 * depth,
                (x1 + x2) / 2.0,
                // Below the place itself, which may be marked.
                y2 - 22.0,
                escape(&tile.text)
            );
            let (cx, cy) = at(tile.x.ln(), tile.y.ln());
            let _ = writeln!(
                svg,
                "<circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"9\" fill=\"{axis}\"/>"
            );
        }
        for line in &self.contours {
            let points: String = line
                .iter()
                .map(|p| at(p.0.ln(), p.1.ln()))
                .map(|(x, y)| format!("{x:.1},{y:.1} "))
                .collect();
            let (points, stroke) = (points.trim_end(), hex(colour::AXIS));
            let _ = writeln!(
                svg,
                "<polygon points=\"{points}\" fill=\"none\" stroke=\"{stroke}\" stroke-width=\"5\" stroke-dasharray=\"16 12\"/>"
            );
        }
        for spot in &self.spots {
            let (cx, cy) = at(spot.x.ln(), spot.y.ln());
            svg.push_str(&mark(spot.shape, cx, cy, 26.0, &hex(spot.colour)));
        }
        svg.push_str("</svg>\n");
        let _ = writeln!(
            svg,
            "<rect x=\"{left}\" y=\"{top}\" width=\"{width}\" height=\"{height}\" fill=\"none\" stroke=\"{axis}\" stroke-width=\"4\"/>"
        );
        for edge in &xs {
            let (px, _) = at(edge.1, y.0);
            let label = super::chart::scientific(edge.1.exp());
            let (px, py) = (left + px, top + height + 56.0);
            let _ = writeln!(
                svg,
                "<text x=\"{px:.1}\" y=\"{py:.1}\" text-anchor=\"middle\" font-size=\"46\" fill=\"{text}\">{label}</text>"
            );
        }
        for edge in &ys {
            let (_, py) = at(x.0, edge.1);
            let label = frugal_core::human::count(edge.1.exp().round() as u64);
            let (px, py) = (left - 24.0, top + py + 16.0);
            let _ = writeln!(
                svg,
                "<text x=\"{px:.1}\" y=\"{py:.1}\" text-anchor=\"end\" font-size=\"46\" fill=\"{text}\">{label}</text>"
            );
        }
        let (mx, my) = (left + width / 2.0, SIZE.1 * FINE - 24.0);
        let _ = writeln!(
            svg,
            "<text x=\"{mx}\" y=\"{my}\" text-anchor=\"middle\" font-size=\"46\" fill=\"{text}\">{}</text>",
            escape(self.x_label)
        );
        let my = top + height / 2.0;
        let _ = writeln!(
            svg,
            "<text x=\"48\" y=\"{my}\" transform=\"rotate(-90 48 {my})\" text-anchor=\"middle\" font-size=\"46\" fill=\"{text}\">{}</text>",
            escape(self.y_label)
        );
        svg.push_str("</svg>");
        Some(svg)
    }
}

/// A filled mark of radius `r`.
pub(super) fn mark(shape: Shape, x: f64, y: f64, r: f64, colour: &str) -> String {
    let points: &[(f64, f64)] = match shape {
        Shape::Circle => {
            return format!(
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{:.1}\" fill=\"{colour}\"/>\n",
                0.8 * r
            );
        }
        Shape::Diamond => &[(0.0, -1.1), (1.1, 0.0), (0.0, 1.1), (-1.1, 0.0)],
        Shape::Square => &[(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
        Shape::Triangle => &[(0.0, -1.0), (1.0, 0.8), (-1.0, 0.8)],
    };
    let points: String = points
        .iter()
        .map(|p| format!("{:.1},{:.1} ", x + p.0 * r, y + p.1 * r))
        .collect();
    format!(
        "<polygon points=\"{}\" fill=\"{colour}\"/>\n",
        points.trim_end()
    )
}

/// Distinct places on an axis with the middle to their neighbours, as logarithms: (from, place,
/// to).
fn edges(places: impl Iterator<Item = f64>) -> Option<Vec<(f64, f64, f64)>> {
    let mut places: Vec<f64> = places.map(f64::ln).filter(|p| p.is_finite()).collect();
    places.sort_by(f64::total_cmp);
    places.dedup();
    let half = |i: usize| (places.get(i + 1).zip(places.get(i))).map(|(b, a)| (b - a) / 2.0);
    let single = 0.5 * std::f64::consts::LN_2;
    let all = places.iter().enumerate().map(|(i, &p)| {
        let before = i
            .checked_sub(1)
            .and_then(half)
            .or(half(i))
            .unwrap_or(single);
        (p - before, p, p + half(i).unwrap_or(before))
    });
    let all: Vec<_> = all.collect();
    (!all.is_empty()).then_some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_meet_half_way_and_marks_are_where_they_belong() {
        let tile = |x: f64, y: f64, value| Tile {
            x,
            y,
            value,
            text: format!("{value}"),
        };
        let surface = Surface {
            x_label: "rate",
            y_label: "a<b",
            tiles: vec![
                tile(1.0, 1.0, 3.0),
                tile(4.0, 1.0, 2.0),
                tile(1.0, 4.0, 4.0),
            ],
            contours: vec![vec![(1.0, 1.0), (2.0, 1.0), (2.0, 2.0)]],
            spots: vec![
                Spot {
                    x: 2.0,
                    y: 2.0,
                    shape: Shape::Diamond,
                    colour: colour::RATE,
                },
                Spot {
                    x: 1e9,
                    y: 2.0,
                    shape: Shape::Square,
                    colour: colour::RATE,
                },
            ],
        };
        let svg = surface.svg().unwrap();
        // 394 by 246 pixels of four units each; two columns and two rows share them evenly.
        assert_eq!(
            svg.matches("width=\"788.0\" height=\"492.0\"").count(),
            3,
            "{svg}"
        );
        // The middle of both axes; the mark far beyond does not stretch the axis.
        assert!(
            svg.contains("788.0,463.4 816.0") || svg.contains("points=\"788.0,463.4 816.6,492.0"),
            "{svg}"
        );
        // Smallest and largest value: darkest and palest.
        assert!(
            svg.contains("fill-opacity=\"0.540\"") && svg.contains("fill-opacity=\"0.040\""),
            "{svg}"
        );
        assert!(svg.contains("a&lt;b") && !svg.contains("NaN"), "{svg}");
        assert!(
            Surface {
                tiles: Vec::new(),
                ..surface
            }
            .svg()
            .is_none()
        );
    }
}
