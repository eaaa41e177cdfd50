//! Colours by role; `report/style.css` holds their dark counterparts.

use plotters::style::RGBColor;

pub(super) const TRAIN: RGBColor = RGBColor(0x25, 0x63, 0xeb);
pub(super) const VALIDATION: RGBColor = RGBColor(0xd9, 0x48, 0x0f);
pub(super) const RATE: RGBColor = RGBColor(0x7c, 0x3a, 0xed);
pub(super) const SPEED: RGBColor = RGBColor(0x0f, 0x76, 0x6e);
pub(super) const MEMORY: RGBColor = RGBColor(0xbe, 0x18, 0x5d);
pub(super) const GRID: RGBColor = RGBColor(0xe5, 0xe7, 0xeb);
pub(super) const AXIS: RGBColor = RGBColor(0x9c, 0xa3, 0xaf);
pub(super) const TEXT: RGBColor = RGBColor(0x4b, 0x55, 0x63);
