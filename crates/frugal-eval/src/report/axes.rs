//! What charts with axes share: size, fonts, grid, labels.

use plotters::coord::Shift;
use plotters::coord::cartesian::Cartesian2d;
use plotters::coord::ranged1d::{Ranged, ValueFormatter};
use plotters::prelude::*;
use plotters::style::FontTransform;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use thiserror::Error;

use super::colour;

/// A chart that could not be drawn.
#[derive(Debug, Error)]
#[error("cannot draw the chart \"{title}\": {message}")]
pub struct ChartError {
    /// The chart.
    pub title: String,
    /// The plotting library's reason.
    pub message: String,
}

/// Pixels drawn for each pixel shown at the natural size: plotters rounds to whole pixels, which
/// would show in slopes.
pub(super) const FINE: i32 = 4;
/// Shown pixels above, and below for labels and the name of the horizontal axis.
const TOP: i32 = 10;
const BELOW: i32 = 44;

/// A drawing as an SVG element.
pub(super) fn svg(
    title: &str,
    size: (u32, u32),
    draw: impl FnOnce(&DrawingArea<SVGBackend<'_>, Shift>) -> Result<(), Box<dyn std::error::Error>>,
) -> Result<String, ChartError> {
    let mut svg = String::new();
    {
        let fine = FINE as u32;
        let root =
            SVGBackend::with_string(&mut svg, (size.0 * fine, size.1 * fine)).into_drawing_area();
        let drawn = draw(&root).and_then(|()| Ok(root.present()?));
        drawn.map_err(|e| ChartError {
            title: title.into(),
            message: e.to_string(),
        })?;
    }
    Ok(svg)
}

/// Text of a height in shown pixels.
pub(super) fn font(size: f64) -> TextStyle<'static> {
    // plotters divides sizes by 1.24 when it writes SVG.
    ("sans-serif", size * f64::from(FINE) * 1.24)
        .into_font()
        .color(&colour::TEXT)
}

/// The axes of a chart in words.
pub(super) struct Labels<'a> {
    /// Height of the text, in shown pixels.
    pub(super) text: f64,
    /// Most labels of the horizontal axis.
    pub(super) most: usize,
    pub(super) x: &'a dyn Fn(&f64) -> String,
    pub(super) y: &'a dyn Fn(&f64) -> String,
    /// What the horizontal axis shows.
    pub(super) across: &'a str,
}

/// Margins of a chart: in shown pixels to the right and, for labels, to the left.
pub(super) fn margins<'a, 'b, B: DrawingBackend>(
    root: &'a DrawingArea<B, Shift>,
    left: i32,
    right: i32,
) -> ChartBuilder<'a, 'b, B> {
    let mut builder = ChartBuilder::on(root);
    builder
        .margin_top(TOP * FINE)
        .margin_right(right * FINE)
        .x_label_area_size(BELOW * FINE)
        .y_label_area_size(left * FINE);
    builder
}

/// Draws the grid and the axes with their labels.
pub(super) fn grid<'a, X, Y>(
    chart: &mut ChartContext<'a, SVGBackend<'_>, Cartesian2d<X, Y>>,
    labels: &Labels<'_>,
) -> Result<(), Box<dyn std::error::Error>>
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(colour::GRID.stroke_width(FINE as u32))
        .axis_style(colour::AXIS.stroke_width(FINE as u32))
        .set_all_tick_mark_size(4 * FINE)
        .label_style(font(labels.text))
        .axis_desc_style(font(labels.text))
        .x_labels(labels.most)
        .y_labels(6)
        .x_label_formatter(labels.x)
        .y_label_formatter(labels.y)
        .x_desc(labels.across)
        .draw()?;
    Ok(())
}

/// Names the vertical axis of a drawing of this height. By hand, because the library centres the
/// name on the labels' area instead of the axis, and lets it run into the labels.
pub(super) fn name_vertical(
    root: &DrawingArea<SVGBackend<'_>, Shift>,
    name: &str,
    text: f64,
    height: u32,
) -> Result<(), Box<dyn std::error::Error>> {
    let style = font(text).pos(Pos::new(HPos::Center, VPos::Top));
    let turned = TextStyle {
        font: style.font.transform(FontTransform::Rotate270),
        ..style
    };
    let middle = (TOP + (height as i32 - BELOW)) / 2;
    root.draw(&Text::new(name, (2 * FINE, middle * FINE), turned))?;
    Ok(())
}
