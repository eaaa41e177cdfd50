//! Files to images, within bounds that are checked before anything is allocated for the pixels.

use std::io::{Cursor, Read};
use std::path::Path;

use frugal_core::fs::FileError;
use image::codecs::gif::GifDecoder;
use image::codecs::png::PngDecoder;
use image::codecs::webp::WebPDecoder;
use image::{
    AnimationDecoder, DynamicImage, ImageDecoder, ImageFormat, ImageReader, Rgb, RgbImage,
};

use crate::error::MediaError;
use crate::picture::Picture;

/// What an image may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the file.
    pub bytes: u64,
    /// Pixels. Pillow warns from 89 million on.
    pub pixels: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: 256 << 20,
            pixels: 1 << 26,
        }
    }
}

impl Limits {
    /// Bytes that a decoder may allocate: four channels of 16 bits for each pixel.
    fn allocation(self) -> u64 {
        self.pixels.saturating_mul(8)
    }
}

/// Reads and decodes an image file: JPEG, PNG, WebP, GIF or BMP, told by its first bytes.
///
/// # Errors
/// As [`decode`], and what the file system says.
pub fn decode_file(path: &Path, limits: Limits) -> Result<Picture, MediaError> {
    // A pipe would be waited for.
    let what = std::fs::metadata(path).map_err(FileError::at(path, "cannot open"))?;
    if !what.is_file() {
        return Err(MediaError::image(
            &path.display().to_string(),
            "it is no file",
        ));
    }
    let mut file = std::fs::File::open(path).map_err(FileError::at(path, "cannot open"))?;
    let mut bytes = Vec::new();
    let mut within = Read::by_ref(&mut file).take(limits.bytes.saturating_add(1));
    let read = within.read_to_end(&mut bytes);
    read.map_err(FileError::at(path, "cannot read"))?;
    decode(&path.display().to_string(), &bytes, limits)
}

/// Decodes an image to 8-bit RGB, turned as its orientation says; `place` names it in errors. Grey
/// images get three equal channels, an alpha channel is left out and of 16-bit channels the higher
/// byte is taken, as Pillow's `convert("RGB")` does.
///
/// # Errors
/// [`MediaError::Image`] for other formats, images that are damaged or end early, that exceed the
/// limits, that have several frames, for JPEG files of four colours (CMYK), and for PNG files of one
/// 16-bit grey channel: Pillow cuts their values off at 255, others take the higher byte.
pub fn decode(place: &str, bytes: &[u8], limits: Limits) -> Result<Picture, MediaError> {
    let bad = |reason: &dyn ToString| MediaError::image(place, reason.to_string());
    if bytes.len() as u64 > limits.bytes {
        return Err(bad(&format!(
            "the file is larger than {} MiB",
            limits.bytes >> 20
        )));
    }
    if bytes.is_empty() {
        return Err(bad(&"the file is empty"));
    }
    let known = "it is no JPEG, PNG, WebP, GIF or BMP image";
    let format = image::guess_format(bytes).map_err(|_| bad(&known))?;
    match format {
        ImageFormat::Jpeg => check_jpeg(bytes).map_err(|reason| bad(&reason))?,
        ImageFormat::Png | ImageFormat::WebP | ImageFormat::Gif | ImageFormat::Bmp => {}
        _ => return Err(bad(&known)),
    }
    let damaged = |error: image::ImageError| bad(&format!("it cannot be decoded: {error}"));
    let reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut decoder = reader.into_decoder().map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > limits.pixels {
        return Err(bad(&format!(
            "{width} x {height} pixels are more than the {} that are read",
            limits.pixels
        )));
    }
    if width == 0 || height == 0 {
        return Err(bad(&"it has no pixels"));
    }
    if has_frames(bytes, format, limits).map_err(damaged)? {
        return Err(bad(
            &"it is animated: give one of its frames as an image of its own",
        ));
    }
    decoder.set_limits(of(limits)).map_err(damaged)?;
    // Of the header: a transparent grey is decoded as an alpha channel, which changes nothing for Pillow.
    if format == ImageFormat::Png && bytes.get(24..26) == Some(&[16, 0][..]) {
        return Err(bad(
            &"it is a PNG of one 16-bit grey channel, which `transformers` reads as white from 255 of 65535 on: convert it to 8 bits, or to RGB",
        ));
    }
    let orientation = decoder.orientation().map_err(damaged)?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(damaged)?;
    image.apply_orientation(orientation);
    let rgb = eight_bits(image).into_rgb8();
    let (width, height) = rgb.dimensions();
    Picture::new(width as usize, height as usize, rgb.into_raw())
        .ok_or_else(|| bad(&"it has no pixels"))
}

/// The higher byte of 16-bit channels, as Pillow and libpng (`png_set_strip_16`) take it.
fn eight_bits(image: DynamicImage) -> DynamicImage {
    let rgb: RgbImage = match &image {
        DynamicImage::ImageLumaA16(grey) => {
            RgbImage::from_fn(grey.width(), grey.height(), |x, y| {
                Rgb([(grey.get_pixel(x, y)[0] >> 8) as u8; 3])
            })
        }
        DynamicImage::ImageRgb16(_) | DynamicImage::ImageRgba16(_) => {
            // Without its alpha channel, which changes no colour.
            let wide = image.to_rgb16();
            RgbImage::from_fn(wide.width(), wide.height(), |x, y| {
                Rgb(wide.get_pixel(x, y).0.map(|v| (v >> 8) as u8))
            })
        }
        _ => return image,
    };
    rgb.into()
}

fn of(limits: Limits) -> image::Limits {
    let mut all = image::Limits::default();
    all.max_alloc = Some(limits.allocation());
    all
}

/// Whether there is more than one frame.
fn has_frames(bytes: &[u8], format: ImageFormat, limits: Limits) -> image::ImageResult<bool> {
    Ok(match format {
        ImageFormat::Png => PngDecoder::with_limits(Cursor::new(bytes), of(limits))?.is_apng()?,
        ImageFormat::WebP => WebPDecoder::new(Cursor::new(bytes))?.has_animation(),
        ImageFormat::Gif => {
            let mut decoder = GifDecoder::new(Cursor::new(bytes))?;
            decoder.set_limits(of(limits))?;
            decoder.into_frames().take(2).filter(Result::is_ok).count() > 1
        }
        _ => false,
    })
}

/// Whether the markers of a JPEG file lead to its end, and its components are grey or three: a
/// decoder would fill in what is missing, and take four colours for others.
fn check_jpeg(bytes: &[u8]) -> Result<(), String> {
    let cut = || "the image ends early: the file is cut off".to_owned();
    let mut at = 2;
    loop {
        // Any number of fill bytes may come before a marker.
        while bytes.get(at) == Some(&0xff) && bytes.get(at + 1) == Some(&0xff) {
            at += 1;
        }
        let (Some(0xff), Some(&marker)) = (bytes.get(at), bytes.get(at + 1)) else {
            return Err(match at + 1 < bytes.len() {
                true => "it is damaged: a marker is missing".into(),
                false => cut(),
            });
        };
        if (0xd0..=0xd8).contains(&marker) || marker == 0x01 {
            at += 2;
            continue;
        }
        if marker == 0xd9 {
            return Err(cut());
        }
        let length = bytes.get(at + 2..at + 4).ok_or_else(cut)?;
        let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
        let is_frame = (0xc0..=0xcf).contains(&marker) && ![0xc4, 0xc8, 0xcc].contains(&marker);
        if is_frame {
            match bytes.get(at + 9).ok_or_else(cut)? {
                1 | 3 => {}
                4 => {
                    return Err(
                        "it is a JPEG of four colours (CMYK or YCCK): convert it to RGB".into(),
                    );
                }
                n => return Err(format!("it has {n} components, where 1 and 3 are read")),
            }
        }
        at += 2 + length;
        if marker == 0xda {
            break;
        }
    }
    // In coded data 0xff is followed by 0 or a restart, so that this is the end of the image.
    let ends = |pair: &[u8]| pair == [0xff, 0xd9];
    match bytes
        .get(at..)
        .is_some_and(|rest| rest.windows(2).any(ends))
    {
        true => Ok(()),
        false => Err(cut()),
    }
}

#[cfg(test)]
mod tests;
