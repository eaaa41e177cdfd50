//! Numbers as people read them: thousands separators, binary sizes, durations, shares, dates.

/// `1234567` as `1,234,567`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A size in bytes with a binary unit, such as `93.6 MiB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1024.0;
    let mut unit = 0;
    // From 1023.95 on, one decimal would round to 1024.0 of the smaller unit.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A duration such as `76.3 µs`, `850 ms`, `12.3 s`, `2 min 05 s`, `3 h 07 min`; `-` if it is negative or not
/// a number.
pub fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "-".into();
    }
    let whole = seconds.round() as u64;
    match seconds {
        s if s > 0.0 && s < 0.999_5e-3 => format!("{} \u{b5}s", significant(s * 1e6, 3)),
        s if s > 0.0 && s < 0.009_95 => format!("{} ms", significant(s * 1e3, 2)),
        s if s < 0.9995 => format!("{:.0} ms", s * 1000.0),
        s if s < 59.95 => format!("{s:.1} s"),
        s if s < 3599.5 => format!("{} min {:02} s", whole / 60, whole % 60),
        s => {
            let minutes = (s / 60.0).round() as u64;
            format!("{} h {:02} min", minutes / 60, minutes % 60)
        }
    }
}

/// `part` of `whole` in percent with three significant digits, such as `0.361 %`; `-` of nothing.
pub fn share(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".into();
    }
    format!("{} %", significant(100.0 * part as f64 / whole as f64, 3))
}

/// A number with `digits` significant digits, with thousands separators and without an exponent
/// where it can be read so.
pub fn significant(value: f64, digits: usize) -> String {
    if value == 0.0 || !value.is_finite() {
        return if value == 0.0 {
            "0".into()
        } else {
            value.to_string()
        };
    }
    // Rounded first: 9.996 has its first digit one place higher.
    let rounded: f64 = format!("{value:.*e}", digits.saturating_sub(1))
        .parse()
        .unwrap_or(value);
    let magnitude = rounded.abs().log10().floor() as i32;
    if !(-4..15).contains(&magnitude) {
        return format!("{rounded:e}");
    }
    let decimals = (digits as i32 - 1 - magnitude).max(0) as usize;
    let text = format!("{:.decimals$}", rounded.abs());
    let (whole, fraction) = text.split_at(text.find('.').unwrap_or(text.len()));
    let sign = if rounded < 0.0 { "-" } else { "" };
    format!(
        "{sign}{}{fraction}",
        whole.parse().map_or(whole.to_owned(), count)
    )
}

/// Seconds since 1970 as `2026-08-01T12:34:56Z`.
pub fn utc(seconds: u64) -> String {
    let (days, second) = ((seconds / 86_400) as i64, seconds % 86_400);
    // Days are counted in eras of 400 years that start on 1 March, so that the leap day comes last.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_sizes() {
        assert_eq!(
            [0, 999, 1000, 134_515_008].map(count),
            ["0", "999", "1,000", "134,515,008"]
        );
        assert_eq!(
            [0, 1023, 1024, 1_048_575, 98_000_000, u64::MAX].map(bytes),
            [
                "0 B",
                "1023 B",
                "1.0 KiB",
                "1.0 MiB",
                "93.5 MiB",
                "16384.0 PiB"
            ]
        );
    }

    #[test]
    fn durations() {
        let seconds = [
            0.0,
            7.63e-5,
            0.001_04,
            0.85,
            0.9996,
            12.34,
            59.96,
            125.0,
            3599.9,
            11_220.0,
            -1.0,
            f64::NAN,
        ];
        let texts = [
            "0 ms",
            "76.3 \u{b5}s",
            "1.0 ms",
            "850 ms",
            "1.0 s",
            "12.3 s",
            "1 min 00 s",
            "2 min 05 s",
            "1 h 00 min",
            "3 h 07 min",
            "-",
            "-",
        ];
        assert_eq!(seconds.map(duration), texts);
    }

    #[test]
    fn significant_digits() {
        let numbers = [
            0.0,
            0.36125,
            9.996,
            1234.5,
            99.95,
            -0.004_567,
            2e-7,
            1e20,
            1_234_567.0,
            -4321.0,
        ];
        let texts = [
            "0",
            "0.361",
            "10.0",
            "1,230",
            "100",
            "-0.00457",
            "2e-7",
            "1e20",
            "1,230,000",
            "-4,320",
        ];
        assert_eq!(numbers.map(|n| significant(n, 3)), texts);
        assert_eq!(significant(-49_152.123, 6), "-49,152.1");
        assert_eq!(
            (share(487_424, 134_515_008), share(1, 0)),
            ("0.362 %".into(), "-".into())
        );
    }

    #[test]
    fn dates() {
        // From `date -u -d @N`.
        let known = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_700_000_000, "2023-11-14T22:13:20Z"),
        ];
        for (seconds, text) in known.into_iter().chain([
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ]) {
            assert_eq!(utc(seconds), text);
        }
    }
}
