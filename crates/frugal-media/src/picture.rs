//! An image in memory.

/// An 8-bit RGB image.
#[derive(Clone, PartialEq, Eq)]
pub struct Picture {
    width: usize,
    height: usize,
    /// `[height, width, 3]`, row by row.
    rgb: Vec<u8>,
}

impl std::fmt::Debug for Picture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Picture({} x {})", self.width, self.height)
    }
}

impl Picture {
    /// An image of `rgb`, which is `[height, width, 3]`; `None` where the sizes do not fit or there
    /// is no pixel.
    pub fn new(width: usize, height: usize, rgb: Vec<u8>) -> Option<Self> {
        let pixels = width.checked_mul(height)?.checked_mul(3)?;
        (pixels == rgb.len() && pixels > 0).then_some(Self { width, height, rgb })
    }

    /// Columns.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// `[height, width, 3]`, row by row.
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }

    /// Each pixel as one number, `red * 65536 + green * 256 + blue`, row by row.
    pub fn colors(&self) -> Vec<u32> {
        let color = |p: &[u8]| u32::from_be_bytes([0, p[0], p[1], p[2]]);
        self.rgb.chunks_exact(3).map(color).collect()
    }

    /// The part of this size whose upper left corner is at `(x, y)`, which may lie outside; what is
    /// outside of the image is black.
    pub fn window(&self, x: i64, y: i64, width: usize, height: usize) -> Self {
        let mut rgb = vec![0; width * height * 3];
        let first = (-x).clamp(0, width as i64) as usize;
        let from = x.max(0) as usize;
        let count = width
            .saturating_sub(first)
            .min(self.width.saturating_sub(from));
        for row in 0..height {
            let source = y + row as i64;
            if !(0..self.height as i64).contains(&source) || count == 0 {
                continue;
            }
            let to = (row * width + first) * 3;
            let at = (source as usize * self.width + from) * 3;
            rgb[to..to + 3 * count].copy_from_slice(&self.rgb[at..at + 3 * count]);
        }
        Self { width, height, rgb }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(width: usize, height: usize) -> Picture {
        let rgb = (0..width * height * 3).map(|i| i as u8 + 1).collect();
        Picture::new(width, height, rgb).unwrap()
    }

    #[test]
    fn a_window_beyond_the_edges_is_black_there() {
        let picture = numbered(2, 2);
        let window = picture.window(-1, -1, 4, 4);
        let colors = window.colors();
        for (i, color) in colors.iter().enumerate() {
            let (x, y) = (i % 4, i / 4);
            let inside = (1..3).contains(&x) && (1..3).contains(&y);
            let own = || picture.colors()[(y - 1) * 2 + x - 1];
            assert_eq!(*color, if inside { own() } else { 0 }, "{x}, {y}");
        }
        assert!(picture.window(9, 0, 3, 1).rgb().iter().all(|v| *v == 0));
        assert!(picture.window(-9, 0, 3, 1).rgb().iter().all(|v| *v == 0));
    }

    #[test]
    fn sizes_fit_the_values() {
        assert!(Picture::new(2, 2, vec![0; 11]).is_none());
        assert!(Picture::new(0, 2, Vec::new()).is_none());
    }
}
