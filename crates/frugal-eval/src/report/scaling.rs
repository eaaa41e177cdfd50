//! Throughput against the number of devices, as a chart of its own.

use super::axes::ChartError;
use super::chart::{Chart, Mark, Series};
use super::colour;
use crate::parallel::{Scaling, ScalingPoint};

/// The throughput of each number of devices and, pale, what it would be without loss: an SVG
/// drawing, or nothing without a point.
///
/// # Errors
/// What the plotting library says.
pub fn scaling_svg(kind: Scaling, points: &[ScalingPoint]) -> Result<Option<String>, ChartError> {
    let of = |value: &dyn Fn(&ScalingPoint) -> f64| {
        points.iter().map(|p| (p.gpus as f64, value(p))).collect()
    };
    let series = |label: &str, colour, mark, points| Series {
        label: label.into(),
        colour,
        mark,
        points,
    };
    let chart = Chart {
        title: match kind {
            Scaling::Weak => "Weak scaling",
            Scaling::Strong => "Strong scaling",
        },
        unit: "Sequences a second".into(),
        across: "Devices",
        series: vec![
            series(
                "without loss",
                colour::AXIS,
                Mark::Faint,
                of(&|p| p.sequences_per_second / p.efficiency),
            ),
            series(
                "predicted",
                colour::TRAIN,
                Mark::Dotted,
                of(&|p| p.sequences_per_second),
            ),
        ],
        from_zero: true,
    };
    chart.svg()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_of_devices_is_drawn_once() {
        let point = |gpus: u64| ScalingPoint {
            gpus,
            data: gpus / 8,
            global_batch: 640,
            seconds: 1.0,
            sequences_per_second: 640.0,
            efficiency: 8.0 / gpus as f64,
            utilization: 0.3,
        };
        let points = [8, 16, 32].map(point);
        let svg = scaling_svg(Scaling::Strong, &points).unwrap().unwrap();
        assert_eq!(svg.matches("<circle").count(), 3, "{svg}");
        assert!(svg.contains("xmlns") && svg.contains("Devices"));
        assert!(scaling_svg(Scaling::Weak, &[]).unwrap().is_none());
    }
}
