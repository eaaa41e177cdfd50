//! Answers of the MATH data set, compared as LaTeX without what does not count.

use serde_json::json;

use super::super::metric::Score;
use super::super::record::{Record, with};
use super::fields::text;
use super::outcome::{Found, Outcome};

pub(super) fn docs(record: Record) -> Result<Option<Record>, String> {
    let answer = boxed(text(&record, "solution")?)?;
    let made = [("answer".to_owned(), json!(answer))].into_iter().collect();
    Ok(Some(with(record, made)))
}

pub(super) fn results(record: &Record, outcome: Outcome<'_>) -> Result<Found, String> {
    let written = outcome.texts.first().map_or("", String::as_str);
    let answer = match (written.find('$'), written.rfind('$')) {
        (Some(first), Some(last)) if first < last => &written[first + 1..last],
        _ => written,
    };
    let right = same(answer, &boxed(text(record, "solution")?)?);
    Ok(vec![(
        "exact_match",
        Score::Value(f64::from(u8::from(right))),
    )])
}

/// What stands in the last box.
fn boxed(solution: &str) -> Result<String, String> {
    let missing = || "`solution` has no \\boxed answer".to_owned();
    if let Some((_, after)) = solution.rsplit_once("\\boxed ") {
        return Ok(after.split('$').next().unwrap_or_default().to_owned());
    }
    let start = solution.rfind("\\boxed").ok_or_else(missing)?;
    let mut depth = 0_usize;
    for (at, c) in solution[start..].char_indices() {
        match c {
            '{' => depth += 1,
            '}' => {
                depth = depth.checked_sub(1).ok_or_else(missing)?;
                if depth == 0 {
                    let whole = &solution[start..start + at];
                    return whole
                        .strip_prefix("\\boxed{")
                        .map(str::to_owned)
                        .ok_or_else(missing);
                }
            }
            _ => {}
        }
    }
    Err(missing())
}

/// Texts that cannot be put into their plain form are compared as they stand.
fn same(one: &str, other: &str) -> bool {
    match (plain(one), plain(other)) {
        (Some(one), Some(other)) => one == other,
        _ => one == other,
    }
}

fn plain(answer: &str) -> Option<String> {
    let mut text = answer.to_owned();
    for (from, to) in [
        ("\n", ""),
        ("\\!", ""),
        ("\\\\", "\\"),
        ("tfrac", "frac"),
        ("dfrac", "frac"),
        ("\\left", ""),
        ("\\right", ""),
        ("^{\\circ}", ""),
        ("^\\circ", ""),
        ("\\$", ""),
    ] {
        text = text.replace(from, to);
    }
    text = without_units(&text)?;
    text = text
        .replace("\\%", "")
        .replace(" .", " 0.")
        .replace("{.", "{0.");
    if text.is_empty() {
        return Some(text);
    }
    if text.starts_with('.') {
        text.insert(0, '0');
    }
    // A short left side, as in `k = 3`, is no part of the answer.
    if let [left, right] = text.split('=').collect::<Vec<_>>()[..]
        && left.chars().count() <= 2
    {
        text = right.to_owned();
    }
    text = with_braces_after_sqrt(&text)?.replace(' ', "");
    text = with_braces_after_frac(&text)?;
    if text == "0.5" {
        text = "\\frac{1}{2}".into();
    }
    slash_as_frac(text)
}

/// Units stand in `\text{ ...}` at the end; more than one of these is something else.
fn without_units(text: &str) -> Option<String> {
    let parts: Vec<&str> = text.split("\\text{ ").collect();
    (parts.len() <= 2).then(|| parts[0].to_owned())
}

fn with_braces_after_sqrt(text: &str) -> Option<String> {
    let mut parts = text.split("\\sqrt");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let mut rest = part.chars();
        match rest.next()? {
            '{' => out += &format!("\\sqrt{part}"),
            first => out += &format!("\\sqrt{{{first}}}{}", rest.as_str()),
        }
    }
    Some(out)
}

fn with_braces_after_frac(text: &str) -> Option<String> {
    let mut parts = text.split("\\frac");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out += "\\frac";
        let mut rest = part.chars();
        let above = rest.next()?;
        if above == '{' {
            out += part;
            continue;
        }
        let Some(below) = rest.next() else {
            return Some(text.to_owned());
        };
        out += &if below == '{' {
            format!("{{{above}}}{{{}", rest.as_str())
        } else {
            format!("{{{above}}}{{{below}}}{}", rest.as_str())
        };
    }
    Some(out)
}

/// `3/4` as a fraction; one of anything but whole numbers has no plain form.
fn slash_as_frac(text: String) -> Option<String> {
    let [above, below] = text.split('/').collect::<Vec<_>>()[..] else {
        return Some(text);
    };
    let whole = |part: &str| part.trim().parse::<i128>().ok();
    let (above, below) = (whole(above)?, whole(below)?);
    Some(if text == format!("{above}/{below}") {
        format!("\\frac{{{above}}}{{{below}}}")
    } else {
        text
    })
}
