use std::path::PathBuf;

use super::*;

fn fixture(name: &str) -> PathBuf {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/media");
    PathBuf::from(folder).join(name)
}

fn read(name: &str) -> Result<Picture, String> {
    decode_file(&fixture(name), Limits::default()).map_err(|error| error.to_string())
}

/// Largest difference of a channel.
fn distance(a: &Picture, b: &Picture) -> u8 {
    assert_eq!((a.width(), a.height()), (b.width(), b.height()));
    let pairs = a.rgb().iter().zip(b.rgb());
    pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

#[test]
fn lossless_images_are_as_pillow_reads_them() {
    let source = read("source.png").unwrap();
    for name in ["lossless.webp", "plain.bmp"] {
        assert_eq!(distance(&read(name).unwrap(), &source), 0, "{name}");
    }
    for name in ["grey.png", "palette.png", "alpha.png", "still.gif"] {
        let expected = read(&format!("read-{name}.png")).unwrap();
        assert_eq!(distance(&read(name).unwrap(), &expected), 0, "{name}");
    }
}

/// They were rounded, where Pillow and libpng take the higher byte.
#[test]
fn channels_of_16_bits_were_other_values_than_pillows() {
    for name in ["deep-color.png", "deep-alpha.png", "deep-grey-alpha.png"] {
        let expected = read(&format!("read-{name}.png")).unwrap();
        assert_eq!(distance(&read(name).unwrap(), &expected), 0, "{name}");
    }
}

/// Decoders of JPEG may round otherwise; the standard allows a difference of one level before the
/// colours are converted, and chroma that was halved is filled in otherwise at edges.
#[test]
fn jpeg_images_are_as_pillow_reads_them_but_for_rounding() {
    for (name, most) in [("plain.jpg", 4), ("grey.jpg", 2), ("turned.jpg", 4)] {
        let expected = read(&format!("read-{name}.png")).unwrap();
        let found = distance(&read(name).unwrap(), &expected);
        assert!(found <= most, "{name}: {found}");
    }
    let (made, expected) = (
        read("progressive.jpg").unwrap(),
        read("read-progressive.jpg.png").unwrap(),
    );
    let pairs = made.rgb().iter().zip(expected.rgb());
    let sum: u32 = pairs.map(|(a, b)| u32::from(a.abs_diff(*b))).sum();
    assert!(f64::from(sum) / (made.rgb().len() as f64) < 1.5, "{sum}");
}

#[test]
fn what_is_not_read_is_refused_by_name() {
    for (name, says) in [
        ("cmyk.jpg", "four colours (CMYK"),
        ("animated.gif", "animated"),
        ("animated.png", "animated"),
        ("animated.webp", "animated"),
        ("processors.json", "no JPEG, PNG"),
        ("deep-grey.png", "16-bit grey"),
        ("deep-grey-clear.png", "16-bit grey"),
    ] {
        let error = read(name).unwrap_err();
        assert!(error.contains(says) && error.contains(name), "{error}");
    }
}

#[test]
fn an_image_that_ends_early_is_refused_wherever_it_ends() {
    for name in [
        "plain.jpg",
        "progressive.jpg",
        "source.png",
        "lossless.webp",
        "plain.bmp",
        "still.gif",
    ] {
        let bytes = std::fs::read(fixture(name)).unwrap();
        for share in [1, 10, 30, 50, 70, 90, 97] {
            let cut = &bytes[..bytes.len() * share / 100];
            let found = decode(name, cut, Limits::default());
            assert!(found.is_err(), "{name} read with {share} % of its bytes");
        }
        let error = decode(name, &[], Limits::default())
            .unwrap_err()
            .to_string();
        assert!(error.contains("empty"), "{error}");
    }
}

#[test]
fn a_size_beyond_the_limit_is_refused_before_the_pixels_are_read() {
    // A PNG that says it is of 60 000 x 60 000 pixels, and a GIF and a BMP likewise.
    let mut png = std::fs::read(fixture("source.png")).unwrap();
    png[16..20].copy_from_slice(&60_000u32.to_be_bytes());
    png[20..24].copy_from_slice(&60_000u32.to_be_bytes());
    let header = crc(&png[12..29]);
    png[29..33].copy_from_slice(&header.to_be_bytes());
    let mut gif = std::fs::read(fixture("still.gif")).unwrap();
    gif[6..10].copy_from_slice(&[0xff; 4]);
    let mut bmp = std::fs::read(fixture("plain.bmp")).unwrap();
    bmp[18..22].copy_from_slice(&60_000i32.to_le_bytes());
    bmp[22..26].copy_from_slice(&60_000i32.to_le_bytes());
    for (name, bytes) in [("png", png), ("gif", gif), ("bmp", bmp)] {
        let error = decode(name, &bytes, Limits::default())
            .unwrap_err()
            .to_string();
        assert!(error.contains("pixels are more than"), "{name}: {error}");
    }
    let small = Limits {
        pixels: 53 * 37 - 1,
        ..Limits::default()
    };
    let error = decode_file(&fixture("plain.jpg"), small)
        .unwrap_err()
        .to_string();
    assert!(error.contains("53 x 37"), "{error}");
    let short = Limits {
        bytes: 100,
        ..Limits::default()
    };
    let error = decode_file(&fixture("plain.jpg"), short)
        .unwrap_err()
        .to_string();
    assert!(error.contains("larger than"), "{error}");
}

/// The checksum of a PNG chunk (ISO 3309).
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |mut sum, byte| {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg());
        }
        sum
    })
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(200))]
    #[test]
    fn damaged_bytes_never_panic(kind in 0usize..6, at in proptest::collection::vec((0usize..4000, 0u8..=255), 1..6)) {
        let names = ["plain.jpg", "progressive.jpg", "source.png", "lossless.webp", "plain.bmp", "animated.gif"];
        let mut bytes = std::fs::read(fixture(names[kind])).unwrap();
        let len = bytes.len();
        for (place, value) in at {
            bytes[place % len] = value;
        }
        let small = Limits { pixels: 1 << 16, ..Limits::default() };
        let _ = decode("damaged", &bytes, small);
    }
}
