//! Settings that are swept: the same number of values for every run of a suite.

use serde_json::Value as Json;
use toml::Value;

/// A setting and the values that are tried.
#[derive(Clone, Debug, PartialEq)]
pub struct SweptSetting {
    /// Dotted key, such as `train.lr`.
    pub key: String,
    /// What is tried.
    pub values: SweptValues,
}

/// Values of a swept setting.
#[derive(Clone, Debug, PartialEq)]
pub enum SweptValues {
    /// These.
    Listed(Vec<Value>),
    /// `count` values around that of the run, each `factor` times the one before.
    Around {
        /// Factor between neighbours.
        factor: f64,
        /// How many.
        count: usize,
    },
}

/// More trials of a setting than this are a mistake.
const MAX_VALUES: usize = 64;
/// Keys that are often swept, without their table.
const SHORT: [(&str, &str); 1] = [("lr", "train.lr")];

impl SweptSetting {
    /// Reads `lr=1e-4,3e-4,1e-3` or `lr=3x5`; a key has dots, but `lr` stands for `train.lr`.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (key, values) = text.split_once('=').ok_or_else(|| {
            format!("`{text}` has no `=`: write KEY=VALUE,VALUE or KEY=FACTORxCOUNT")
        })?;
        let key = key.trim();
        if key.is_empty() {
            return Err(format!("`{text}` names no setting in front of `=`"));
        }
        let long = SHORT.iter().find(|(short, _)| *short == key);
        let key = long.map_or(key, |(_, long)| long).to_owned();
        if key == "seed" || key == "train.seed" {
            return Err("the seed is no setting to be swept: `--seeds` lists them".into());
        }
        let decides = ["data", "task", "out"].iter().any(|table| {
            key == *table
                || key
                    .strip_prefix(*table)
                    .is_some_and(|rest| rest.starts_with('.'))
        });
        if decides {
            return Err(format!(
                "`{key}` decides what is measured or where it is kept: trials must share it to be compared"
            ));
        }
        let values = match around(values) {
            Some(values) => values?,
            None => SweptValues::Listed(listed(values)?),
        };
        Ok(Self { key, values })
    }

    /// The values for a run that has `own`; around a whole number they are whole numbers.
    ///
    /// # Errors
    /// When values are spread around that of the run and it has none, or too small a one.
    pub fn values_for(&self, own: Option<&Json>) -> Result<Vec<Value>, String> {
        let (factor, count) = match &self.values {
            SweptValues::Listed(values) => return Ok(values.clone()),
            SweptValues::Around { factor, count } => (*factor, *count),
        };
        let key = &self.key;
        let is_whole = own.is_some_and(Json::is_u64);
        let own = own.and_then(Json::as_f64);
        let own = own.filter(|v| v.is_finite() && *v > 0.0).ok_or_else(|| {
            format!("`{key}` has no value above 0 here to spread others around: list the values, as in `--sweep {key}=1,2,4`")
        })?;
        let middle = (count as f64 - 1.0) / 2.0;
        let numbers = (0..count).map(|i| own * factor.powf(i as f64 - middle));
        if !is_whole {
            return Ok(numbers.map(|v| Value::Float(rounded(v))).collect());
        }
        let mut whole: Vec<i64> = numbers.map(|v| v.round() as i64).collect();
        whole.dedup();
        if whole.len() < count || whole.first().is_some_and(|least| *least < 1) {
            return Err(format!(
                "`{key}` is {own} here, too small to spread {count} whole numbers around: list the values, as in `--sweep {key}=1,2,4`"
            ));
        }
        Ok(whole.into_iter().map(Value::Integer).collect())
    }

    /// The key without its tables, for names.
    pub fn short(&self) -> &str {
        self.key.rsplit('.').next().unwrap_or(&self.key)
    }
}

/// `3x5`; `None` if it is not of that form.
fn around(text: &str) -> Option<Result<SweptValues, String>> {
    let (factor, count) = text.trim().split_once('x')?;
    let (factor, count): (f64, usize) = (factor.parse().ok()?, count.parse().ok()?);
    Some(if !(factor.is_finite() && factor > 1.0) {
        Err(format!(
            "`{text}`: the factor between values must be above 1"
        ))
    } else if !(2..=MAX_VALUES).contains(&count) {
        Err(format!("`{text}`: take 2 to {MAX_VALUES} values"))
    } else {
        Ok(SweptValues::Around { factor, count })
    })
}

fn listed(text: &str) -> Result<Vec<Value>, String> {
    let mut values: Vec<Value> = Vec::new();
    for word in text.split(',').map(str::trim) {
        if word.is_empty() {
            return Err(format!("`{text}` has an empty value"));
        }
        let value = value(word);
        if values.contains(&value) {
            return Err(format!("`{text}` has {word} more than once"));
        }
        values.push(value);
    }
    if !(2..=MAX_VALUES).contains(&values.len()) {
        return Err(format!("`{text}`: take 2 to {MAX_VALUES} values"));
    }
    Ok(values)
}

/// A number or another value of TOML, or a bare word.
fn value(word: &str) -> Value {
    let parsed = toml::from_str::<toml::Table>(&format!("v = {word}"));
    let parsed = parsed.ok().and_then(|mut table| table.remove("v"));
    parsed.unwrap_or_else(|| Value::String(word.to_owned()))
}

/// Four digits, which settings files keep as they are.
fn rounded(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}

/// A value as a name of a run may hold it.
pub fn value_label(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Float(number) => number.to_string(),
        other => other.to_string(),
    };
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || "-_.".contains(c) {
            c
        } else {
            '_'
        }
    };
    text.chars().map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_are_listed_or_spread_around_that_of_the_run() {
        let swept = SweptSetting::parse("lr=1e-4, 3e-4,1e-3").unwrap();
        assert_eq!(swept.key, "train.lr");
        let numbers = |values: Vec<Value>| -> Vec<f64> {
            values.iter().filter_map(Value::as_float).collect()
        };
        assert_eq!(numbers(swept.values_for(None).unwrap()), [1e-4, 3e-4, 1e-3]);
        let swept = SweptSetting::parse("lr=3x5").unwrap();
        assert_eq!(
            numbers(swept.values_for(Some(&json!(2e-4))).unwrap()),
            [2.222e-5, 6.667e-5, 2e-4, 6e-4, 1.8e-3]
        );
        // Between two values is the run's own.
        let swept = SweptSetting::parse("train.lr=4x2").unwrap();
        assert_eq!(
            numbers(swept.values_for(Some(&json!(1.0))).unwrap()),
            [0.5, 2.0]
        );
        // Around a whole number are whole numbers.
        let swept = SweptSetting::parse("method.r=2x3").unwrap();
        assert_eq!(
            swept.values_for(Some(&json!(8))).unwrap(),
            [4, 8, 16].map(Value::Integer)
        );
        let swept = SweptSetting::parse("method.r=4,8").unwrap();
        assert_eq!(
            swept.values_for(None).unwrap(),
            [Value::Integer(4), Value::Integer(8)]
        );
        assert_eq!(
            (swept.short(), value_label(&Value::Float(3e-4))),
            ("r", "0.0003".into())
        );
    }

    #[test]
    fn a_sweep_that_cannot_be_made_says_why() {
        for (text, part) in [
            ("lr", "no `=`"),
            ("=1,2", "names no setting"),
            ("lr=1e-3", "2 to 64"),
            ("lr=1,2,1", "1 more than once"),
            ("lr=1,,2", "empty value"),
            ("lr=1x5", "above 1"),
            ("lr=3x1", "2 to 64"),
            ("lr=3x999999999", "2 to 64"),
            ("seed=1,2", "--seeds"),
            ("data.max_eval_rows=10,20", "must share it"),
            ("out=a,b", "must share it"),
        ] {
            let error = SweptSetting::parse(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
        let ranks = SweptSetting::parse("method.r=2x3").unwrap();
        for own in [None, Some(&json!(1)), Some(&json!(0))] {
            let error = ranks.values_for(own).unwrap_err();
            assert!(error.contains("`--sweep method.r=1,2,4`"), "{error}");
        }
    }
}
